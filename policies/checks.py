"""What constructors of policies require of their arguments: each error names argument, rule and value."""

from __future__ import annotations

import math

__all__ = ["require_at_least_one", "require_fraction", "require_non_negative", "require_positive"]


def require_positive(owner: str, argument: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is a finite number above zero."""
    if not (_is_number(value) and value > 0.0):
        raise ValueError(f"{owner}({argument}=...) must be a finite number > 0, got {value!r}.")


def require_non_negative(owner: str, argument: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is a finite number of at least zero."""
    if not (_is_number(value) and value >= 0.0):
        raise ValueError(f"{owner}({argument}=...) must be a finite number >= 0, got {value!r}.")


def require_fraction(owner: str, argument: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is in [0, 1]."""
    if not (_is_number(value) and 0.0 <= value <= 1.0):
        raise ValueError(f"{owner}({argument}=...) must be in [0, 1], got {value!r}.")


def require_at_least_one(owner: str, argument: str, value: int) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer of at least one."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{owner}({argument}=...) must be an integer >= 1, got {value!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
