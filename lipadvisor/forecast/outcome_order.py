"""What outcomes that come one after the other count, when they are learned from together."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from lipadvisor.terms import Array

__all__ = ["EARLY", "GAIN", "in_order", "in_their_order"]

GAIN = 0.02  # forgetting of experts' errors and of the band's scale, per scored forecast ...
EARLY = 10.0  # ... and sooner at first, by 10 / (n + 10): the way off the initial plateau says little of what follows
_PEAK_DECAY = 0.98  # per scored forecast, of the largest error that caps the band


def _left(factor_NS: np.ndarray[Any, np.dtype[np.floating[Any]]]) -> tuple[Array, Array]:
    """Return the product of all factors, shape ``(S,)``, and for each entry that of the later ones, ``(N, S)``."""
    products_NS = np.ones((len(factor_NS) + 1, factor_NS.shape[1]))
    products_NS[:-1] = np.multiply.accumulate(factor_NS[::-1])[::-1]
    return products_NS[0], products_NS[1:]


def in_their_order(n_S: Array, good_NS: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[Array, Array, Array, Array]:
    """Return what outcomes count that come one after the other, ``n`` before them.

    Returns:
        Each one's share in the averages, ``(N, S)``, and what is left of what was there, ``(S,)``; the same for the
        largest error.
    """
    before_NS = n_S + np.add.accumulate(good_NS, axis=0) - good_NS
    gain_NS = np.maximum(GAIN, EARLY / (before_NS + EARLY)) * good_NS
    keep_S, left_NS = _left(1.0 - gain_NS)
    last_S, fade_NS = _left(1.0 - (1.0 - _PEAK_DECAY) * good_NS)
    return gain_NS * left_NS, keep_S, fade_NS, last_S


@lru_cache(maxsize=1024)
def in_order(n: float, count: int) -> tuple[Array, Array, Array, Array]:
    """Return :func:`in_their_order` of good outcomes, which are the same for all series: ``S`` is 1."""
    return in_their_order(np.array([n]), np.ones((count, 1), bool))
