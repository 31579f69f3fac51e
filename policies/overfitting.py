"""Smaller steps where the validation loss says that the network only learns its training set by heart."""

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
    train_loss: float | None = None  # smoothed
    train_step: int = 0  # of the last training loss
    worse: int = 0  # validations in a row that were not better
    factor: float = 1.0  # on the learning rate


@dataclass(frozen=True, slots=True)
class Overfitting:
    """Halves the learning rate, for good, whenever validation does not get better while training is far ahead of it.

    Both must hold, for ``patience`` validations in a row: a validation loss that does not fall is also what a large
    learning rate looks like, or the noise of a small split, and that passes. Where no validation loss is reported,
    nothing is done. The weight decay per step falls with the rate.

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

    rise: float = 0.0
    gap: float = 1.25
    patience: int = 2
    shrink: float = 0.5
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
        state = self._listen(observation, state)
        if state.factor >= 1.0:
            return NOTHING, state
        knobs = tuple([Knobs(k.group, k.lr * state.factor) for k in decision.knobs if k.lr is not None])
        read = (("overfitting_factor", state.factor),)
        return Decision(observation.step, self.name, "overfitting", knobs, cooldown_started=True, read=read), state

    def _listen(self, observation: Observation, state: OverfittingState) -> OverfittingState:
        """Follow the training loss, and compare a new validation loss with it and with the lowest one."""
        loss, step = observation.loss, observation.step
        train, at = state.train_loss, state.train_step
        if loss is not None and math.isfinite(loss) and step > at:
            train = loss if train is None else train + (1.0 - math.exp((at - step) / self.smoothing)) * (loss - train)
            at = step
        best, seen, worse, factor = state.best, state.seen_step, state.worse, state.factor
        validation, when = observation.validation_loss, observation.validation_step
        if validation is not None and when is not None and when > seen and math.isfinite(validation):
            seen = when
            if best is None or validation < best:
                best, worse = validation, 0
            elif train is not None and validation > max(self.gap * train, best + self.rise * abs(best)):
                worse += 1
            else:
                worse = 0
            if worse >= self.patience:
                factor, worse = max(self.lowest, factor * self.shrink), 0
        return OverfittingState(best, seen, train, at, worse, factor)
