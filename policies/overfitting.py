"""Back, and smaller steps, where the validation loss says that the network only learns its training set by heart."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lipadvisor.policies.chain import NOTHING
from lipadvisor.policies.checks import (
    require_at_least_one,
    require_fraction,
    require_non_negative,
    require_positive,
)
from lipadvisor.policies.contract import Decision, Knobs, Observation
from lipadvisor.policies.quick_record import quick_record

__all__ = ["Overfitting", "OverfittingState"]

_LARGEST = 1e300  # variance that is told from others


@quick_record
@dataclass(frozen=True, slots=True)
class OverfittingState:
    """Memory of :class:`Overfitting`."""

    first: float | None = None  # first validation loss
    best: float | None = None  # lowest validation loss
    seen_step: int = -1  # of the last validation
    best_train_loss: float | None = None  # the training loss then
    train_loss: float | None = None  # smoothed
    train_step: int = 0  # of the last training loss
    last: float | None = None  # validation loss before this one; None after a way back, too
    before_last: float | None = None
    variance: float = 0.0  # of a validation loss about its trend, smoothed
    worse: int = 0  # validations in a row that were not better
    factor: float = 1.0  # on the learning rate


@dataclass(frozen=True, slots=True)
class Overfitting:
    """Goes back, and on in smaller steps for good, whenever validation gets worse while training gets ahead of it.

    Both must hold, for ``patience`` validations in a row: a validation loss that rises is also what a large learning
    rate looks like, and that passes. What was learnt by heart in the meantime is undone: the decision asks for the
    weights that validated best. It is early stopping that goes on from there, more slowly. At the end of the run the
    last validation loss alone decides: where it is that much above the lowest, the run ends with the best weights.
    Where no validation loss is reported, nothing is done. The weight decay per step falls with the rate.

    What counts as a rise is more than noise, in two ways. A small mean loss is made by a few rows that cost much, so
    that its sampling error goes as the root of the loss, as a count's does: the rise is measured in units of the
    geometric mean of the lowest and the first loss. And it must stand out from the fluctuation under large steps, which
    the second differences of the validation losses tell from a trend.

    Args:
        rise: of the validation loss above its lowest, over the geometric mean of the lowest and the first one, that
            counts, >= 0.
        deviations: standard deviations of the validation loss about its trend that the rise must be worth too, >= 0.
        gap: ratio of the validation to the training loss from which on training is far ahead, > 0.
        patience: validations in a row that must say so, >= 1.
        shrink: factor on the learning rate each time, in (0, 1].
        lowest: factor that is not gone below, in (0, 1].
        smoothing: time constant of the mean of the training loss, steps, >= 1.

    Raises:
        ValueError: an argument is out of its range.
    """

    rise: float = 0.1
    deviations: float = 2.0
    gap: float = 1.25
    patience: int = 2
    shrink: float = 0.1
    lowest: float = 1e-3
    smoothing: int = 20

    def __post_init__(self) -> None:
        for argument in ("rise", "deviations"):
            require_non_negative("Overfitting", argument, getattr(self, argument))
        for argument in ("gap", "shrink", "lowest"):
            require_positive("Overfitting", argument, getattr(self, argument))
        for argument in ("shrink", "lowest"):
            require_fraction("Overfitting", argument, getattr(self, argument))
        require_at_least_one("Overfitting", "patience", self.patience)
        require_at_least_one("Overfitting", "smoothing", self.smoothing)

    @property
    def name(self) -> str:
        """Short name."""
        return "overfitting"

    def init(self) -> OverfittingState:
        """Return the state before the first observation."""
        return OverfittingState()

    def refine(
        self, observation: Observation, decision: Decision, state: OverfittingState
    ) -> tuple[Decision, OverfittingState]:
        """Return the learning rates of ``decision``, as much smaller as overfitting was seen."""
        state, rewind = self._listen(observation, state)
        if state.factor >= 1.0 and not rewind:
            return NOTHING, state
        knobs = tuple([Knobs(k.group, k.lr * state.factor) for k in decision.knobs if k.lr is not None])
        reason = "overfitting:rewind" if rewind else "overfitting"
        read = (("overfitting_factor", state.factor),)
        return Decision(
            observation.step, self.name, reason, knobs, cooldown_started=True, read=read, rewind=rewind
        ), state

    def _listen(self, observation: Observation, state: OverfittingState) -> tuple[OverfittingState, bool]:
        """Follow the training loss, compare a new validation loss with it and with the lowest; whether to go back."""
        train, at = self._follow(observation, state)
        state = OverfittingState(  # built outright: this runs at every decision, and replace costs twice as much
            state.first, state.best, state.seen_step, state.best_train_loss, train, at, state.last, state.before_last,
            state.variance, state.worse, state.factor,
        )  # fmt: skip
        loss, when = observation.validation_loss, observation.validation_step
        if loss is None or when is None or when <= state.seen_step or not math.isfinite(loss):
            return state, False
        state = _learn_noise(replace(state, seen_step=when), loss)
        if state.first is None or state.best is None:
            return replace(state, first=loss, best=loss, best_train_loss=train), False
        if loss < state.best:
            return replace(state, best=loss, best_train_loss=train, worse=0), False
        sampling, wobble = math.sqrt(abs(state.best * state.first)), math.sqrt(state.variance)
        risen = loss > state.best + max(self.rise * sampling, self.deviations * wobble)
        if when == observation.total_steps:  # nothing comes after it
            return state, risen
        if not risen or train is None or loss <= self.gap * train:
            return replace(state, worse=0), False
        if state.worse + 1 < self.patience:
            return replace(state, worse=state.worse + 1), False
        factor, train = max(self.lowest, state.factor * self.shrink), state.best_train_loss
        return replace(state, factor=factor, worse=0, train_loss=train, last=None, before_last=None), True

    def _follow(self, observation: Observation, state: OverfittingState) -> tuple[float | None, int]:
        """Return the smoothed training loss and its step."""
        loss, step, train = observation.loss, observation.step, state.train_loss
        if loss is None or not math.isfinite(loss) or step <= state.train_step:
            return train, state.train_step
        if train is None:
            return loss, step
        return train + (1.0 - math.exp((state.train_step - step) / self.smoothing)) * (loss - train), step


def _learn_noise(state: OverfittingState, loss: float) -> OverfittingState:
    """Take up a validation loss: of independent errors, a second difference has six times the variance of one."""
    variance = state.variance
    if state.last is not None and state.before_last is not None:
        second = loss - 2.0 * state.last + state.before_last
        fresh = min(second * second / 6.0, _LARGEST)
        variance = fresh if variance == 0.0 else 0.5 * (variance + fresh)
    return replace(state, last=loss, before_last=state.last, variance=variance)
