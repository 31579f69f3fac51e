"""What constructors of policies require of their arguments: each error names argument, rule and value.

All raise ``ValueError``, for a value of the wrong type too, so that one ``except`` takes what a user typed.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = [
    "require_above",
    "require_at_least_one",
    "require_factor",
    "require_fraction",
    "require_fraction_below_one",
    "require_non_negative",
    "require_pairs",
    "require_positive",
    "require_tuple",
    "told",
]

_LARGEST_INTEGER = 2**63 - 1  # of a column of the trajectory; beyond some 1e308 integers cannot be computed with
_LARGEST_FACTOR = 100.0
_TOLD = 100  # characters of a value in a message


def require_positive(owner: str, argument: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is a finite number above zero."""
    if not (_is_number(value) and value > 0.0):
        raise ValueError(f"{owner}({argument}=...) must be a finite number > 0, got {told(value)}.")


def require_above(owner: str, argument: str, value: float, low: float) -> None:
    """Raise ``ValueError`` unless ``value`` is a finite number above ``low``."""
    if not (_is_number(value) and value > low):
        raise ValueError(f"{owner}({argument}=...) must be a finite number > {low:g}, got {told(value)}.")


def require_non_negative(owner: str, argument: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is a finite number of at least zero."""
    if not (_is_number(value) and value >= 0.0):
        raise ValueError(f"{owner}({argument}=...) must be a finite number >= 0, got {told(value)}.")


def require_factor(owner: str, argument: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is in [1, 100]."""
    if not (_is_number(value) and 1.0 <= value <= _LARGEST_FACTOR):
        raise ValueError(f"{owner}({argument}=...) must be in [1, {_LARGEST_FACTOR:g}], got {told(value)}.")


def require_fraction(owner: str, argument: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is in [0, 1]."""
    if not (_is_number(value) and 0.0 <= value <= 1.0):
        raise ValueError(f"{owner}({argument}=...) must be in [0, 1], got {told(value)}.")


def require_fraction_below_one(owner: str, argument: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is in [0, 1)."""
    if not (_is_number(value) and 0.0 <= value < 1.0):
        raise ValueError(f"{owner}({argument}=...) must be in [0, 1), got {told(value)}.")


def require_at_least_one(owner: str, argument: str, value: int) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer of at least one (and of at most 64 bits)."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST_INTEGER:
        raise ValueError(f"{owner}({argument}=...) must be an integer >= 1, got {told(value)}.")


def require_tuple(owner: str, argument: str, value: Any) -> tuple[Any, ...]:
    """Return the items of ``value``; raise ``ValueError`` unless it is a tuple or a list."""
    if not isinstance(value, (tuple, list)):
        raise ValueError(f"{owner}({argument}=...) must be a tuple, got {told(value)}.")
    return tuple(value)


def require_pairs(owner: str, argument: str, value: Any) -> tuple[tuple[Any, Any], ...]:
    """Return the items of ``value``; raise ``ValueError`` unless it is a tuple or a list of pairs."""
    pairs = value if isinstance(value, (tuple, list)) else (None,)
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"{owner}({argument}=...) must be a tuple of pairs, got {told(value)}.")
    return tuple((name, item) for name, item in pairs)


def told(value: object) -> str:
    """Return ``value`` as a message shows it, never longer than a line."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more than some 4,300 digits
        bits = value.bit_length() if isinstance(value, int) else 0
        return f"an integer of {bits} bits" if bits else f"an object of class {type(value).__name__}"
    return text if len(text) <= _TOLD else f"{text[: _TOLD // 2]}...{text[-_TOLD // 4 :]}"


def _is_number(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max  # false for nan; an integer may be beyond any float
