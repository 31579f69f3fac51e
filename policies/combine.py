"""Combinators: each wraps any policy and is one itself, so that no policy needs an option for what all can have.

    clamp(policy, lr=(low, high))         keep knobs in a range
    rate_limit(policy, rise=2.0)          limit how fast the learning rate may move, per step
    every(policy, 10)                     decide at most every so many steps
    hold_when(policy, Status.UNSTABLE)    leave everything alone while the observation has such a status
    cooldown(policy, 50)                  after a change, no other change for so many steps
    shadow(policy)                        only say what would be done
    pin(policy, lr=1e-3)                  the user's own value for a knob, whatever the policy wants

``chain`` lives in :mod:`lipadvisor.policies.chain`. A wrapper's state holds the state of what it wraps. The phases
``warmup_ended`` and ``cooldown_started`` stay true once they are, also in decisions that hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from lipadvisor.policies.chain import Chain, chain
from lipadvisor.policies.checks import (
    require_above,
    require_at_least_one,
    require_non_negative,
    require_positive,
    require_tuple,
    told,
)
from lipadvisor.policies.contract import Decision, Knobs, Observation, Policy, Status, hold
from lipadvisor.policies.members import member

__all__ = ["Chain", "chain", "clamp", "cooldown", "every", "hold_when", "pin", "rate_limit", "shadow"]

AnyPolicy = Policy[Any]
Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Held:
    """Memory of a wrapper that sometimes holds: the inner state and what the last decision of the inner said."""

    inner: Any
    last_step: int | None = None  # of the last inner decision (``every``) or the last change (``cooldown``)
    warmup_ended: bool = False
    cooldown_started: bool = False
    knobs: tuple[Knobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Clamp:
    """See :func:`clamp`."""

    policy: AnyPolicy
    lr: Range | None
    weight_decay: Range | None

    def __post_init__(self) -> None:
        for argument, limits in (("lr", self.lr), ("weight_decay", self.weight_decay)):
            if limits is None:
                continue
            ends = require_tuple("clamp", argument, limits)
            for limit in ends:
                require_non_negative("clamp", argument, limit)
            if len(ends) != 2 or ends[0] > ends[1]:
                raise ValueError(f"clamp({argument}=...) must be (low, high) with low <= high, got {told(limits)}.")
        if self.lr is not None:
            require_positive("clamp", "lr", self.lr[1])

    @property
    def name(self) -> str:
        """``clamp(inner)``."""
        return f"clamp({self.policy.name})"

    def init(self) -> Any:
        """Return the inner policy's first state."""
        return self.policy.init()

    def decide(self, observation: Observation, state: Any) -> tuple[Decision, Any]:
        """Return the inner decision with its knobs in range."""
        decision, state = self.policy.decide(observation, state)
        knobs = tuple(with_lr(k, _within(k.lr, self.lr)) for k in decision.knobs)
        knobs = tuple(replace(k, weight_decay=_within(k.weight_decay, self.weight_decay)) for k in knobs)
        knobs = bearable(observation, knobs)
        return _changed(decision, self.name, "clamp", knobs), state


def clamp(policy: AnyPolicy, *, lr: Range | None = None, weight_decay: Range | None = None) -> Clamp:
    """Return ``policy`` with its learning rate and weight decay kept in ``(low, high)``.

    A decay that would take more than a tenth of a weight in a step takes that tenth.

    Raises:
        ValueError: a range is negative or its ends are in the wrong order.
    """
    return Clamp(member("clamp", policy), lr, weight_decay)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """See :func:`rate_limit`."""

    policy: AnyPolicy
    rise: float
    fall: float

    def __post_init__(self) -> None:
        for argument, value in (("rise", self.rise), ("fall", self.fall)):
            if value != math.inf:  # no limit
                require_above("rate_limit", argument, value, 1.0)

    @property
    def name(self) -> str:
        """``rate_limit(inner)``."""
        return f"rate_limit({self.policy.name})"

    def init(self) -> Held:
        """Return the state before the first observation."""
        return Held(self.policy.init())

    def decide(self, observation: Observation, state: Held) -> tuple[Decision, Held]:
        """Return the inner decision with its learning rates near those of the last one."""
        decision, inner = self.policy.decide(observation, state.inner)
        steps = 1 if state.last_step is None else max(1, observation.step - state.last_step)
        earlier = {k.group: k.lr for k in state.knobs}
        knobs = tuple(with_lr(k, self._near(k.lr, earlier.get(k.group), steps)) for k in decision.knobs)
        decision = _changed(decision, self.name, "rate_limit", knobs)
        kept = {**{k.group: k for k in state.knobs}, **{k.group: k for k in knobs if k.lr is not None}}
        return decision, Held(inner, observation.step, knobs=tuple(kept.values()))

    def _near(self, lr: float | None, last: float | None, steps: int) -> float | None:
        if lr is None or last is None:
            return lr
        # in logs: a factor to the power of many steps overflows
        highest = math.log(last) + steps * math.log(self.rise)
        lowest = math.log(last) - steps * math.log(self.fall)
        wanted = math.log(lr)
        return lr if lowest <= wanted <= highest else math.exp(min(max(wanted, lowest), highest))


def rate_limit(policy: AnyPolicy, *, rise: float = 2.0, fall: float = math.inf) -> RateLimit:
    """Return ``policy`` whose learning rate is multiplied or divided by at most so much per step.

    Args:
        policy: what to wrap.
        rise: largest factor upwards per step, > 1.
        fall: largest factor downwards per step, > 1; by default it may fall at once.

    Raises:
        ValueError: a factor is not above 1.
    """
    return RateLimit(member("rate_limit", policy), rise, fall)


@dataclass(frozen=True, slots=True)
class Every:
    """See :func:`every`."""

    policy: AnyPolicy
    steps: int

    def __post_init__(self) -> None:
        require_at_least_one("every", "steps", self.steps)

    @property
    def name(self) -> str:
        """``every(steps, inner)``."""
        return f"every({self.steps}, {self.policy.name})"

    def init(self) -> Held:
        """Return the state before the first observation."""
        return Held(self.policy.init())

    def decide(self, observation: Observation, state: Held) -> tuple[Decision, Held]:
        """Return the inner decision if it is due, else hold."""
        if state.last_step is not None and 0 <= observation.step - state.last_step < self.steps:
            return _held(observation, self.name, "every", state), state
        decision, inner = self.policy.decide(observation, state.inner)
        return replace(decision, policy=self.name), _remember(inner, observation.step, decision)


def every(policy: AnyPolicy, steps: int) -> Every:
    """Return ``policy`` asked at most once in ``steps`` steps.

    Raises:
        ValueError: ``steps`` is below 1.
    """
    return Every(member("every", policy), steps)


@dataclass(frozen=True, slots=True)
class HoldWhen:
    """See :func:`hold_when`."""

    policy: AnyPolicy
    statuses: tuple[Status, ...]

    def __post_init__(self) -> None:
        if not require_tuple("hold_when", "statuses", self.statuses):
            raise ValueError("hold_when(statuses=...) must name at least one status, got none.")
        for status in self.statuses:
            if not isinstance(status, Status):
                raise ValueError(f"hold_when(statuses=...) must be of class Status, got {status!r}.")

    @property
    def name(self) -> str:
        """``hold_when(status|..., inner)``."""
        return f"hold_when({'|'.join(self.statuses)}, {self.policy.name})"

    def init(self) -> Held:
        """Return the state before the first observation."""
        return Held(self.policy.init())

    def decide(self, observation: Observation, state: Held) -> tuple[Decision, Held]:
        """Return the inner decision, or hold if the observation has one of the statuses."""
        if observation.status in self.statuses:
            return _held(observation, self.name, str(observation.status.value), state), state
        decision, inner = self.policy.decide(observation, state.inner)
        return replace(decision, policy=self.name), _remember(inner, observation.step, decision)


def hold_when(policy: AnyPolicy, *statuses: Status) -> HoldWhen:
    """Return ``policy`` that is not asked, and changes nothing, while the observation has one of ``statuses``.

    Raises:
        ValueError: no status is given, or something else than a status.
    """
    return HoldWhen(member("hold_when", policy), statuses)


@dataclass(frozen=True, slots=True)
class Cooldown:
    """See :func:`cooldown`."""

    policy: AnyPolicy
    steps: int

    def __post_init__(self) -> None:
        require_at_least_one("cooldown", "steps", self.steps)

    @property
    def name(self) -> str:
        """``cooldown(steps, inner)``."""
        return f"cooldown({self.steps}, {self.policy.name})"

    def init(self) -> Held:
        """Return the state before the first observation."""
        return Held(self.policy.init())

    def decide(self, observation: Observation, state: Held) -> tuple[Decision, Held]:
        """Return the inner decision; hold instead if it would change knobs too soon after the last change."""
        decision, inner = self.policy.decide(observation, state.inner)
        seen = _remember(inner, state.last_step, decision, state.knobs)
        if not decision.knobs or decision.knobs == state.knobs:
            return replace(decision, policy=self.name), seen
        recent = state.last_step is not None and 0 <= observation.step - state.last_step < self.steps
        if recent and not (decision.rollback or decision.rewind):
            return _held(observation, self.name, "cooldown", seen), seen
        return replace(decision, policy=self.name), replace(seen, last_step=observation.step, knobs=decision.knobs)


def cooldown(policy: AnyPolicy, steps: int) -> Cooldown:
    """Return ``policy`` that changes knobs at most once in ``steps`` steps; a rollback and a rewind never wait.

    Raises:
        ValueError: ``steps`` is below 1.
    """
    return Cooldown(member("cooldown", policy), steps)


@dataclass(frozen=True, slots=True)
class Shadow:
    """See :func:`shadow`."""

    policy: AnyPolicy

    @property
    def name(self) -> str:
        """``shadow(inner)``."""
        return f"shadow({self.policy.name})"

    def init(self) -> Any:
        """Return the inner policy's first state."""
        return self.policy.init()

    def decide(self, observation: Observation, state: Any) -> tuple[Decision, Any]:
        """Return a decision that changes nothing; what the inner one would set is in ``read``."""
        wish, state = self.policy.decide(observation, state)
        proposed = [(f"lr[{k.group}]", k.lr) for k in wish.knobs if k.lr is not None]
        proposed += [(f"weight_decay[{k.group}]", k.weight_decay) for k in wish.knobs if k.weight_decay is not None]
        decision = Decision(
            step=wish.step,
            policy=self.name,
            reason=f"shadow:{wish.reason}",
            warmup_ended=wish.warmup_ended,
            cooldown_started=wish.cooldown_started,
            read=wish.read + tuple(proposed),
        )
        return decision, state


def shadow(policy: AnyPolicy) -> Shadow:
    """Return ``policy`` made harmless: it reads, decides and records, and nothing is applied."""
    return Shadow(member("shadow", policy))


@dataclass(frozen=True, slots=True)
class Pin:
    """See :func:`pin`."""

    policy: AnyPolicy
    lr: float | None
    weight_decay: float | None

    def __post_init__(self) -> None:
        if self.lr is not None:
            require_positive("pin", "lr", self.lr)
        if self.weight_decay is not None:
            require_non_negative("pin", "weight_decay", self.weight_decay)

    @property
    def name(self) -> str:
        """``pin(inner)``."""
        return f"pin({self.policy.name})"

    def init(self) -> Any:
        """Return the inner policy's first state."""
        return self.policy.init()

    def decide(self, observation: Observation, state: Any) -> tuple[Decision, Any]:
        """Return the inner decision with the pinned knobs in every group."""
        decision, state = self.policy.decide(observation, state)
        if self.lr is None and self.weight_decay is None:
            return replace(decision, policy=self.name), state
        wanted = [decision.knobs_for(present.group) for present in observation.knobs]
        if self.lr is not None:
            wanted = [with_lr(k, self.lr) for k in wanted]
        if self.weight_decay is not None:
            wanted = [replace(k, weight_decay=self.weight_decay) for k in wanted]
        knobs = bearable(observation, wanted)
        return replace(decision, policy=self.name, reason=f"{decision.reason}+pin", knobs=knobs, source="pinned"), state


def pin(policy: AnyPolicy, *, lr: float | None = None, weight_decay: float | None = None) -> Pin:
    """Return ``policy`` with the user's own learning rate or weight decay in every group.

    A decay that would take more than a tenth of a weight in a step takes that tenth.

    Raises:
        ValueError: ``lr`` is not above zero, or ``weight_decay`` is negative.
    """
    return Pin(member("pin", policy), lr, weight_decay)


def _within(value: float | None, limits: Range | None) -> float | None:
    return value if value is None or limits is None else min(max(value, limits[0]), limits[1])


def with_lr(knobs: Knobs, lr: float | None) -> Knobs:
    """Return ``knobs`` with another learning rate; where it is higher, the decay per step stays what was decided."""
    if lr is None or knobs.lr is None or knobs.weight_decay is None or lr <= knobs.lr:
        return replace(knobs, lr=lr)
    return Knobs(knobs.group, lr, knobs.weight_decay * (knobs.lr / lr))


MOST_PER_STEP = 0.1  # share of a weight that a step's decay takes at most, whatever is pinned


def bearable(observation: Observation, wanted: Iterable[Knobs]) -> tuple[Knobs, ...]:
    """Return knobs with the decay limited so that a step takes no more of a weight than it can bear.

    Args:
        observation: tells the learning rate in force, where none is wanted.
        wanted: knobs.
    """
    in_force = {k.group: k.lr for k in observation.knobs}
    knobs = []
    for k in wanted:
        lr = in_force.get(k.group) if k.lr is None else k.lr
        if k.weight_decay is not None and lr is not None and math.isfinite(lr) and lr * k.weight_decay > MOST_PER_STEP:
            k = replace(k, weight_decay=MOST_PER_STEP / lr)
        knobs.append(k)
    return tuple(knobs)


def _changed(decision: Decision, name: str, reason: str, knobs: tuple[Knobs, ...]) -> Decision:
    if knobs == decision.knobs:
        return replace(decision, policy=name)
    return replace(decision, policy=name, reason=f"{decision.reason}+{reason}", knobs=knobs)


def _held(observation: Observation, name: str, reason: str, state: Held) -> Decision:
    held = hold(observation, name, reason)
    return replace(held, warmup_ended=state.warmup_ended, cooldown_started=state.cooldown_started)


def _remember(inner: Any, step: int | None, decision: Decision, knobs: tuple[Knobs, ...] = ()) -> Held:
    return Held(inner, step, decision.warmup_ended, decision.cooldown_started, knobs)
