"""What is known about the Lipschitz constant of one module."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

__all__ = ["Constant", "Kind"]


class Kind(enum.StrEnum):
    """Which side of the true constant a number stands on."""

    EXACT = "exact"  # the supremum itself; attained, or approached as closely as one likes
    UPPER = "upper"  # never below the supremum
    LOWER = "lower"  # never above it
    LOCAL = "local"  # the Jacobian's norm on the given batch (or a bound of it there); says nothing elsewhere


@dataclass(frozen=True, slots=True)
class Constant:
    """A Lipschitz constant in the Euclidean norm of one sample's input and output, all their axes flattened."""

    value: float  # >= 0; inf where the module has none
    kind: Kind
    condition: str = ""  # when it holds; empty: always
    source: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no constant.

        Raises:
            TypeError: ``value`` is no number.
            ValueError: it is negative or nan.
        """
        if not isinstance(self.value, (int, float)) or isinstance(self.value, bool):
            raise TypeError(f"Constant(value=...) must be a number, got {type(self.value).__name__}.")
        if not self.value >= 0:
            raise ValueError(f"Constant(value=...) must be at least 0, got {self.value}.")

    @property
    def log(self) -> float:
        """Natural logarithm of the value, nats; -inf for a constant map."""
        return math.log(self.value) if self.value > 0 else -math.inf
