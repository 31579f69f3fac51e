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
    must pass a signal on: PyTorch's default for Linear and Conv (0.577) is lifted; Xavier (about 1) and He (1.414) lie
    within the zone of a shallow network.

    In a plain chain, where each layer takes what the one before gives, the losses multiply: a ReLU behind a gain ``g``
    leaves ``g / sqrt(2)`` of a signal (He et al. 2015, section 2.2), ``n`` of them ``(g / sqrt(2))^n``. With a gain of
    0.9 that is 0.4 behind two layers and 0.03 behind eight, where the biases drown what the input says. So there the
    smallest gain rises with the depth, such that any chain leaves what two layers of the gain ``low`` do. Where paths
    meet (residual branches, attention, gates, mixers) a signal passes by other ways, branches add up instead, and more
    than ``low`` costs: which it is, the observation before step 0 says (``network.kind``).

    Args:
        low: smallest gain of a layer before the head where there are two or less, or no plain chain, > 0: what is below
            the smallest is brought to it.
        high: gain above which any layer is brought down to the smallest, >= ``low``.
        head_low: gain below which the head is brought to ``head_target``, > 0.
        head_target: gain that a rescued head gets, between ``head_low`` and ``high``.

    Raises:
        ValueError: an argument is out of its range.
    """

    low: float = 0.9
    high: float = 1.6
    head_low: float = 0.3
    head_target: float = 0.6

    def __post_init__(self) -> None:
        for argument in ("low", "high", "head_low", "head_target"):
            require_positive("Initialization", argument, getattr(self, argument))
        for smallest, argument, value in (("low", "high", self.high), ("head_low", "head_target", self.head_target)):
            if not value >= getattr(self, smallest):
                raise ValueError(
                    f"Initialization({argument}=...) must be at least {smallest} = {getattr(self, smallest)!r}, "
                    f"got {value!r}."
                )
        if not self.head_target <= self.high:
            raise ValueError(
                f"Initialization(head_target=...) must be at most high = {self.high!r}, got {self.head_target!r}."
            )

    @property
    def name(self) -> str:
        """Short name."""
        return "initialization"

    def lowest(self, layers: int) -> float:
        """Return the smallest gain that each of ``layers`` before the head of a plain chain may have."""
        if self.low >= HE or layers < 2:
            return self.low
        deep: float = HE * (self.low / HE) ** (2.0 / layers)
        return min(deep, self.high)

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
        lowest = self.lowest(chained(observation))
        for index, layer in enumerate(observation.layers):
            log_gain = layer.log_gain
            low, target = (self.head_low, self.head_target) if index == last else (lowest, lowest)
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


HE = math.sqrt(2.0)  # gain at which a ReLU network passes a signal on as it is


def chained(observation: Observation) -> int:
    """Return how many layers stand before the head of a plain chain; 1 where the network is not known to be one."""
    if observation.network.kind != "chain":
        return 1
    return sum(layer.composition_weight != 0.0 for layer in observation.layers) - 1
