"""The change of s_1 under a change E of the weight: tracked block exact, the complement's vectors to first order.

In the basis of the block ``W + E`` is ``[[S + U'EV, U'E V_c], [U_c'E V, D + E_c]]``. The top pair ``h, k`` of the first
corner turns out of the block along ``x, z``, the complement's response to ``p = (I - UU') E V k`` and
``y = (I - VV') E' U h``. The predicted s_1 is the largest singular value of ``W + E`` between ``[U, x]`` and
``[V, z]``: vectors right to first order give a value right to third (Wigner's 2n + 1 rule), whatever the gaps inside
the block. On the input side the other pairs of the corner meet ``z`` too; that they meet ``x`` is left out.

Shapes: those of :mod:`lipadvisor.spectra.block`, leading dimensions included.
"""

from __future__ import annotations

from dataclasses import dataclass

from lipadvisor.spectra.block import TrackedBlock
from lipadvisor.spectra.rows import (
    TINY,
    Rows,
    at_least,
    decomposed,
    finite,
    joined,
    root,
    singular_values,
    squares,
    where,
)

__all__ = ["TurnedPair", "moved_norm", "turned_pair"]

NEGLIGIBLE = 1e-4  # of the direction's own size; what is lost is the square of it


@dataclass(frozen=True, slots=True)
class TurnedPair:
    """Top pair of a corner ``U'(W + E)V``, in the layer's own coordinates.

    Attributes:
        left_1M: ``U h``.
        right_1N: ``V k``.
        turn_1R: ``k``.
    """

    left_1M: Rows
    right_1N: Rows
    turn_1R: Rows


def turned_pair(block: TrackedBlock, corner_RR: Rows) -> TurnedPair:
    """Return the top pair of a corner ``U'(W + E)V`` of the block."""
    h_RR, _, k_RR = decomposed(corner_RR)
    turn_1R = k_RR[..., :1, :]
    return TurnedPair(h_RR[..., :1].mT @ block.u_RM, turn_1R @ block.v_RN, turn_1R)


def moved_norm(
    block: TrackedBlock,
    corner_RR: Rows,
    turn_1R: Rows,
    image_1M: Rows,
    coimage_1N: Rows,
    length: float | Rows,
    z_1N: Rows,
    moved_z_1M: Rows,
) -> Rows:
    """Return the s_1 (...) of ``W + length E`` as predicted; nan where anything is not finite.

    Args:
        block: of the weight before.
        corner_RR: ``U'(W + length E)V``.
        turn_1R: ``k``, the top pair's place in the block.
        image_1M: ``E V k``.
        coimage_1N: ``E' U h``.
        length: how far along E; a tensor has the leading dimensions and two ones.
        z_1N: the complement's response on the input side, per unit of E; nothing of it may lie in the block.
        moved_z_1M: ``(W + length E) z``.
    """
    # x to first order: that W has moved meanwhile is of the second. The block is read twice in all.
    inside_2R = joined([image_1M, moved_z_1M]) @ block.u_RM.mT
    leaving_1R, moved_1R = inside_2R[..., :1, :], inside_2R[..., 1:, :]
    x_1M = (image_1M + moved_z_1M - (leaving_1R + moved_1R) @ block.u_RM) / block.s_R[..., :1, None]
    # What is left of a response that fills none of the complement is rounding, and may lie anywhere: it is dropped.
    floor_11 = root(squares(image_1M) + squares(coimage_1N))[..., None] / block.s_R[..., :1, None] * NEGLIGIBLE
    x_1M, over_z_11 = x_1M * _inverse_length(x_1M, floor_11), _inverse_length(z_1N, floor_11)
    lower_1R = (x_1M @ image_1M.mT) * length * turn_1R
    border_R1 = joined([moved_1R.mT, x_1M @ moved_z_1M.mT]) * over_z_11
    bordered = joined([joined([corner_RR, lower_1R]), border_R1], -1)
    return where(finite(bordered), singular_values(bordered)[..., 0], float("nan"))


def _inverse_length(x_1K: Rows, floor_11: Rows) -> Rows:
    """Return one over the row's length; zero where it is not longer than ``floor``."""
    length_11 = root(squares(x_1K))[..., None]
    return where(length_11 > floor_11, 1.0 / at_least(length_11, TINY), 0.0)
