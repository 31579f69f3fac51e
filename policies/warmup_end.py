"""The end of the warmup, found where the learning rate has stopped rising."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lipadvisor.policies.chain import NOTHING, PASS
from lipadvisor.policies.checks import require_at_least_one, require_fraction
from lipadvisor.policies.contract import Decision, Observation
from lipadvisor.policies.quick_record import quick_record

__all__ = ["WarmupEnd", "WarmupEndState"]

OVER = replace(NOTHING, warmup_ended=True)  # all there is to add, once it is over


@quick_record
@dataclass(frozen=True, slots=True)
class WarmupEndState:
    """Memory of :class:`WarmupEnd`."""

    highest_lr: float = 0.0
    highest_step: int = 0
    ended: bool = False


@dataclass(frozen=True, slots=True)
class WarmupEnd:
    """Says that the warmup is over once the learning rate has not risen by ``tolerance`` for ``patience`` steps.

    Args:
        patience: steps, >= 1.
        tolerance: relative rise that counts, in [0, 1].

    Raises:
        ValueError: an argument is out of its range.
    """

    patience: int = 5
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        require_at_least_one("WarmupEnd", "patience", self.patience)
        require_fraction("WarmupEnd", "tolerance", self.tolerance)

    @property
    def name(self) -> str:
        """Short name."""
        return "warmup_end"

    def init(self) -> WarmupEndState:
        """Return the state before the first observation."""
        return WarmupEndState()

    def refine(
        self, observation: Observation, decision: Decision, state: WarmupEndState
    ) -> tuple[Decision, WarmupEndState]:
        """Return whether the warmup is over; knobs are left alone."""
        if state.ended:
            return OVER, state
        lr = max([k.lr for k in decision.knobs if k.lr is not None], default=0.0)
        if lr > state.highest_lr * (1.0 + self.tolerance):
            return NOTHING, WarmupEndState(lr, observation.step)
        ended = state.highest_lr > 0.0 and observation.step - state.highest_step >= self.patience
        reason = "warmup_end" if ended else PASS
        after = WarmupEndState(state.highest_lr, state.highest_step, ended)
        return Decision(observation.step, self.name, reason, warmup_ended=ended), after
