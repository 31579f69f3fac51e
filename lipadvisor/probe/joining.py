"""Several packs worked together: their operators as one, and what multiplies the rows of each.

Shapes: ``l`` layers of all packs, ``R`` rows of the largest block, ``N`` entries of the longest vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from torch import Tensor

from lipadvisor.spectra import LayerOperator
from lipadvisor.spectra.joined import JoinedOperator
from lipadvisor.spectra.rows import Rows, rows

__all__ = ["each", "factor", "filled_blocks", "join"]


@lru_cache(maxsize=64)
def join(parts: tuple[LayerOperator, ...], counts: tuple[int, ...]) -> JoinedOperator:
    """Return operators of so many layers each as one."""
    return JoinedOperator(parts, counts)


def factor(value: float | Tensor, short: bool) -> float | Rows:
    """Return what multiplies a pack's rows, as its vectors are."""
    return rows(value) if short and isinstance(value, Tensor) else value


def each(numbers: Sequence[float | Tensor], counts: Sequence[int], dtype: np.dtype[np.floating]) -> float | Rows:
    """Return numbers of packs as what multiplies the rows of all of them (l, 1, 1): one if they are the same."""
    first = numbers[0]
    if isinstance(first, float) and all(isinstance(n, float) and n == first for n in numbers):
        return first
    parts = [np.broadcast_to(factor(n, True), (count, 1, 1)) for n, count in zip(numbers, counts, strict=True)]
    return np.concatenate(parts).astype(dtype, copy=False)


def filled_blocks(parts: Sequence[Rows], size: int) -> Rows:
    """Return arrays (., r, n) of packs as one (l, R, size), filled up with zeros."""
    most = max(part.shape[-2] for part in parts)
    whole = np.zeros((sum(map(len, parts)), most, size), parts[0].dtype)
    start = 0
    for part in parts:
        whole[start : start + len(part), : part.shape[-2], : part.shape[-1]] = part
        start += len(part)
    return whole
