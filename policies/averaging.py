"""A running average of the weights, which the run ends with.

Late in a run the weights move to and fro about where they are going, by as much as the learning rate makes them; their
mean is nearer to it than any of them (Polyak and Juditsky 1992; Izmailov et al. 2018). Annealing does the same by
moving less and less, at the price of not getting on. With both, the rate need not fall to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from lipadvisor.policies.chain import NOTHING, PASS
from lipadvisor.policies.checks import require_fraction
from lipadvisor.policies.contract import Decision, Observation
from lipadvisor.policies.schedules import NoState

__all__ = ["Averaging"]


@dataclass(frozen=True, slots=True)
class Averaging:
    """Ends the run with the exponential average of its weights over the last ``memory`` of its steps.

    The average is asked for from five memories before the end on: what came before would hardly count. With an unknown
    horizon it is not: nobody would know when to put it in place.

    Args:
        memory: time constant of the average, share of the run, in [0, 1]; 0 for none: the weights are left as they are.

    Raises:
        ValueError: the memory is out of its range.
    """

    memory: float = 0.05

    def __post_init__(self) -> None:
        require_fraction("Averaging", "memory", self.memory)

    @property
    def name(self) -> str:
        """Short name."""
        return "averaging"

    def init(self) -> NoState:
        """Return the empty state."""
        return NoState()

    def refine(self, observation: Observation, decision: Decision, state: NoState) -> tuple[Decision, NoState]:
        """Return the memory of the average, in steps, towards the end of the run."""
        total = observation.total_steps
        begin = 1.0 - SPAN * self.memory  # share of the run
        if self.memory == 0.0 or total is None or total < 1 or observation.step < begin * total:
            return NOTHING, state
        ends = observation.step == total and not decision.rewind  # weights gone back to replace the average
        reason = "averaging:end" if ends else PASS
        return Decision(observation.step, self.name, reason, averaging=max(1.0, self.memory * total)), state


SPAN = 5.0  # memories that are averaged over: the oldest weights count for less than a hundredth
