"""Cooldown: the factor that takes the learning rate from its full size to almost nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lipadvisor.policies.chain import PASS
from lipadvisor.policies.checks import require_at_least_one, require_fraction, require_positive
from lipadvisor.policies.contract import Decision, Knobs, Observation
from lipadvisor.policies.quick_record import quick_record
from lipadvisor.policies.schedules import progress

__all__ = ["Annealing", "AnnealingState"]


@quick_record
@dataclass(frozen=True, slots=True)
class AnnealingState:
    """Memory of :class:`Annealing`, used where the horizon is unknown. ``None``: not yet."""

    smooth_loss: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    seen_step: int = 0  # of the last loss that was used
    started_step: int | None = None


@dataclass(frozen=True, slots=True)
class Annealing:
    """Multiplies the learning rate by half a cosine, from ``start_fraction`` of the run to its end.

    With an unknown horizon the factor is 1 until the loss, smoothed over ``smoothing`` steps, has not improved by
    ``threshold`` for ``patience`` of the steps taken (at least ``least_steps``); from there it falls to
    ``final_fraction`` within ``length`` of the steps taken so far.

    Args:
        start_fraction: share of the run after which the cooldown starts, in [0, 1].
        final_fraction: factor at the end, in [0, 1].
        patience: share of the steps taken without improvement that starts the cooldown, in [0, 1].
        least_steps: steps without improvement that it takes at least, >= 1.
        length: length of such a cooldown, as a share of the steps taken when it starts, > 0.
        threshold: relative improvement of the loss that counts, in [0, 1].
        smoothing: time constant of the mean of the loss, steps, >= 1.

    Raises:
        ValueError: an argument is out of its range.
    """

    start_fraction: float = 0.0
    final_fraction: float = 0.001
    patience: float = 0.2
    least_steps: int = 50
    length: float = 0.3
    threshold: float = 0.01
    smoothing: int = 20

    def __post_init__(self) -> None:
        for argument in ("start_fraction", "final_fraction", "patience", "threshold"):
            require_fraction("Annealing", argument, getattr(self, argument))
        require_positive("Annealing", "length", self.length)
        require_at_least_one("Annealing", "least_steps", self.least_steps)
        require_at_least_one("Annealing", "smoothing", self.smoothing)

    @property
    def name(self) -> str:
        """Short name."""
        return "annealing"

    def init(self) -> AnnealingState:
        """Return the state before the first observation."""
        return AnnealingState()

    def refine(
        self, observation: Observation, decision: Decision, state: AnnealingState
    ) -> tuple[Decision, AnnealingState]:
        """Return the learning rates of ``decision``, multiplied by the factor of this step."""
        if observation.total_steps is None:
            state = self._listen(observation, state)
        started, share = self.share(observation, state)
        wanted = decision.knobs if share < 1.0 else ()
        knobs = tuple([Knobs(k.group, k.lr * share) for k in wanted if k.lr is not None])
        reason = "cooldown" if started else PASS
        read = (("s", share),)
        return Decision(observation.step, self.name, reason, knobs, (), (), False, started, False, read), state

    def share(self, observation: Observation, state: AnnealingState) -> tuple[bool, float]:
        """Return whether the cooldown has started, and the factor, in (0, 1]."""
        total = observation.total_steps
        if total is not None:
            start, end = self.start_fraction * total, float(total)
        elif state.started_step is not None:
            start, end = float(state.started_step), state.started_step * (1.0 + self.length)
        else:
            return False, 1.0
        wave = 0.5 * (1.0 + math.cos(math.pi * progress(observation.step, start, end)))
        share = self.final_fraction + (1.0 - self.final_fraction) * wave
        return observation.step >= start and share < 1.0, max(share, 1e-6)

    def _listen(self, observation: Observation, state: AnnealingState) -> AnnealingState:
        """Follow the loss, where there is no horizon to go by."""
        loss, step = observation.loss, observation.step
        if state.started_step is not None or loss is None or not math.isfinite(loss) or step <= state.seen_step:
            return state
        if state.smooth_loss is None or state.best_loss is None:
            return replace(state, smooth_loss=loss, best_loss=loss, best_step=step, seen_step=step)
        smooth = loss + math.exp((state.seen_step - step) / self.smoothing) * (state.smooth_loss - loss)
        best = state.best_loss
        state = replace(state, smooth_loss=smooth, seen_step=step)
        if smooth < best - self.threshold * abs(best):
            return replace(state, best_loss=smooth, best_step=step)
        if step - state.best_step >= max(self.least_steps, self.patience * step):
            return replace(state, started_step=step)
        return state
