"""Initialization: rescue layers that start far outside a healthy scale, and leave every common default alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipadvisor.policies.chain import PASS
from lipadvisor.policies.checks import require_positive
from lipadvisor.policies.contract import Decision, Observation
from lipadvisor.policies.schedules import NoState

__all__ = ["Initialization"]


@dataclass(frozen=True, slots=True)
class Initialization:
    """Before step 0, rescales the weights whose gain ``rms(W) sqrt(fan_in)`` lies outside ``low`` to ``high``.

    The zone holds the usual defaults: PyTorch's Linear and Conv (0.577), Xavier (about 1), He (1.414).

    Args:
        low: gain below which a weight is brought to ``target``, > 0.
        high: gain above which it is, > ``low``.
        target: gain that a rescued weight gets, between the two.

    Raises:
        ValueError: an argument is out of its range.
    """

    low: float = 0.3
    high: float = 1.6
    target: float = 0.6

    def __post_init__(self) -> None:
        for argument in ("low", "high", "target"):
            require_positive("Initialization", argument, getattr(self, argument))
        if not self.low <= self.target <= self.high:
            raise ValueError(
                f"Initialization(target=...) must lie between low = {self.low!r} and high = {self.high!r}, "
                f"got {self.target!r}."
            )

    @property
    def name(self) -> str:
        """Short name."""
        return "initialization"

    def init(self) -> NoState:
        """Return the empty state."""
        return NoState()

    def decide(self, observation: Observation, state: NoState) -> tuple[Decision, NoState]:
        """Return the scale of each layer to rescue at step 0; nothing to add later."""
        return self.refine(observation, Decision(observation.step, self.name, PASS), state)

    def refine(self, observation: Observation, decision: Decision, state: NoState) -> tuple[Decision, NoState]:
        """Return the scale of each layer to rescue at step 0; nothing to add later."""
        if observation.step != 0:
            return Decision(observation.step, self.name, PASS), state
        scales, read = [], []
        for layer in observation.layers:
            log_gain = layer.log_gain
            if not math.isfinite(log_gain) or math.log(self.low) <= log_gain <= math.log(self.high):
                continue
            if abs(log_gain) > 100.0:  # all but zero, or overflowing: no factor makes that a healthy weight
                continue
            scales.append((layer.name, self.target / math.exp(log_gain)))
            read.append((f"gain[{layer.name}]", math.exp(log_gain)))
        return Decision(
            step=observation.step,
            policy=self.name,
            reason="init:rescue" if scales else PASS,
            init_scale=tuple(scales),
            read=tuple(read),
        ), state
