"""Baseline: the user's schedule, cut where an update would be too large beside its weight, in spectral norm.

The rule of Qi et al. (2025): the relative spectral size ``lr s_1(U) / s_1(W)`` of no layer's update may exceed a
constant. It cures rates that are too large, and no others: that is what the default's own rate is compared with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lipadvisor.policies.chain import PASS, merge
from lipadvisor.policies.checks import require_positive
from lipadvisor.policies.contract import Decision, Knobs, Observation
from lipadvisor.policies.schedules import Cosine, NoState

__all__ = ["SpectralCap", "UpdateCap"]


@dataclass(frozen=True, slots=True)
class UpdateCap:
    """Cuts the learning rates of the decision so far to ``largest_step`` over the largest update ratio of a layer.

    One factor for all groups. The measurement is one step old when it is used.

    Args:
        largest_step: largest ``lr s_1(U) / s_1(W)`` of any layer, > 0.

    Raises:
        ValueError: ``largest_step`` is out of its range.
    """

    largest_step: float = 0.05

    def __post_init__(self) -> None:
        require_positive("UpdateCap", "largest_step", self.largest_step)

    @property
    def name(self) -> str:
        """Short name."""
        return "update_cap"

    def init(self) -> NoState:
        """Return the empty state."""
        return NoState()

    def refine(self, observation: Observation, decision: Decision, state: NoState) -> tuple[Decision, NoState]:
        """Return the learning rates of ``decision``, cut where an update would be too large."""
        ratios = [layer.update_ratio for layer in observation.layers if 0.0 < layer.update_ratio < math.inf]
        lr = max((k.lr for k in decision.knobs if k.lr is not None), default=0.0)
        size = lr * max(ratios, default=0.0)
        if not self.largest_step < size < math.inf:
            return Decision(observation.step, self.name, PASS, read=(("largest_update", size),)), state
        factor = self.largest_step / size
        knobs = tuple(Knobs(k.group, max(k.lr * factor, 1e-12)) for k in decision.knobs if k.lr is not None)
        return Decision(observation.step, self.name, "cap", knobs, read=(("largest_update", size),)), state


@dataclass(frozen=True, slots=True)
class SpectralCap(Cosine):
    """Cosine annealing under an :class:`UpdateCap`. For another schedule: ``chain(schedule, UpdateCap(...))``.

    Args:
        lr: peak learning rate, per step, > 0.
        weight_decay: decoupled, per unit of tau, >= 0.
        warmup_fraction: share of the run in which the learning rate rises linearly, in [0, 1].
        final_fraction: share of the peak at the end, in [0, 1].
        largest_step: largest ``lr s_1(U) / s_1(W)`` of any layer, > 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    largest_step: float = 0.05

    title: ClassVar[str] = "spectral_cap"

    def __post_init__(self) -> None:
        Cosine.__post_init__(self)
        require_positive("SpectralCap", "largest_step", self.largest_step)

    def decide(self, observation: Observation, state: NoState) -> tuple[Decision, NoState]:
        """Return the schedule's knobs, the learning rate cut where an update would be too large."""
        decision, state = Cosine.decide(self, observation, state)
        part, _ = UpdateCap(self.largest_step).refine(observation, decision, state)
        return merge(decision, part), state
