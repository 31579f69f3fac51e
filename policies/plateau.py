"""Baseline: cut the learning rate when the loss stops improving."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lipadvisor.policies.checks import require_at_least_one, require_fraction, require_non_negative, require_positive
from lipadvisor.policies.contract import Decision, Observation, hold
from lipadvisor.policies.schedules import same_knobs, warmup_share

__all__ = ["Plateau", "PlateauState"]


@dataclass(frozen=True, slots=True)
class PlateauState:
    """Memory of :class:`Plateau`. ``None``: not seen yet."""

    smooth_loss: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    last_step: int = -1
    last_validation_step: int = -1
    cuts: int = 0


@dataclass(frozen=True, slots=True)
class Plateau:
    """Multiplies the learning rate by ``gamma`` after ``patience`` steps without a better loss.

    The validation loss counts where one is reported, else the training loss smoothed over ``smoothing`` steps.

    Args:
        lr: peak learning rate, per step, > 0.
        weight_decay: decoupled, per unit of tau, >= 0.
        warmup_fraction: share of the run in which the learning rate rises linearly, in [0, 1]; needs a horizon.
        gamma: factor of each cut, in (0, 1].
        patience: steps, >= 1.
        threshold: relative improvement that counts, in [0, 1].
        smoothing: time constant of the mean of the training loss, steps, >= 1.
        lowest_fraction: share of ``lr`` below which it is not cut, in [0, 1].

    Raises:
        ValueError: an argument is out of its range.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup_fraction: float = 0.0
    gamma: float = 0.3
    patience: int = 50
    threshold: float = 0.01
    smoothing: int = 20
    lowest_fraction: float = 1e-3

    def __post_init__(self) -> None:
        require_positive("Plateau", "lr", self.lr)
        require_non_negative("Plateau", "weight_decay", self.weight_decay)
        require_fraction("Plateau", "warmup_fraction", self.warmup_fraction)
        require_positive("Plateau", "gamma", self.gamma)
        require_fraction("Plateau", "gamma", self.gamma)
        require_at_least_one("Plateau", "patience", self.patience)
        require_fraction("Plateau", "threshold", self.threshold)
        require_at_least_one("Plateau", "smoothing", self.smoothing)
        require_fraction("Plateau", "lowest_fraction", self.lowest_fraction)

    @property
    def name(self) -> str:
        """Short name."""
        return "plateau"

    def init(self) -> PlateauState:
        """Return the state before the first observation."""
        return PlateauState()

    def decide(self, observation: Observation, state: PlateauState) -> tuple[Decision, PlateauState]:
        """Return learning rate and weight decay for every group, for step ``observation.step``."""
        total = observation.total_steps
        if self.warmup_fraction > 0.0 and total is None:
            return hold(observation, self.name, "no_horizon"), state
        state, cut = self._listen(observation, state)
        warmup_steps = self.warmup_fraction * (total or 0)
        step = max(observation.step, 0)
        factor = max(self.gamma**state.cuts, self.lowest_fraction, 1e-12)
        decision = Decision(
            step=observation.step,
            policy=self.name,
            reason="plateau:cut" if cut else "plateau:wait",
            knobs=same_knobs(observation, self.lr * warmup_share(step, warmup_steps) * factor, self.weight_decay),
            warmup_ended=step + 1 >= warmup_steps,
            cooldown_started=state.cuts > 0,
            read=(("cuts", float(state.cuts)), ("steps_since_best", float(step - state.best_step))),
        )
        return decision, state

    def _listen(self, observation: Observation, state: PlateauState) -> tuple[PlateauState, bool]:
        loss, state = self._loss(observation, state)
        if loss is None:
            return state, False
        if state.best_loss is None or loss < state.best_loss - self.threshold * abs(state.best_loss):
            return replace(state, best_loss=loss, best_step=observation.step), False
        if observation.step - state.best_step < self.patience:
            return state, False
        return replace(
            state, best_loss=min(loss, state.best_loss), best_step=observation.step, cuts=state.cuts + 1
        ), True

    def _loss(self, observation: Observation, state: PlateauState) -> tuple[float | None, PlateauState]:
        """Return the loss to judge by, if there is a new one, and the state that has seen it."""
        validation_step = observation.validation_step
        if validation_step is not None and _usable(observation.validation_loss):
            if validation_step <= state.last_validation_step:
                return None, state
            first = state.last_validation_step < 0  # the two losses do not compare: start over
            return observation.validation_loss, replace(
                state, last_validation_step=validation_step, best_loss=None if first else state.best_loss
            )
        if state.last_validation_step >= 0 or not _usable(observation.loss) or observation.step <= state.last_step:
            return None, state
        loss, steps = float(observation.loss or 0.0), observation.step - max(state.last_step, 0)
        if state.smooth_loss is None:
            smooth = loss
        else:
            smooth = loss + math.exp(-max(steps, 1) / self.smoothing) * (state.smooth_loss - loss)
        return smooth, replace(state, smooth_loss=smooth, last_step=observation.step)


def _usable(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
