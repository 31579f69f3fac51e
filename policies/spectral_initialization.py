"""Spectral initialization: every matrix starts with an operator norm that its shape alone prescribes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lipadvisor.policies.checks import require_positive
from lipadvisor.policies.contract import Observation
from lipadvisor.policies.initial_scale import Factors, InitialScale

__all__ = ["SpectralInitialization"]

CLOSE = 1e-3  # nats: a norm measured so near to the wanted one is left alone
LARGEST = 100.0  # nats: all but zero, or overflowing; no factor makes that a healthy weight


@dataclass(frozen=True, slots=True)
class SpectralInitialization(InitialScale):
    """Before step 0, gives every weight the operator norm ``target * sqrt(fan_out / fan_in)``.

    Then inputs and outputs of a typical size per entry go with each other, and updates that are in proportion to the
    norms move all layers alike. What is measured beside the network's sum (tables, gains) is left alone.

    The norm is the one that is measured. For a convolution measured as the true operator it lies between that of its
    reshaped kernel and ``sqrt(taps)`` times as much, so that the kernel ends up smaller than under
    ``conv_view="matrix"``.

    Args:
        target: common spectral scale, > 0.

    Raises:
        ValueError: ``target`` is out of its range.

    References:
        Yang, Simon, Bernstein: A spectral condition for feature learning, arXiv 2310.17813, condition 1.
    """

    target: float = 1.0

    title: ClassVar[str] = "spectral_initialization"
    reason: ClassVar[str] = "init:spectral"

    def __post_init__(self) -> None:
        require_positive("SpectralInitialization", "target", self.target)

    def wanted(self, fan_out: int, fan_in: int) -> float:
        """Return the operator norm of a matrix (fan_out, fan_in)."""
        return self.target * math.sqrt(fan_out / fan_in)

    def factors_for(self, observation: Observation) -> Factors:
        """Return the factor from each norm to the wanted one, those at 1 left out."""
        found = []
        for layer in observation.layers:
            if layer.composition_weight == 0.0 or len(layer.shape) != 2 or min(layer.shape) < 1:
                continue
            log_factor = math.log(self.wanted(*layer.shape)) - layer.log_norm
            if CLOSE < abs(log_factor) < LARGEST:  # false for nan
                found.append((layer.name, math.exp(log_factor)))
        return tuple(found)
