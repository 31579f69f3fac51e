"""Says when something happened to the run: the loss jumped, as it does where the labels or the data change."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipadvisor.policies.chain import NOTHING
from lipadvisor.policies.checks import require_above, require_at_least_one, require_non_negative
from lipadvisor.policies.contract import Decision, Observation
from lipadvisor.policies.quick_record import quick_record

__all__ = ["ShockNotice", "ShockNoticeState"]


@quick_record
@dataclass(frozen=True, slots=True)
class ShockNoticeState:
    """Memory of :class:`ShockNotice`, of the logarithm of the loss."""

    fast: float = 0.0  # smoothed over a few observations
    slow: float = 0.0  # smoothed over many
    variance: float = 0.0  # of one observation, from successive differences: no trend counts
    last: float = 0.0
    count: int = 0  # observations since the start, or since the last notice


@dataclass(frozen=True, slots=True)
class ShockNotice:
    """Adds ``shock:loss`` to the reason of one decision; the knobs are left alone.

    A shock is a few observations in a row that lie, in the mean of their logarithms, above what the loss was before by
    ``jump`` and by ``deviations`` standard deviations of such a mean. The parts before this one react by themselves,
    since they measure; this one is for the person who wants to know. A learning rate written from outside is not its
    business: whoever applies the decisions sees that, and undoes it.

    Args:
        jump: factor by which the loss must have risen, > 1.
        deviations: standard deviations by which it must have risen, >= 0.
        few: observations that the present loss is smoothed over, >= 1.
        many: observations that the loss before is smoothed over, and that must have been seen before one is told.

    Raises:
        ValueError: an argument is out of its range.
    """

    jump: float = 1.5
    deviations: float = 4.0
    few: int = 3
    many: int = 20

    def __post_init__(self) -> None:
        require_above("ShockNotice", "jump", self.jump, 1.0)
        require_non_negative("ShockNotice", "deviations", self.deviations)
        require_at_least_one("ShockNotice", "few", self.few)
        require_at_least_one("ShockNotice", "many", self.many)

    @property
    def name(self) -> str:
        """Short name."""
        return "shock_notice"

    def init(self) -> ShockNoticeState:
        """Return the state before the first observation."""
        return ShockNoticeState()

    def refine(
        self, observation: Observation, decision: Decision, state: ShockNoticeState
    ) -> tuple[Decision, ShockNoticeState]:
        """Return the notice, if there is one."""
        fast, slow, variance, count = state.fast, state.slow, state.variance, state.count
        loss, part = observation.loss, NOTHING
        if loss is None or not 0.0 < loss < math.inf:
            return part, state
        level = math.log(loss)
        if count == 0:
            return part, ShockNoticeState(level, level, 0.0, level, 1)
        fast += (level - fast) / self.few
        if count >= self.many and fast - slow > self._threshold(variance):
            read = (("loss_jump", math.exp(fast - slow)),)
            part = Decision(observation.step, self.name, "shock:loss", read=read)
            return part, ShockNoticeState(fast, fast, 0.0, level, 1)
        square, share = 0.5 * (level - state.last) ** 2, 1.0 / min(count, self.many)
        if count >= self.many:  # a jump must not raise the bar that it is measured by
            square = min(square, 4.0 * variance)
        slow += (level - slow) / min(count + 1, self.many)
        return part, ShockNoticeState(
            fast, slow, variance + share * (square - variance), level, min(count + 1, self.many)
        )

    def _threshold(self, variance: float) -> float:
        """Return the rise of the mean of the last few, nats, from which on it is no chance."""
        mean_of_few = 1.0 / (2.0 * self.few - 1.0)  # variance of such a mean, relative to that of one observation
        return max(math.log(self.jump), self.deviations * math.sqrt(variance * mean_of_few))
