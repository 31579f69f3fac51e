"""Baseline: the learning rate goes up while the loss falls, and down when it does not (after GreedyLR).

In the manner of GreedyLR (Subramanian et al. 2025): the sign of the loss's change alone steers. Here the loss is the
smoothed training loss, or the validation loss where one is reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lipadvisor.policies.checks import require_at_least_one, require_fraction, require_non_negative, require_positive
from lipadvisor.policies.contract import Decision, Observation
from lipadvisor.policies.schedules import same_knobs

__all__ = ["Greedy", "GreedyState"]


@dataclass(frozen=True, slots=True)
class GreedyState:
    """Memory of :class:`Greedy`. ``None``: not seen yet."""

    smooth_loss: float | None = None
    best_loss: float | None = None
    good: int = 0  # looks in a row that were better than the best
    bad: int = 0
    log_share: float = 0.0  # ln of the present rate over ``lr``
    looked_step: int = 0
    seen_step: int = -1
    validated_step: int = -1


@dataclass(frozen=True, slots=True)
class Greedy:
    """Divides the learning rate by ``factor`` after ``patience`` looks that improve, multiplies it after as many not.

    Args:
        lr: first learning rate, per step, > 0.
        weight_decay: decoupled, per unit of tau, >= 0.
        factor: of each cut, in (0, 1).
        patience: looks in a row that it takes, >= 1.
        look_every: steps from one look at the smoothed training loss to the next, >= 1.
        threshold: relative change that counts, in [0, 1].
        smoothing: time constant of the mean of the training loss, steps, >= 1.
        lowest_share: share of ``lr`` that it never falls below, in (0, 1].
        highest_share: share of ``lr`` that it never rises above, >= 1.

    Raises:
        ValueError: an argument is out of its range.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    factor: float = 0.9
    patience: int = 2
    look_every: int = 10
    threshold: float = 1e-3
    smoothing: int = 10
    lowest_share: float = 1e-3
    highest_share: float = 10.0

    def __post_init__(self) -> None:
        owner = "Greedy"
        for argument in ("lr", "factor", "lowest_share", "highest_share"):
            require_positive(owner, argument, getattr(self, argument))
        require_non_negative(owner, "weight_decay", self.weight_decay)
        for argument in ("patience", "look_every", "smoothing"):
            require_at_least_one(owner, argument, getattr(self, argument))
        require_fraction(owner, "threshold", self.threshold)
        require_fraction(owner, "lowest_share", self.lowest_share)
        if not self.factor < 1.0:
            raise ValueError(f"Greedy(factor=...) must be below 1, got {self.factor!r}.")
        if self.highest_share < 1.0:
            raise ValueError(f"Greedy(highest_share=...) must be at least 1, got {self.highest_share!r}.")

    @property
    def name(self) -> str:
        """Short name."""
        return "greedy"

    def init(self) -> GreedyState:
        """Return the state before the first observation."""
        return GreedyState()

    def decide(self, observation: Observation, state: GreedyState) -> tuple[Decision, GreedyState]:
        """Return learning rate and weight decay for every group."""
        state, loss = self._look(observation, state)
        reason = "greedy:wait"
        if loss is not None:
            state, reason = self._judge(loss, state)
        lr = self.lr * math.exp(state.log_share)
        read = (("share", math.exp(state.log_share)), ("good", float(state.good)), ("bad", float(state.bad)))
        knobs = same_knobs(observation, lr, self.weight_decay)
        return Decision(observation.step, self.name, reason, knobs, warmup_ended=True, read=read), state

    def _judge(self, loss: float, state: GreedyState) -> tuple[GreedyState, str]:
        best = state.best_loss
        if best is None:
            return replace(state, best_loss=loss), "greedy:wait"
        margin = self.threshold * abs(best)
        good = state.good + 1 if loss < best - margin else 0
        bad = state.bad + 1 if loss > best + margin else 0
        state = replace(state, best_loss=min(loss, best), good=good, bad=bad)
        move = (bad >= self.patience) - (good >= self.patience)
        if move == 0:
            return state, "greedy:wait"
        share = state.log_share + move * math.log(self.factor)
        share = min(max(share, math.log(self.lowest_share)), math.log(self.highest_share))
        # what counts as best starts over from here after a cut: one lucky look must not cut for ever
        after = replace(state, log_share=share, good=0, bad=0, best_loss=loss)
        return after, "greedy:cut" if move > 0 else "greedy:rise"

    def _look(self, observation: Observation, state: GreedyState) -> tuple[GreedyState, float | None]:
        """Return the state that has heard the losses, and the loss to judge by if it is time to look."""
        step, loss = observation.step, observation.loss
        at, validation = observation.validation_step, observation.validation_loss
        if at is not None and validation is not None and math.isfinite(validation):
            if at <= state.validated_step:
                return state, None
            first = state.validated_step < 0  # the two losses do not compare: start over
            best = None if first else state.best_loss
            return replace(state, validated_step=at, best_loss=best), validation
        if state.validated_step >= 0 or loss is None or not math.isfinite(loss) or step <= state.seen_step:
            return state, None
        kept = math.exp(-(step - max(state.seen_step, 0)) / self.smoothing)
        smooth = loss if state.smooth_loss is None else loss + kept * (state.smooth_loss - loss)
        state = replace(state, smooth_loss=smooth, seen_step=step)
        if step - state.looked_step < self.look_every:
            return state, None
        return replace(state, looked_step=step), smooth
