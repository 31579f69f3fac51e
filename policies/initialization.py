"""Initialization: bring the layers that start outside a healthy scale back into it, the head apart from the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipadvisor.policies.chain import NOTHING, PASS
from lipadvisor.policies.checks import require_positive
from lipadvisor.policies.contract import Decision, Observation
from lipadvisor.policies.schedules import NoState

__all__ = ["Initialization"]


@dataclass(frozen=True, slots=True)
class Initialization:
    """Before step 0, rescales the weights whose gain ``rms(W) sqrt(fan_in)`` lies outside a healthy zone.

    The last layer is taken for the head: a small one keeps the first outputs small, which helps. The layers before it
    must pass a signal on: PyTorch's default for Linear and Conv (0.577) loses more than half of it in every ReLU
    layer, and is lifted; Xavier (about 1) and He (1.414) are left alone.

    Args:
        low: gain below which a layer before the head is brought to ``target``, > 0.
        high: gain above which any layer is, >= ``target``.
        target: gain that such a layer gets, between the two.
        head_low: gain below which the head is brought to ``head_target``, > 0.
        head_target: gain that a rescued head gets, between ``head_low`` and ``high``.

    Raises:
        ValueError: an argument is out of its range.
    """

    low: float = 0.9
    high: float = 1.6
    target: float = 0.9
    head_low: float = 0.3
    head_target: float = 0.6

    def __post_init__(self) -> None:
        for argument in ("low", "high", "target", "head_low", "head_target"):
            require_positive("Initialization", argument, getattr(self, argument))
        for low, target in (("low", "target"), ("head_low", "head_target")):
            if not getattr(self, low) <= getattr(self, target) <= self.high:
                raise ValueError(
                    f"Initialization({target}=...) must lie between {low} = {getattr(self, low)!r} and "
                    f"high = {self.high!r}, got {getattr(self, target)!r}."
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
        nothing = Decision(observation.step, self.name, PASS)
        part, state = self.refine(observation, nothing, state)
        return nothing if part is NOTHING else part, state

    def refine(self, observation: Observation, decision: Decision, state: NoState) -> tuple[Decision, NoState]:
        """Return the scale of each layer to rescue at step 0; nothing to add later."""
        if observation.step != 0:
            return NOTHING, state
        scales, read = [], []
        last = len(observation.layers) - 1
        for index, layer in enumerate(observation.layers):
            log_gain = layer.log_gain
            low, target = (self.head_low, self.head_target) if index == last else (self.low, self.target)
            if not math.isfinite(log_gain) or math.log(low) <= log_gain <= math.log(self.high):
                continue
            if abs(log_gain) > 100.0:  # all but zero, or overflowing: no factor makes that a healthy weight
                continue
            scales.append((layer.name, target / math.exp(log_gain)))
            read.append((f"gain[{layer.name}]", math.exp(log_gain)))
        return Decision(
            step=observation.step,
            policy=self.name,
            reason="init:rescue" if scales else PASS,
            init_scale=tuple(scales),
            read=tuple(read),
        ), state
