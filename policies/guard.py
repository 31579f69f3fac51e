"""The last line: a loss that is not finite goes back to the snapshot, with smaller steps from then on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from lipadvisor.policies.checks import require_at_least_one, require_fraction, require_positive
from lipadvisor.policies.contract import Decision, Knobs, Observation, Policy
from lipadvisor.policies.quick_record import quick_record

__all__ = ["Guard", "GuardState", "guard"]


@quick_record
@dataclass(frozen=True, slots=True)
class GuardState:
    """Memory of :class:`Guard`."""

    inner: Any
    scale: float = 1.0  # of the learning rate, after the rollbacks so far
    lr: tuple[tuple[int, float], ...] = ()  # last good learning rate of each group
    warmup_ended: bool = False
    cooldown_started: bool = False
    rollbacks: int = 0
    last_change: int = 0  # step of the last change of ``scale``


@dataclass(frozen=True, slots=True)
class Guard:
    """See :func:`guard`."""

    policy: Policy[Any]
    shrink: float = 1.0 / 3.0
    lowest: float = 1e-3
    title: str = ""
    regrow_steps: int | None = None

    def __post_init__(self) -> None:
        for argument in ("shrink", "lowest"):
            require_positive("guard", argument, getattr(self, argument))
            require_fraction("guard", argument, getattr(self, argument))
        if self.regrow_steps is not None:
            require_at_least_one("guard", "regrow_steps", self.regrow_steps)

    @property
    def name(self) -> str:
        """The title, or ``guard(inner)``."""
        return self.title or f"guard({self.policy.name})"

    def init(self) -> GuardState:
        """Return the state before the first observation."""
        return GuardState(self.policy.init())

    def decide(self, observation: Observation, state: GuardState) -> tuple[Decision, GuardState]:
        """Return the inner decision, its learning rate scaled; a rollback if the loss is not finite."""
        if observation.loss is not None and not math.isfinite(observation.loss):
            return self._rollback(observation, state)
        decision, inner = self.policy.decide(observation, state.inner)
        scale = state.scale
        change = state.last_change
        if scale < 1.0 and self._may_regrow(observation.step, state):
            scale, change = min(1.0, scale / self.shrink), observation.step
        if scale < 1.0:  # the decay per step, lr * weight_decay, stays
            knobs = tuple(
                Knobs(k.group, k.lr * scale, None if k.weight_decay is None else k.weight_decay / scale)
                if k.lr is not None
                else k
                for k in decision.knobs
            )
            decision = replace(decision, knobs=knobs, reason=f"{decision.reason}+guard:shrunk")
        lr = tuple([(k.group, k.lr) for k in decision.knobs if k.lr is not None])
        if len(lr) < len(state.lr):
            lr = tuple({**dict(state.lr), **dict(lr)}.items())
        after = GuardState(inner, scale, lr, decision.warmup_ended, decision.cooldown_started, state.rollbacks, change)
        return decision if decision.policy == self.name else replace(decision, policy=self.name), after

    def _rollback(self, observation: Observation, state: GuardState) -> tuple[Decision, GuardState]:
        scale = max(state.scale * self.shrink, self.lowest)
        last = dict(state.lr) or {
            k.group: k.lr for k in observation.knobs if k.lr is not None and 0.0 < k.lr < math.inf
        }
        change = scale / state.scale
        lr = tuple((group, value * change) for group, value in last.items())
        decision = Decision(
            step=observation.step,
            policy=self.name,
            reason="guard:non_finite",
            knobs=tuple(Knobs(group, value) for group, value in lr if value > 0.0),
            warmup_ended=state.warmup_ended,
            cooldown_started=state.cooldown_started,
            rollback=True,
            read=(("guard_scale", scale),),
        )
        after = replace(state, scale=scale, lr=lr, rollbacks=state.rollbacks + 1, last_change=observation.step)
        return decision, after

    def _may_regrow(self, step: int, state: GuardState) -> bool:
        """Return whether the last trouble is long enough ago; after each rollback it takes twice as long."""
        if self.regrow_steps is None:
            return False
        return step - state.last_change >= self.regrow_steps << min(max(state.rollbacks - 1, 0), 30)


def guard(
    policy: Policy[Any], *, shrink: float = 1.0 / 3.0, lowest: float = 1e-3, regrow_steps: int | None = None
) -> Guard:
    """Return ``policy`` with a rollback where the training loss is not finite.

    Args:
        policy: what to wrap.
        shrink: factor on the learning rate after each rollback, in (0, 1].
        lowest: factor that is not gone below, in (0, 1].
        regrow_steps: steps without trouble after which the factor grows back by one ``shrink``, >= 1, twice as many
            after each further rollback; by default it never does.

    Raises:
        ValueError: an argument is out of its range.
    """
    return Guard(policy, shrink, lowest, regrow_steps=regrow_steps)
