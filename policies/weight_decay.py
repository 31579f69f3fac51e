"""Decoupled weight decay with a total over the run that rises with the root of its length, following the annealing.

Where steps shrink as ``T^-0.5`` and add up as a random walk does, the norms' growth over the run is the same at any
length, and so is the total that balances it. Where the weights are an average over a given stretch of updates (Wang and
Aitchison 2024), the decay per step is the same at any length. The geometric mean of the two lies between them at any
length, and each of its two constants counts by its root.

What decay is there for shows where validation losses are reported: once validation stands still, or rises, above the
training loss, what is learnt is learnt by heart, and more decay pays, from early on; while each validation is the best
so far more of it costs. So the decay grows with every validation that is not, and falls back with every one that is;
and while validation follows the training loss down to little, the decay goes down with it, by a small power.

The last layer's size says how sure the outputs are, and is the quickest way to a smaller training loss once the rest
fits: logits grow, and each mistake on new data costs more (Guo et al. 2017 shrink them after the training). Decay of
all weights cannot answer that alone; it would unlearn the rest. So the last layer is made smaller while there is a gap,
by as much as validation is still far from solved: where hardly anything is left of the loss, sureness is right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from lipadvisor.policies.annealing import Annealing, AnnealingState
from lipadvisor.policies.chain import PASS
from lipadvisor.policies.checks import (
    require_at_least_one,
    require_factor,
    require_fraction,
    require_non_negative,
)
from lipadvisor.policies.contract import Decision, Knobs, Observation
from lipadvisor.policies.quick_record import quick_record

__all__ = ["TotalDecay", "TotalDecayState"]

NOT_STARTED = AnnealingState()
MOST_PER_STEP = 0.1  # a step never shrinks a weight by more than this share


@quick_record
@dataclass(frozen=True, slots=True)
class Validated:
    """What the validation losses of a run have said so far."""

    log_gap: float = 0.0  # ln of validation over training loss, smoothed
    count: int = 0
    step: int = -1  # of the last one
    first: float = 0.0  # or the training loss at the start, if that is larger
    best: float = math.inf  # lowest
    stalls: float = 0.0  # those that were not the lowest so far, less those that were
    factor: float = 1.0  # on the decay
    head: float = 0.0  # nats that the last layer loses now


@quick_record
@dataclass(frozen=True, slots=True)
class TotalDecayState:
    """Memory of :class:`TotalDecay`."""

    loss_sum: float = 0.0  # of the training losses since the last validation
    losses: int = 0
    validated: Validated = Validated()
    signed: bool = False  # a loss below 0 was seen
    first_loss: float | None = None  # mean training loss of the first steps, where validation begins after them


@dataclass(frozen=True, slots=True)
class TotalDecay:
    """Shrinks the weights by the geometric mean of ``total`` and ``per_step`` a step, following the annealing.

    The decay per step, ``lr * weight_decay``, does not depend on the learning rate: what was decided for the learning
    rate is divided out. Where the horizon is unknown it is that of a run of ``unknown_steps``.

    Where validation losses are reported, each that is not the lowest so far makes the decay ``growth`` times as
    large, up to ``most_factor`` times, provided that it lies a factor of ``gap`` above the mean of the training
    losses since the one before (the ratio is smoothed over two of them). Each that is the lowest takes one such
    factor back, down to none. While it does not lie that far above, the decay is the smaller by what is left of the
    first validation loss in the lowest, to the power ``left_power``. What stands still counts by the share of the
    first validation loss that is left in the lowest: where little is left, a few rows that cost much make it
    fluctuate without meaning anything. The last layer loses ``head`` nats at each validation that lies that far
    above, times the share of the first one that is left. Of more than twenty validations in a run, each counts by
    its share of that. Of losses that can be below 0 (a log-density's) no ratio says anything: from the first such
    on the decay is as without validation.
    Where the first validation comes later than at ``late_step``, most may have been learnt by then: the mean training
    loss of as many steps as that stands for it, if it is larger.

    Args:
        total: nats over any run, >= 0: one of the two whose geometric mean the weights are shrunk by over the run.
        per_step: nats per step, >= 0: the other, once it is multiplied by the number of steps.
        late_step: step after which a first validation comes late, >= 1.
        unknown_steps: run length that is assumed where none is known, >= 1.
        gap: ratio of the validation to the training loss without which there is no more decay, in [1, 100].
        growth: factor on the decay for each validation that is not the lowest so far, in [1, 100]; 1 for
            no more decay.
        most_factor: times the decay that there is at most, in [1, 100].
        left_power: power of the share of the first validation loss that is left by which the decay is smaller while
            there is no such gap, in [0, 1].
        head: nats that the last layer loses at each of twenty validations while nothing has been learnt, >= 0;
            0 for none.
        annealing: the factor over the run that is followed.

    Raises:
        ValueError: an argument is out of its range.
    """

    total: float = 0.6
    per_step: float = 0.002
    late_step: int = 50
    unknown_steps: int = 2000
    gap: float = 1.25
    growth: float = 3.0
    most_factor: float = 16.0
    left_power: float = 0.25
    head: float = 0.1
    annealing: Annealing = field(default_factory=Annealing)

    def __post_init__(self) -> None:
        require_non_negative("TotalDecay", "total", self.total)
        require_non_negative("TotalDecay", "per_step", self.per_step)
        require_non_negative("TotalDecay", "head", self.head)
        require_fraction("TotalDecay", "left_power", self.left_power)
        for argument in ("late_step", "unknown_steps"):
            require_at_least_one("TotalDecay", argument, getattr(self, argument))
        for argument in ("gap", "growth", "most_factor"):
            require_factor("TotalDecay", argument, getattr(self, argument))

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
        """Return the weight decay of each group whose learning rate is decided, and the factor of the last layer."""
        known = state.validated
        state = self._listen(observation, state)
        validated = state.validated
        steps = observation.total_steps
        length = max(self.unknown_steps if steps is None else steps, 1)
        shrink = math.sqrt(self.total * self.per_step / length) * validated.factor * self._left(validated)
        if steps is not None:
            _, share = self.annealing.share(observation, NOT_STARTED)
            shrink *= share / (0.5 * (1.0 + self.annealing.start_fraction))
        shrink = min(shrink, MOST_PER_STEP)
        knobs = tuple([Knobs(k.group, None, shrink / k.lr) for k in decision.knobs if k.lr is not None and k.lr > 0.0])
        read = (("decay_per_step", shrink),)
        scale = () if validated is known or not validated.head else self._head_scale(observation, validated.head)
        return Decision(observation.step, self.name, PASS, knobs, (), scale, False, False, False, read), state

    def _left(self, validated: Validated) -> float:
        """Return the factor on the decay while there is no gap: little is left to learn, and it is not by heart."""
        if not validated.count or validated.log_gap > math.log(self.gap) or validated.best >= validated.first:
            return 1.0
        left: float = (validated.best / validated.first) ** self.left_power
        return left

    def _head_scale(self, observation: Observation, nats: float) -> tuple[tuple[str, float], ...]:
        """Return the last layer's factor; after the last step nothing is changed any more."""
        heads = [layer.name for layer in observation.layers if layer.composition_weight != 0.0 and layer.group >= 0]
        return ((heads[-1], math.exp(-nats)),) if heads and observation.step != observation.total_steps else ()

    def _listen(self, observation: Observation, state: TotalDecayState) -> TotalDecayState:
        """Take up a training loss, and compare a new validation loss with those since the last one."""
        total, count, loss = state.loss_sum, state.losses, observation.loss
        if loss is not None and 0.0 < loss < math.inf:
            total, count = total + loss, count + 1
        validation, when = observation.validation_loss, observation.validation_step
        if state.signed or _below_zero(loss) or _below_zero(validation):
            return SIGNED
        known, first = state.validated, state.first_loss
        if first is None and count and known.count == 0 and observation.step > self.late_step:
            first = total / count
        if validation is None or when is None or when <= known.step:
            return TotalDecayState(total, count, known, False, first)
        if not (0.0 < validation < math.inf and 0.0 < total < math.inf):
            return TotalDecayState(validated=replace(known, step=when, head=0.0), first_loss=first)
        log_gap = math.log(validation) - math.log(total / count)
        if known.count:
            return TotalDecayState(validated=self._compare(observation, validation, when, log_gap, known))
        largest = validation if first is None else max(validation, first)
        return TotalDecayState(validated=Validated(log_gap, 1, when, largest, validation))

    def _compare(
        self, observation: Observation, validation: float, when: int, fresh: float, known: Validated
    ) -> Validated:
        """Count a validation loss as the lowest so far, as one that is not, or as neither."""
        log_gap = 0.5 * (known.log_gap + fresh)
        length = self.unknown_steps if observation.total_steps is None else max(observation.total_steps, 1)
        share = min(1.0, (when - known.step) * VALIDATIONS / length)
        stalls, ahead = known.stalls, log_gap > math.log(self.gap)
        if validation < known.best:
            stalls = max(0.0, stalls - share)
        elif ahead and self.growth > 1.0:
            stalls = min(stalls + share * known.best / known.first, math.log(self.most_factor) / math.log(self.growth))
        factor = math.exp(stalls * math.log(self.growth))
        head = self.head * share * min(1.0, validation / known.first) if ahead else 0.0
        best = min(known.best, validation)
        return Validated(log_gap, known.count + 1, when, known.first, best, stalls, factor, head)


VALIDATIONS = 20  # in a run: where there are more, each counts by its share
SIGNED = TotalDecayState(signed=True)  # nothing more is listened to


def _below_zero(loss: float | None) -> bool:
    return loss is not None and -math.inf < loss < 0.0
