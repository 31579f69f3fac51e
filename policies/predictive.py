"""The default's line with a planned budget in place of the reactive one, for decisions that are far apart."""

from __future__ import annotations

from dataclasses import dataclass, field

from lipadvisor.policies.annealing import Annealing
from lipadvisor.policies.chain import Chain, chain
from lipadvisor.policies.contract import Decision, Observation
from lipadvisor.policies.forecast_budget import ForecastBudget
from lipadvisor.policies.guard import Guard, GuardState
from lipadvisor.policies.initialization import Initialization
from lipadvisor.policies.overfitting import Overfitting
from lipadvisor.policies.spectral_rate import SpectralRate
from lipadvisor.policies.warmup_end import WarmupEnd
from lipadvisor.policies.weight_decay import TotalDecay

__all__ = ["Predictive"]


@dataclass(frozen=True, slots=True)
class Predictive:
    """:class:`~lipadvisor.policies.Lipschitz` with its constants, its budget held by forecast over the interval.

    Args:
        interval: steps from one decision to the next, >= 1.
        relative_step: see :class:`~lipadvisor.policies.Lipschitz`.
        budget: nats per matrix above a healthy start, > 0.
        deviations: standard deviations of the forecast that must fit into the budget, >= 0.
        decay_total: nats by which weight decay shrinks each matrix over the run, >= 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    interval: int = 100
    relative_step: float = 0.12
    budget: float = 0.35
    deviations: float = 2.0
    decay_total: float = 0.6
    _line: Guard = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_line", Guard(self.line(), title=self.name))

    @property
    def name(self) -> str:
        """Short name."""
        return "predictive"

    def line(self) -> Chain:
        """Return the chain of parts with these constants, without the guard."""
        annealing = Annealing()
        return chain(
            SpectralRate(self.relative_step, later_power=1.0),
            Initialization(),
            annealing,
            ForecastBudget(self.interval, self.budget, deviations=self.deviations),
            TotalDecay(total=self.decay_total, annealing=annealing),
            Overfitting(),
            WarmupEnd(),
            name=self.name,
        )

    def init(self) -> GuardState:
        """Return the state before the first observation."""
        return self._line.init()

    def decide(self, observation: Observation, state: GuardState) -> tuple[Decision, GuardState]:
        """Return the decision for step ``observation.step``."""
        return self._line.decide(observation, state)
