"""A person at the run: pins knobs, vetoes decisions and starts the cooldown while the training goes on.

The orders are a small JSON object in a file that anybody may write, or an :class:`OrderBox` in the same process::

    {"lr": 1e-3}                      every group's learning rate, until the order is withdrawn
    {"weight_decay": 0.1}             the same for the decoupled weight decay
    {"veto": true}                    nothing changes; a rollback still does
    {"cooldown": 200}                 anneal to almost nothing within 200 steps, from the step this is first seen
    {}                                the policy is free again; a cooldown, once begun, goes on

This is the one policy that reads something besides the observation. What it did is in the decision: ``source`` is
``"pinned"`` while orders are in force, and the reason names them, so that a recorded run explains itself.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from lipadvisor.policies.checks import told
from lipadvisor.policies.combine import bearable, with_lr
from lipadvisor.policies.contract import Decision, Knobs, Observation, Policy
from lipadvisor.policies.freeze import HoldState
from lipadvisor.policies.members import member
from lipadvisor.policies.schedules import progress

__all__ = ["Attended", "AttendedState", "OrderBox", "OrderFile", "Orders", "attended"]

FINAL_SHARE = 1e-3  # of the learning rate, at the end of a cooldown that was ordered


def _number(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max  # whole numbers in JSON may be beyond any float


def _require(argument: str, value: object, good: bool, rule: str) -> None:
    if not good:
        raise ValueError(f"Orders({argument}=...) must be {rule}, got {told(value)}.")


@dataclass(frozen=True, slots=True)
class Orders:
    """What a person wants at present. ``None``: no opinion.

    Args:
        lr: per step, > 0.
        weight_decay: decoupled, per unit of tau, >= 0.
        veto: change nothing.
        cooldown: steps in which the learning rate is annealed, >= 1.

    Raises:
        ValueError: a value is out of its range.
    """

    lr: float | None = None
    weight_decay: float | None = None
    veto: bool = False
    cooldown: int | None = None

    def __post_init__(self) -> None:
        _require("lr", self.lr, self.lr is None or (_number(self.lr) and self.lr > 0.0), "a finite number > 0")
        decay = self.weight_decay
        _require("weight_decay", decay, decay is None or (_number(decay) and decay >= 0.0), "a finite number >= 0")
        _require("veto", self.veto, isinstance(self.veto, bool), "true or false")
        steps = self.cooldown
        whole = isinstance(steps, int) and not isinstance(steps, bool)
        _require("cooldown", steps, steps is None or (whole and 1 <= steps < 2**63), "a whole number of steps >= 1")

    @classmethod
    def parse(cls, text: str) -> Orders:
        """Read orders from JSON text.

        Raises:
            ValueError: it is no JSON object, names something unknown, or a value is out of its range.
        """
        data = json.loads(text) if text.strip() else {}
        if not isinstance(data, Mapping):
            raise ValueError(f"Orders must be a JSON object, got {data!r}.")
        unknown = sorted(set(data) - set(cls.__slots__))
        if unknown:
            raise ValueError(f"Orders have no {unknown[0]!r}; they have {list(cls.__slots__)}.")
        return cls(**data)


class OrderSource(Protocol):
    """Where orders come from."""

    def stamp(self) -> str:
        """Return a text that changes whenever the orders do; called before every decision."""
        ...

    def read(self) -> Orders:
        """Return the present orders; called when the stamp has changed. May raise ``ValueError`` or ``OSError``."""
        ...


@dataclass(frozen=True, slots=True)
class OrderFile:
    """Orders in a JSON file; no file, no orders."""

    path: str

    def stamp(self) -> str:
        """Return time and size of the file."""
        try:
            seen = os.stat(self.path)
        except OSError:
            return ""
        return f"{seen.st_mtime_ns} {seen.st_size}"

    def read(self) -> Orders:
        """Return the orders in the file.

        Raises:
            ValueError: the text is no orders.
            OSError: the file cannot be read.
        """
        try:
            return Orders.parse(Path(self.path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Orders()


@dataclass(slots=True)
class OrderBox:
    """Orders handed over in the same process, from a notebook or a signal handler: ``box.orders = Orders(...)``."""

    orders: Orders = Orders()

    def stamp(self) -> str:
        """Return the orders themselves."""
        return repr(self.orders)

    def read(self) -> Orders:
        """Return the orders."""
        return self.orders


@dataclass(frozen=True, slots=True)
class AttendedState:
    """Memory of :class:`Attended`."""

    held: Any  # HoldState of the wrapped policy
    stamp: str = ""
    orders: Orders = Orders()
    readable: bool = True
    cooldown_step: int | None = None  # where the ordered cooldown began
    cooldown_length: int = 1
    full_lr: tuple[tuple[int, float], ...] = ()  # learning rates that were in force there, by group


@dataclass(frozen=True, slots=True)
class Attended:
    """See :func:`attended`."""

    policy: Policy[Any]
    source: OrderSource

    @property
    def name(self) -> str:
        """``attended(inner)``."""
        return f"attended({self.policy.name})"

    def init(self) -> AttendedState:
        """Return the state before the first observation."""
        return AttendedState(HoldState(self.policy.init()))

    def decide(self, observation: Observation, state: AttendedState) -> tuple[Decision, AttendedState]:
        """Return the inner decision, overruled by the orders in force."""
        state = self._listen(observation, state)
        decision, inner = self.policy.decide(observation, state.held.inner)
        suffix = "" if state.readable else "+orders:unreadable"
        if state.orders.veto and not decision.rollback:
            held = state.held.hold(observation, self.name, f"veto{suffix}")
            return replace(held, source="pinned"), replace(state, held=replace(state.held, inner=inner))
        decision = replace(decision, policy=self.name, reason=decision.reason + suffix)
        if state.cooldown_step is not None:
            decision = self._annealed(observation, decision, state)
        decision = _pinned(observation, decision, state.orders)
        return decision, replace(state, held=state.held.after(inner, decision))

    def _listen(self, observation: Observation, state: AttendedState) -> AttendedState:
        """Read the orders if they have changed; what cannot be read leaves the old ones in force."""
        stamp = self.source.stamp()
        if stamp == state.stamp:
            return state
        try:
            orders = self.source.read()
        except (ValueError, OSError, RecursionError):  # brackets, thousands deep
            return replace(state, stamp=stamp, readable=False)
        state = replace(state, stamp=stamp, orders=orders, readable=True)
        if orders.cooldown is None or state.cooldown_step is not None:
            return state
        full = tuple((k.group, k.lr) for k in observation.knobs if k.lr is not None and 0.0 < k.lr < math.inf)
        return replace(state, cooldown_step=observation.step, cooldown_length=orders.cooldown, full_lr=full)

    def _annealed(self, observation: Observation, decision: Decision, state: AttendedState) -> Decision:
        """Return ``decision`` with no learning rate above the ordered cooldown's."""
        start = state.cooldown_step or 0
        wave = 0.5 * (1.0 + math.cos(math.pi * progress(observation.step, start, start + state.cooldown_length)))
        share = FINAL_SHARE + (1.0 - FINAL_SHARE) * wave
        wished = {k.group: k for k in decision.knobs}
        for group, full in state.full_lr:
            mine = wished.get(group, Knobs(group))
            cooled = max(full * share, 1e-30)
            wished[group] = replace(mine, lr=cooled if mine.lr is None else min(mine.lr, cooled))
        knobs, reason = tuple(wished.values()), f"{decision.reason}+cooldown:ordered"
        return replace(decision, knobs=knobs, reason=reason, cooldown_started=True, source="pinned")


def _pinned(observation: Observation, decision: Decision, orders: Orders) -> Decision:
    """Return ``decision`` with the pinned knobs in every group, its decay kept in range."""
    if orders.lr is None and orders.weight_decay is None:
        return decision
    wanted = [decision.knobs_for(present.group) for present in observation.knobs]
    if orders.lr is not None:
        wanted = [with_lr(knobs, orders.lr) for knobs in wanted]
    if orders.weight_decay is not None:
        wanted = [replace(knobs, weight_decay=orders.weight_decay) for knobs in wanted]
    knobs = bearable(observation, wanted)
    return replace(decision, knobs=knobs, reason=f"{decision.reason}+pin", source="pinned")


def attended(policy: Policy[Any], orders: str | os.PathLike[str] | OrderSource) -> Attended:
    """Return ``policy`` under the eye of a person, whose orders are looked at before every decision.

    Args:
        policy: what to wrap.
        orders: path of a JSON file, which need not exist yet; or an :class:`OrderBox`; or anything with ``stamp`` and
            ``read``.
    """
    return Attended(
        member("attended", policy), OrderFile(os.fspath(orders)) if isinstance(orders, (str, os.PathLike)) else orders
    )
