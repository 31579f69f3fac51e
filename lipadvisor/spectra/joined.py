"""Operators of several geometries taken as one, so that what is done with their vectors is done at once.

Their layers follow one another, and their vectors are filled up with zeros to the longest: zeros stay zeros in whatever
is made of a block's rows. Only applications go geometry by geometry.

Shapes: ``L`` layers of all parts, ``l`` of one, ``K`` vectors, ``N`` inputs and ``M`` outputs of the longest part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from lipadvisor.spectra.curvature import Change, GramResolvent
from lipadvisor.spectra.operator import LayerOperator
from lipadvisor.spectra.rows import Rows, adjoint, apply

__all__ = ["JoinedGram", "JoinedOperator", "filled"]


def filled(parts: Sequence[Rows], size: int) -> Rows:
    """Return arrays (l, ..., n) as one (L, ..., size), filled up with zeros."""
    whole = np.zeros((sum(map(len, parts)), *parts[0].shape[1:-1], size), parts[0].dtype)
    start = 0
    for part in parts:
        whole[start : start + len(part), ..., : part.shape[-1]] = part
        start += len(part)
    return whole


@dataclass(frozen=True, slots=True)
class JoinedOperator:
    """Several operators; kernels are a tuple with one of each, vectors are arrays.

    Attributes:
        parts: the operators.
        counts: layers of each.
        inputs: N of the longest.
        outputs: M of the longest.
        places: of each part's layers.
    """

    parts: tuple[LayerOperator, ...]
    counts: tuple[int, ...]
    inputs: int = field(init=False)
    outputs: int = field(init=False)
    places: tuple[slice, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Work out sizes and places."""
        ends = np.cumsum(self.counts).tolist()
        object.__setattr__(self, "inputs", max(part.inputs for part in self.parts))
        object.__setattr__(self, "outputs", max(part.outputs for part in self.parts))
        object.__setattr__(self, "places", tuple(slice(b - n, b) for b, n in zip(ends, self.counts, strict=True)))

    def apply(self, kernels: Sequence[Rows], x_KN: Rows) -> Rows:
        """Return the images (L, K, M)."""
        rows = zip(self.parts, kernels, self.inward(x_KN), strict=True)
        return filled([apply(part, kernel, x) for part, kernel, x in rows], self.outputs)

    def adjoint(self, kernels: Sequence[Rows], y_KM: Rows) -> Rows:
        """Return the images (L, K, N) under the adjoint."""
        rows = zip(self.parts, kernels, self.outward(y_KM), strict=True)
        return filled([adjoint(part, kernel, y) for part, kernel, y in rows], self.inputs)

    def inward(self, x_KN: Rows) -> Iterator[Rows]:
        """Give each part its own of vectors (L, ..., N)."""
        return (x_KN[place, ..., : part.inputs] for place, part in zip(self.places, self.parts, strict=True))

    def outward(self, y_KM: Rows) -> Iterator[Rows]:
        """Give each part its own of vectors (L, ..., M)."""
        return (y_KM[place, ..., : part.outputs] for place, part in zip(self.places, self.parts, strict=True))


@dataclass(frozen=True, slots=True)
class JoinedGram:
    """Factorised complements of several geometries.

    Attributes:
        operator: of all of them.
        parts: of each.
    """

    operator: JoinedOperator
    parts: tuple[GramResolvent, ...]

    def both(self, turning: Change | None, p_KM: Rows, y_KN: Rows) -> tuple[Rows, Rows]:
        """Return the response ``z`` (L, 1, N) to one change, and the second line of q (L, K) of others."""
        turns: Sequence[Change | None] = [None] * len(self.parts)
        if turning is not None:
            turns = list(zip(self.operator.outward(turning[0]), self.operator.inward(turning[1]), strict=True))
        rows = zip(self.parts, turns, self.operator.outward(p_KM), self.operator.inward(y_KN), strict=True)
        found = [part.both(turn, p, y) for part, turn, p, y in rows]
        return filled([z for z, _ in found], self.operator.inputs), np.concatenate([forms for _, forms in found])

    def forms(self, p_KM: Rows, y_KN: Rows) -> Rows:
        """Return the second line of q (L, K)."""
        rows = zip(self.parts, self.operator.outward(p_KM), self.operator.inward(y_KN), strict=True)
        return np.concatenate([part.forms(p, y) for part, p, y in rows])
