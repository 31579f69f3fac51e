"""Schedules of the recorded runs: frozen, so that their repr names them."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Pieces", "Ramp", "WarmupCosine"]


@dataclass(frozen=True, slots=True)
class WarmupCosine:
    """Factor: up in a line over ``warmup`` steps, then a half cosine down to a hundredth at ``steps``."""

    warmup: int
    steps: int

    def __call__(self, step: int) -> float:
        """Return the factor of step number ``step``."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))


@dataclass(frozen=True, slots=True)
class Pieces:
    """A value that is constant between the steps at which it changes."""

    knots: tuple[tuple[int, float], ...]  # (from this step on, value), ascending, the first at 0

    def __call__(self, step: int) -> float:
        """Return the value at step number ``step``."""
        value = self.knots[0][1]
        for start, then in self.knots:
            if step >= start:
                value = then
        return value


@dataclass(frozen=True, slots=True)
class Ramp:
    """Factor 1 until ``start``, then times ``rate`` at every step."""

    start: int
    rate: float

    def __call__(self, step: int) -> float:
        """Return the factor of step number ``step``."""
        return float(self.rate ** max(0, step - self.start))
