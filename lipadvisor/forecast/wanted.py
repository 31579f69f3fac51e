"""The relative update that a policy holds on purpose, as its decisions tell it."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["wanted_update"]


def wanted_update(read: Iterable[tuple[str, float]]) -> float | None:
    """Return the relative update (root sum of squares over the layers of ``lr s_1(U) / s_1(W)``) that is aimed at.

    Args:
        read: of the decision in force. ``relative_step`` is the wanted size; where the median of several measures was
            held at it, ``median_over_spectral`` is that median over the spectral one.

    Returns:
        The size, > 0; ``None`` where the policy does not hold one.
    """
    told = dict(read)
    size, share = told.get("relative_step"), told.get("median_over_spectral", 1.0)
    if size is None or not (0.0 < size < math.inf and 0.0 < share < math.inf):
        return None
    return size / share
