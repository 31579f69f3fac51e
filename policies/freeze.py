"""Hold by step number or by the caller's own judgement: windows in which nothing moves, and decisions refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lipadvisor.policies.checks import require_above, require_non_negative
from lipadvisor.policies.contract import Decision, Observation, Policy, hold
from lipadvisor.policies.members import member

__all__ = ["Freeze", "HoldState", "Veto", "freeze", "veto"]

Refuses = Callable[[Observation, Decision], bool]


@dataclass(frozen=True, slots=True)
class HoldState:
    """Memory of a wrapper that sometimes holds: the inner state, and the phases that must not go back."""

    inner: Any
    warmup_ended: bool = False
    cooldown_started: bool = False

    def after(self, inner: Any, decision: Decision) -> HoldState:
        """Return the state once ``decision`` was let through."""
        return HoldState(inner, decision.warmup_ended, decision.cooldown_started)

    def hold(self, observation: Observation, policy: str, reason: str) -> Decision:
        """Return the decision that leaves everything as it is, in the phase reached."""
        held = hold(observation, policy, reason)
        return replace(held, warmup_ended=self.warmup_ended, cooldown_started=self.cooldown_started)


@dataclass(frozen=True, slots=True)
class Freeze:
    """See :func:`freeze`."""

    policy: Policy[Any]
    start: float
    stop: float

    def __post_init__(self) -> None:
        require_non_negative("freeze", "start", self.start)
        if self.stop != math.inf:
            require_above("freeze", "stop", self.stop, self.start)

    @property
    def name(self) -> str:
        """``freeze(start-stop, inner)``."""
        return f"freeze({self.start:g}-{self.stop:g}, {self.policy.name})"

    def init(self) -> HoldState:
        """Return the state before the first observation."""
        return HoldState(self.policy.init())

    def decide(self, observation: Observation, state: HoldState) -> tuple[Decision, HoldState]:
        """Return the inner decision; inside the window hold, unless the weights must go back."""
        decision, inner = self.policy.decide(observation, state.inner)
        frozen = self.start <= observation.step < self.stop
        if frozen and not (decision.rollback or decision.rewind):
            return state.hold(observation, self.name, "freeze"), replace(state, inner=inner)
        return replace(decision, policy=self.name), state.after(inner, decision)


def freeze(policy: Policy[Any], *, start: float = 0.0, stop: float = math.inf) -> Freeze:
    """Return ``policy`` that changes nothing from step ``start`` to the one before ``stop``.

    The policy goes on watching. Where it takes the weights back, by a rollback or a rewind, that is let through with
    the knobs that belong to it: a run that is lost must not wait, and the weights that validated best would be gone if
    the window reached the end of the run; the policy would go on as if it had them.

    Raises:
        ValueError: ``start`` is negative, or ``stop`` not above it.
    """
    return Freeze(member("freeze", policy), start, stop)


@dataclass(frozen=True, slots=True)
class Veto:
    """See :func:`veto`."""

    policy: Policy[Any]
    refuses: Refuses

    def __post_init__(self) -> None:
        if not callable(self.refuses):
            raise ValueError(f"veto(refuses=...) must be callable, got {self.refuses!r}.")

    @property
    def name(self) -> str:
        """``veto(function, inner)``."""
        return f"veto({_title(self.refuses)}, {self.policy.name})"

    def init(self) -> HoldState:
        """Return the state before the first observation."""
        return HoldState(self.policy.init())

    def decide(self, observation: Observation, state: HoldState) -> tuple[Decision, HoldState]:
        """Return the inner decision; hold where it is refused. A function that raises refuses."""
        decision, inner = self.policy.decide(observation, state.inner)
        try:
            refused, why = bool(self.refuses(observation, decision)), "veto"
        except Exception:  # the user's function must not end the training
            refused, why = True, "veto:error"
        if refused:
            return state.hold(observation, self.name, why), replace(state, inner=inner)
        return replace(decision, policy=self.name), state.after(inner, decision)


def veto(policy: Policy[Any], refuses: Refuses) -> Veto:
    """Return ``policy`` whose decisions go through only where ``refuses(observation, decision)`` is false.

    What is refused leaves everything as it is: knobs, scales and rollbacks. For a person at the run, who has no
    function but an opinion, see :func:`lipadvisor.policies.attended`.

    Raises:
        ValueError: ``refuses`` cannot be called.
    """
    return Veto(member("veto", policy), refuses)


def _title(function: Refuses) -> str:
    return str(getattr(function, "__name__", type(function).__name__)).strip("<>") or "function"
