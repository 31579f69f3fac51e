"""The default: learning rate, weight decay, warmup, cooldown and initialization from the Lipschitz continuity."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lipadvisor.policies.annealing import Annealing
from lipadvisor.policies.averaging import Averaging
from lipadvisor.policies.chain import Chain, chain
from lipadvisor.policies.checks import require_positive
from lipadvisor.policies.contract import Decision, Observation
from lipadvisor.policies.guard import Guard, GuardState
from lipadvisor.policies.initialization import Initialization
from lipadvisor.policies.lipschitz_budget import LipschitzBudget
from lipadvisor.policies.median_rate import MedianRate
from lipadvisor.policies.overfitting import Overfitting
from lipadvisor.policies.shock import ShockNotice
from lipadvisor.policies.spectral_rate import SpectralRate
from lipadvisor.policies.warmup_end import WarmupEnd
from lipadvisor.policies.weight_decay import TotalDecay

__all__ = ["Lipschitz"]


@dataclass(frozen=True, slots=True)
class Lipschitz:
    """Chains the parts, one set of constants for everything; needs no tuning.

    In order: rescue of the initialization, learning rate from the relative size of the update, annealing, Lipschitz
    budget, weight decay, the way back on overfitting, the average to end with, end of the warmup, notice of shocks;
    around them the guard.

    Args:
        relative_step: size of an update relative to the weights, spectral norms, root sum of squares over the layers,
            at full rate in a run of 400 steps, > 0. The median of three such measures sets the rate: to make the steps
            larger or smaller, see :meth:`scaled`.
        frobenius_step: the same in Frobenius norms, > 0.
        row_step: the same in largest norms of a row, > 0.
        horizon_power: the size falls with this power of the run's length, in [0, 1].
        budget: growth of the network's log-norm, nats per matrix above a healthy start, > 0.
        decay_total: nats over any run, >= 0: over a run of ``T`` steps weight decay shrinks each matrix by the
            geometric mean of this and ``T decay_per_step``, 0.7 nats in 400 steps.
        decay_per_step: nats per step, >= 0.
        decay_gap: ratio of a reported validation loss to the training loss without which there is no more decay, in
            [1, 100].
        decay_growth: factor on the decay for each validation that is not the lowest so far, in [1, 100].
        decay_most: factor on the decay that is never exceeded, in [1, 100].
        decay_left_power: power of what is left of the first validation loss by which the decay is smaller while
            validation lies less than ``decay_gap`` above training, in [0, 1].
        head_decay: nats that the last layer loses at each of twenty validations above ``decay_gap``, while nothing has
            been learnt, >= 0.
        cooldown_start: share of the run after which the learning rate is annealed, in [0, 1].
        cooldown_end: share of the learning rate that is left at the end, in [0, 1]: the average does the rest; where
            none is kept, no smaller share would be better.
        lookahead: share of the run that the budget looks ahead, in (0, 1].
        deviations: standard deviations of the growth that the budget counts, >= 0.
        rise: largest factor by which the learning rate rises per step, > 1.
        settling: share of the run after which the rate no longer rises in full where the updates shrink, in (0, 1].
        later_power: power of the shrinkage by which it rises from then on, in [0, 1].
        memory: time constant of the mean of the update's relative size, share of the run, > 0.
        overfitting_rise: rise of a reported validation loss above its lowest, over the geometric mean of the lowest and
            the first, from which on the weights go back to those that validated best, and on in smaller steps, >= 0.
        overfitting_gap: ratio of validation to training loss without which it does not, > 0.
        low_gain: initial gain below which a layer before the head is rescaled to just that, > 0; PyTorch's default is
            0.577. In a plain chain of more than two such layers that gain is higher, see
            :class:`~lipadvisor.policies.Initialization`.
        high_gain: initial gain above which any layer is, > 0.
        healthy_gain: gain that the budget takes as a healthy start, in [low_gain, high_gain]: what the rescue leaves
            alone, or makes, cannot be ill.
        release: factor on the room for each validation that is the best so far, in [1, 100].
        averaging: memory of the average of the weights that the run ends with, share of the run, in [0, 1]; 0 for
            none.
        loss_room: how much more room the budget has while the training loss stands at its first value, >= 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    relative_step: float = 0.12
    frobenius_step: float = 0.088
    row_step: float = 0.114
    horizon_power: float = 0.5
    budget: float = 0.3
    decay_total: float = 0.6
    decay_per_step: float = 0.002
    decay_gap: float = 1.25
    decay_growth: float = 3.0
    decay_most: float = 16.0
    decay_left_power: float = 0.25
    head_decay: float = 0.1
    cooldown_start: float = 0.0
    cooldown_end: float = 0.04
    lookahead: float = 0.1
    deviations: float = 2.0
    rise: float = 4.0
    settling: float = 0.2
    later_power: float = 0.7
    memory: float = 0.09
    overfitting_rise: float = 0.1
    overfitting_gap: float = 1.25
    low_gain: float = 0.9
    high_gain: float = 1.6
    healthy_gain: float = 1.2
    loss_room: float = 3.0
    release: float = 1.2
    averaging: float = 0.05
    _line: Guard = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_line", Guard(self.line(), title=self.name))
        if not self.low_gain <= self.healthy_gain <= self.high_gain:
            raise ValueError(
                f"Lipschitz(healthy_gain=...) must be in [low_gain, high_gain] = [{self.low_gain!r}, "
                f"{self.high_gain!r}], got {self.healthy_gain!r}."
            )

    @property
    def name(self) -> str:
        """Short name."""
        return "lipschitz"

    def line(self) -> Chain:
        """Return the chain of parts with these constants, without the guard."""
        annealing = Annealing(self.cooldown_start, self.cooldown_end)
        return chain(
            MedianRate(
                SpectralRate(
                    self.relative_step,
                    horizon_power=self.horizon_power,
                    rise=self.rise,
                    memory=self.memory,
                    settling=self.settling,
                    later_power=self.later_power,
                ),
                self.frobenius_step,
                self.row_step,
            ),
            Initialization(self.low_gain, self.high_gain),
            annealing,
            LipschitzBudget(
                budget=self.budget,
                lookahead=self.lookahead,
                deviations=self.deviations,
                healthy_gain=self.healthy_gain,
                loss_room=self.loss_room,
                release=self.release,
            ),
            TotalDecay(
                total=self.decay_total,
                per_step=self.decay_per_step,
                gap=self.decay_gap,
                growth=self.decay_growth,
                most_factor=self.decay_most,
                left_power=self.decay_left_power,
                head=self.head_decay,
                annealing=annealing,
            ),
            Overfitting(rise=self.overfitting_rise, gap=self.overfitting_gap),
            Averaging(self.averaging),
            WarmupEnd(),
            ShockNotice(),
            name=self.name,
        )

    def scaled(self, factor: float) -> Lipschitz:
        """Return the policy whose steps are ``factor`` times as large: all three measures' wanted sizes.

        Raises:
            ValueError: ``factor`` is not positive.
        """
        require_positive("Lipschitz.scaled", "factor", factor)
        return replace(
            self,
            relative_step=self.relative_step * factor,
            frobenius_step=self.frobenius_step * factor,
            row_step=self.row_step * factor,
        )

    def init(self) -> GuardState:
        """Return the state before the first observation."""
        return self._line.init()

    def decide(self, observation: Observation, state: GuardState) -> tuple[Decision, GuardState]:
        """Return the decision for step ``observation.step``."""
        return self._line.decide(observation, state)
