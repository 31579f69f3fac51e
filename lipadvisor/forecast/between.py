"""Between the tracked horizons: what was learned at two of them, blended in the logarithm of the steps ahead."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lipadvisor.terms import Array

__all__ = ["between", "blend"]


def between(horizons_H: Array, steps_h: Array) -> tuple[NDArray[np.intp], Array]:
    """Return, for each number of steps, the index of the tracked horizon below it and the share of the next one.

    Args:
        horizons_H: tracked, ascending, steps >= 1.
        steps_h: steps ahead, >= 1; beyond the horizons the nearest one holds.
    """
    place_h = np.interp(np.log(steps_h), np.log(horizons_H), np.arange(len(horizons_H), dtype=np.float64))
    low_h = np.minimum(place_h.astype(np.intp), max(len(horizons_H) - 2, 0))
    return low_h, place_h - low_h


def blend(values_H: Array, low_h: NDArray[np.intp], share_h: Array) -> Array:
    """Return values at the places that :func:`between` found; the first axis of ``values_H`` is the horizons'."""
    high_h = np.minimum(low_h + 1, len(values_H) - 1)
    share = share_h.reshape(-1, *([1] * (values_H.ndim - 1)))
    return np.asarray((1.0 - share) * values_H[low_h] + share * values_H[high_h])
