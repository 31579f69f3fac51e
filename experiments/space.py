"""Search spaces as plain data, so that arms name them without knowing who searches."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Range"]


@dataclass(frozen=True, slots=True)
class Range:
    """One searched parameter and where its search starts."""

    name: str
    low: float
    high: float
    default: float  # the first configuration tried takes it
    log: bool = False

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            ValueError: ``low < high`` does not hold, ``default`` is outside, or ``log`` with ``low <= 0``.
        """
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"Range({self.name!r}): low < high must hold, got {self.low} and {self.high}.")
        if not self.low <= self.default <= self.high:
            raise ValueError(
                f"Range({self.name!r}, default=...) must be in [{self.low}, {self.high}], got {self.default}."
            )
        if self.log and self.low <= 0:
            raise ValueError(f"Range({self.name!r}, low=...) must be > 0 on a logarithmic scale, got {self.low}.")
