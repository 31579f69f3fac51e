"""Decoupled weight decay with a total over the run that depends on its length, following the annealing.

Where steps shrink as ``T^-0.5`` and add up as a random walk does, the norms' growth over the run is the same at any
length, and so is the total that balances it. Where the weights are an average over a given stretch of updates (Wang and
Aitchison 2024), the decay per step is the same at any length. Up to some thousand steps the first holds; in long runs,
which have learnt their training set and go on, the total rises with the square root of the length, half way to the
second.
"""

from __future__ import annotations

import math
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
    """Shrinks the weights by ``total`` nats in all over the run, more in long ones, following the annealing.

    The decay per step, ``lr * weight_decay``, does not depend on the learning rate: what was decided for the learning
    rate is divided out. Where the horizon is unknown it is that of a run of ``unknown_steps``.

    Args:
        total: nats by which the weights are shrunk over a run of up to ``long_steps``, >= 0.
        per_step: nats per step that are never exceeded on average, >= 0: short runs are shrunk less.
        long_steps: run length from which on the total rises with the square root of the length, >= 1.
        unknown_steps: run length that is assumed where none is known, >= 1.
        annealing: the factor over the run that is followed.

    Raises:
        ValueError: an argument is out of its range.
    """

    total: float = 0.6
    per_step: float = 0.002
    long_steps: int = 1000
    unknown_steps: int = 2000
    annealing: Annealing = field(default_factory=Annealing)

    def __post_init__(self) -> None:
        require_non_negative("TotalDecay", "total", self.total)
        require_non_negative("TotalDecay", "per_step", self.per_step)
        for argument in ("long_steps", "unknown_steps"):
            require_at_least_one("TotalDecay", argument, getattr(self, argument))

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
        length = max(self.unknown_steps if steps is None else steps, 1)
        longer = max(1.0, math.sqrt(length / self.long_steps))
        shrink = min(self.total * longer / length, self.per_step)
        if steps is not None:
            _, share = self.annealing.share(observation, NOT_STARTED)
            shrink *= share / (0.5 * (1.0 + self.annealing.start_fraction))
        shrink = min(shrink, MOST_PER_STEP)
        knobs = tuple([Knobs(k.group, None, shrink / k.lr) for k in decision.knobs if k.lr is not None and k.lr > 0.0])
        read = (("decay_per_step", shrink),)
        return Decision(observation.step, self.name, PASS, knobs, (), (), False, False, False, read), state
