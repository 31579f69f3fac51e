"""Decoupled weight decay with a total over the run that depends on its length, following the annealing.

Where steps shrink as ``T^-0.5`` and add up as a random walk does, the norms' growth over the run is the same at any
length, and so is the total that balances it. Where the weights are an average over a given stretch of updates (Wang and
Aitchison 2024), the decay per step is the same at any length. Up to some thousand steps the first holds; in long runs,
which have learnt their training set and go on, the total rises with the square root of the length, half way to the
second.

What decay is there for shows where validation losses are reported: the further validation lies above training, the
more of what has been learnt is learnt by heart, and the more decay pays; where there is no gap more of it costs. So the
decay rises with the square of the ratio, which closes a loop: decay holds the training loss up, and with it the ratio
down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lipadvisor.policies.annealing import Annealing, AnnealingState
from lipadvisor.policies.chain import PASS
from lipadvisor.policies.checks import (
    require_at_least_one,
    require_factor,
    require_non_negative,
    require_positive,
)
from lipadvisor.policies.contract import Decision, Knobs, Observation

__all__ = ["TotalDecay", "TotalDecayState"]

NOT_STARTED = AnnealingState()
MOST_PER_STEP = 0.1  # a step never shrinks a weight by more than this share


@dataclass(frozen=True, slots=True)
class TotalDecayState:
    """Memory of :class:`TotalDecay`."""

    loss_sum: float = 0.0  # of the training losses since the last validation
    losses: int = 0
    log_gap: float = 0.0  # ln of validation over training loss, smoothed
    validations: int = 0
    validated_step: int = -1  # of the last validation
    factor: float = 1.0  # on the decay
    signed: bool = False  # a loss below 0 was seen


@dataclass(frozen=True, slots=True)
class TotalDecay:
    """Shrinks the weights by ``total`` nats in all over the run, more in long ones, following the annealing.

    The decay per step, ``lr * weight_decay``, does not depend on the learning rate: what was decided for the learning
    rate is divided out. Where the horizon is unknown it is that of a run of ``unknown_steps``.

    Where validation losses are reported, each is compared with the mean of the training losses since the one before.
    With the ratio ``r``, smoothed over two of them, the decay is ``(r / gap)^2`` times as large, at least once and at
    most ``most_factor`` times. Of losses that can be below 0 (a log-density's) a ratio says nothing: from the first
    such on it is once.

    Args:
        total: nats by which the weights are shrunk over a run of up to ``long_steps``, >= 0.
        per_step: nats per step that are never exceeded on average, >= 0: short runs are shrunk less.
        long_steps: run length from which on the total rises with the square root of the length, >= 1.
        unknown_steps: run length that is assumed where none is known, >= 1.
        gap: ratio of the validation to the training loss from which on there is more decay, > 0.
        most_factor: times the decay that there is at most, in [1, 100]; 1 to be blind to validation.
        annealing: the factor over the run that is followed.

    Raises:
        ValueError: an argument is out of its range.
    """

    total: float = 0.6
    per_step: float = 0.002
    long_steps: int = 1000
    unknown_steps: int = 2000
    gap: float = 1.6
    most_factor: float = 4.0
    annealing: Annealing = field(default_factory=Annealing)

    def __post_init__(self) -> None:
        require_non_negative("TotalDecay", "total", self.total)
        require_non_negative("TotalDecay", "per_step", self.per_step)
        for argument in ("long_steps", "unknown_steps"):
            require_at_least_one("TotalDecay", argument, getattr(self, argument))
        require_positive("TotalDecay", "gap", self.gap)
        require_factor("TotalDecay", "most_factor", self.most_factor)

    @property
    def name(self) -> str:
        """Short name."""
        return "total_decay"

    def init(self) -> TotalDecayState:
        """Return the state before the first observation."""
        return TotalDecayState()

    def refine(
        self, observation: Observation, decision: Decision, state: TotalDecayState
    ) -> tuple[Decision, TotalDecayState]:
        """Return the weight decay of each group whose learning rate is decided."""
        state = self._listen(observation, state)
        steps = observation.total_steps
        length = max(self.unknown_steps if steps is None else steps, 1)
        longer = max(1.0, math.sqrt(length / self.long_steps))
        shrink = min(self.total * longer / length, self.per_step) * state.factor
        if steps is not None:
            _, share = self.annealing.share(observation, NOT_STARTED)
            shrink *= share / (0.5 * (1.0 + self.annealing.start_fraction))
        shrink = min(shrink, MOST_PER_STEP)
        knobs = tuple([Knobs(k.group, None, shrink / k.lr) for k in decision.knobs if k.lr is not None and k.lr > 0.0])
        read = (("decay_per_step", shrink),)
        return Decision(observation.step, self.name, PASS, knobs, (), (), False, False, False, read), state

    def _listen(self, observation: Observation, state: TotalDecayState) -> TotalDecayState:
        """Take up a training loss, and compare a new validation loss with those since the last one."""
        total, count, loss = state.loss_sum, state.losses, observation.loss
        if loss is not None and 0.0 < loss < math.inf:
            total, count = total + loss, count + 1
        validation, when = observation.validation_loss, observation.validation_step
        if state.signed or _below_zero(loss) or _below_zero(validation):
            return SIGNED
        log_gap, seen, validated, factor = state.log_gap, state.validations, state.validated_step, state.factor
        if validation is not None and when is not None and when > validated:
            validated = when
            if 0.0 < validation < math.inf and 0.0 < total < math.inf:
                fresh = math.log(validation) - math.log(total / count)
                log_gap, seen = (0.5 * (log_gap + fresh) if seen else fresh), seen + 1
                over = max(0.0, min(2.0 * (log_gap - math.log(self.gap)), math.log(self.most_factor)))
                factor = math.exp(over)
            total, count = 0.0, 0
        return TotalDecayState(total, count, log_gap, seen, validated, factor)


SIGNED = TotalDecayState(signed=True)  # nothing more is listened to


def _below_zero(loss: float | None) -> bool:
    return loss is not None and -math.inf < loss < 0.0
