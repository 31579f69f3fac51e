"""Back, and smaller steps, where the validation loss says that the network only learns its training set by heart."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipadvisor.policies.chain import NOTHING
from lipadvisor.policies.checks import (
    require_at_least_one,
    require_fraction,
    require_non_negative,
    require_positive,
)
from lipadvisor.policies.contract import Decision, Knobs, Observation

__all__ = ["Overfitting", "OverfittingState"]


@dataclass(frozen=True, slots=True)
class OverfittingState:
    """Memory of :class:`Overfitting`."""

    best: float | None = None  # lowest validation loss
    seen_step: int = -1  # of the last validation
    best_train_loss: float | None = None  # the training loss then
    train_loss: float | None = None  # smoothed
    train_step: int = 0  # of the last training loss
    worse: int = 0  # validations in a row that were not better
    factor: float = 1.0  # on the learning rate


@dataclass(frozen=True, slots=True)
class Overfitting:
    """Makes the steps smaller, for good, whenever validation gets worse while training is far ahead of it.

    Both must hold, for ``patience`` validations in a row: a validation loss that rises is also what a large learning
    rate looks like, or the noise of a small split, and that passes. What was learnt by heart in the meantime is undone:
    the decision asks for the weights that validated best. It is early stopping that goes on from there, more slowly.
    Where no validation loss is reported, nothing is done. The weight decay per step falls with the rate.

    Args:
        rise: relative rise of the validation loss above its lowest that counts, >= 0.
        gap: ratio of the validation to the training loss from which on training is far ahead, > 0.
        patience: validations in a row that must say so, >= 1.
        shrink: factor on the learning rate each time, in (0, 1].
        lowest: factor that is not gone below, in (0, 1].
        smoothing: time constant of the mean of the training loss, steps, >= 1.

    Raises:
        ValueError: an argument is out of its range.
    """

    rise: float = 0.2
    gap: float = 1.25
    patience: int = 2
    shrink: float = 0.25
    lowest: float = 1e-3
    smoothing: int = 20

    def __post_init__(self) -> None:
        require_non_negative("Overfitting", "rise", self.rise)
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
        if state.factor >= 1.0:
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
        best, best_train, seen = state.best, state.best_train_loss, state.seen_step
        worse, factor, rewind = state.worse, state.factor, False
        validation, when = observation.validation_loss, observation.validation_step
        if validation is not None and when is not None and when > seen and math.isfinite(validation):
            seen = when
            if best is None or validation < best:
                best, best_train, worse = validation, train, 0
            elif train is not None and validation > max(self.gap * train, best + self.rise * abs(best)):
                worse += 1
            else:
                worse = 0
            if worse >= self.patience:
                factor, worse, rewind, train = max(self.lowest, factor * self.shrink), 0, True, best_train
        return OverfittingState(best, seen, best_train, train, at, worse, factor), rewind

    def _follow(self, observation: Observation, state: OverfittingState) -> tuple[float | None, int]:
        """Return the smoothed training loss and its step."""
        loss, step, train = observation.loss, observation.step, state.train_loss
        if loss is None or not math.isfinite(loss) or step <= state.train_step:
            return train, state.train_step
        if train is None:
            return loss, step
        return train + (1.0 - math.exp((state.train_step - step) / self.smoothing)) * (loss - train), step
