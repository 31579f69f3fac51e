"""Decoupled weight decay with a given total over the run, following the annealing."""

from __future__ import annotations

from dataclasses import dataclass, field

from lipadvisor.policies.annealing import Annealing, AnnealingState
from lipadvisor.policies.chain import PASS
from lipadvisor.policies.checks import require_at_least_one, require_non_negative
from lipadvisor.policies.contract import Decision, Knobs, Observation
from lipadvisor.policies.schedules import NoState

__all__ = ["TotalDecay"]

NOT_STARTED = AnnealingState()
MOST_PER_STEP = 0.1  # a step never shrinks a weight by more than this share


@dataclass(frozen=True, slots=True)
class TotalDecay:
    """Shrinks the weights by ``total`` nats in all over the run, each step's share following the annealing.

    The decay per step, ``lr * weight_decay``, does not depend on the learning rate: what was decided for the learning
    rate is divided out. Where the horizon is unknown it is ``total / unknown_steps`` per step.

    Args:
        total: nats by which the weights are shrunk over the run, >= 0.
        per_step: nats per step that are never exceeded on average, >= 0: short runs are shrunk less.
        unknown_steps: run length that is assumed where none is known, >= 1.
        annealing: the factor over the run that is followed.

    Raises:
        ValueError: an argument is out of its range.
    """

    total: float = 0.6
    per_step: float = 0.002
    unknown_steps: int = 2000
    annealing: Annealing = field(default_factory=Annealing)

    def __post_init__(self) -> None:
        require_non_negative("TotalDecay", "total", self.total)
        require_non_negative("TotalDecay", "per_step", self.per_step)
        require_at_least_one("TotalDecay", "unknown_steps", self.unknown_steps)

    @property
    def name(self) -> str:
        """Short name."""
        return "total_decay"

    def init(self) -> NoState:
        """Return the empty state."""
        return NoState()

    def refine(self, observation: Observation, decision: Decision, state: NoState) -> tuple[Decision, NoState]:
        """Return the weight decay of each group whose learning rate is decided."""
        steps = observation.total_steps
        if steps is None:
            shrink = self.total / self.unknown_steps
        else:
            _, share = self.annealing.share(observation, NOT_STARTED)
            mean_share = 0.5 * (1.0 + self.annealing.start_fraction)
            shrink = min(self.total / max(steps, 1), self.per_step) * share / mean_share
        shrink = min(shrink, MOST_PER_STEP)
        knobs = tuple([Knobs(k.group, None, shrink / k.lr) for k in decision.knobs if k.lr is not None and k.lr > 0.0])
        read = (("decay_per_step", shrink),)
        return Decision(observation.step, self.name, PASS, knobs, (), (), False, False, False, read), state
