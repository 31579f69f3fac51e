"""Early annealing where the validation loss says that the network only learns its training set by heart."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lipadvisor.policies.chain import NOTHING
from lipadvisor.policies.checks import require_at_least_one, require_non_negative, require_positive
from lipadvisor.policies.contract import Decision, Knobs, Observation
from lipadvisor.policies.schedules import progress

__all__ = ["Overfitting", "OverfittingState"]


@dataclass(frozen=True, slots=True)
class OverfittingState:
    """Memory of :class:`Overfitting`."""

    best: float | None = None  # lowest validation loss
    seen_step: int = -1  # of the last validation
    train_loss: float | None = None  # smoothed
    risen: int = 0  # validations in a row that were above the lowest by more than the rise
    started_step: int | None = None


@dataclass(frozen=True, slots=True)
class Overfitting:
    """Anneals learning rate and weight decay once the validation loss rises while the training loss is far below it.

    Both must hold, and for ``patience`` validations in a row: a rise of the validation loss alone is also what a large
    learning rate looks like, or the noise of a small split, and that passes. Where no validation loss is reported,
    nothing is done.

    Args:
        rise: relative rise of the validation loss above its lowest that counts, >= 0.
        gap: ratio of the validation loss to the training loss that counts, > 0.
        patience: validations in a row that must say so, >= 1.
        length: share of the run, or of the steps taken where the horizon is unknown, in which the rate falls, > 0.
        smoothing: time constant of the mean of the training loss, steps, >= 1.

    Raises:
        ValueError: an argument is out of its range.
    """

    rise: float = 0.25
    gap: float = 1.5
    patience: int = 3
    length: float = 0.05
    smoothing: int = 20

    def __post_init__(self) -> None:
        require_non_negative("Overfitting", "rise", self.rise)
        require_positive("Overfitting", "gap", self.gap)
        require_at_least_one("Overfitting", "patience", self.patience)
        require_positive("Overfitting", "length", self.length)
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
        """Return the learning rates of ``decision``, annealed once overfitting was seen; the decay falls with them."""
        state = self._listen(observation, state)
        if state.started_step is None:
            return NOTHING, state
        total = observation.total_steps or state.started_step
        length = max(1.0, self.length * total)
        share = 0.5 * (
            1.0 + math.cos(math.pi * progress(observation.step, state.started_step, state.started_step + length))
        )
        share = max(share, 1e-4)
        knobs = tuple(Knobs(k.group, k.lr * share) for k in decision.knobs if k.lr is not None)
        return Decision(observation.step, self.name, "overfitting", knobs, cooldown_started=True), state

    def _listen(self, observation: Observation, state: OverfittingState) -> OverfittingState:
        loss, step = observation.loss, observation.step
        if state.started_step is not None:
            return state
        if loss is not None and math.isfinite(loss):
            before = state.train_loss
            mean = loss if before is None else before + (loss - before) / self.smoothing
            state = OverfittingState(state.best, state.seen_step, mean, state.risen)
        validation, at = observation.validation_loss, observation.validation_step
        if validation is None or at is None or at <= state.seen_step or not math.isfinite(validation):
            return state
        if state.best is None or validation < state.best:
            return replace(state, best=validation, seen_step=at, risen=0)
        risen = validation > state.best + self.rise * abs(state.best)
        apart = state.train_loss is not None and validation > self.gap * state.train_loss
        count = state.risen + 1 if risen and apart else 0
        return replace(state, seen_step=at, risen=count, started_step=step if count >= self.patience else None)
