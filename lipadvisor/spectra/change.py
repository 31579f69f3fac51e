"""The change of s_1 under a change E of the weight: tracked block exact, the complement's vectors to first order.

In the basis of the block ``W + E`` is ``[[S + U'EV, U'E V_c], [U_c'E V, D + E_c]]``. The top pair ``h, k`` of the first
corner turns out of the block along ``x, z``, the complement's response to ``p = (I - UU') E V k`` and
``y = (I - VV') E' U h``. The predicted s_1 is the largest singular value of ``W + E`` between ``[U, x]`` and
``[V, z]``: vectors right to first order give a value right to third (Wigner's 2n + 1 rule), whatever the gaps inside
the block, and never above the true one.

Shapes: those of :mod:`lipadvisor.spectra.block`, leading dimensions included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipadvisor.spectra.block import TrackedBlock
from lipadvisor.spectra.curvature import outside
from lipadvisor.spectra.operator import LayerOperator

__all__ = ["TINY", "BlockChange", "bordered_corner", "project_change"]

TINY = 1e-30
NEGLIGIBLE = 1e-4  # of the direction's own size; what is lost is the square of it


@dataclass(frozen=True, slots=True)
class BlockChange:
    """What a direction E does to the tracked block.

    Attributes:
        image_RM: rows ``E v_k``.
        coimage_RN: rows ``E' u_k``.
        corner_RR: ``U' E V``.
    """

    image_RM: Tensor
    coimage_RN: Tensor
    corner_RR: Tensor

    def turning(self, block: TrackedBlock, corner_RR: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``p`` (1, M) and ``y`` (1, N), per unit of E, of the top pair of ``corner_RR = S + length U'EV``."""
        h_RR, _, k_RR = torch.linalg.svd(torch.nan_to_num(corner_RR, 0.0, 0.0, 0.0))
        h_1R, k_1R = h_RR[..., :1].mT, k_RR[..., :1, :]
        p_1M = k_1R @ self.image_RM - (k_1R @ self.corner_RR.mT) @ block.u_RM
        y_1N = h_1R @ self.coimage_RN - (h_1R @ self.corner_RR) @ block.v_RN
        return p_1M, y_1N


def project_change(operator: LayerOperator, direction: Tensor, block: TrackedBlock) -> BlockChange:
    """Return what ``direction``, of the kernel's shape, does to the block."""
    image_RM = operator.apply(direction, block.v_RN)
    coimage_RN = operator.adjoint(direction, block.u_RM)
    return BlockChange(image_RM, coimage_RN, block.u_RM @ image_RM.mT)


def bordered_corner(
    operator: LayerOperator,
    moved: Tensor,
    block: TrackedBlock,
    change: BlockChange,
    corner_RR: Tensor,
    length: float | Tensor,
    x_1M: Tensor,
    z_1N: Tensor,
) -> Tensor:
    """Return ``W + length E`` between ``[U, x]`` and ``[V, z]``, (R+1, R+1); its largest singular value is s_1.

    Args:
        operator: geometry of the layer.
        moved: the kernel ``W + length E``.
        block: of the weight before.
        change: of the block along E.
        corner_RR: ``S + length U'EV``.
        length: how far along E; a tensor has the leading dimensions and two ones.
        x_1M: response on the output side; need not be normalised, and what lies in the block does no harm.
        z_1N: response on the input side.
    """
    # What is left of a response that fills none of the complement is rounding, and may lie anywhere: it is dropped.
    size = change.image_RM.square().sum((-2, -1), keepdim=True) + change.coimage_RN.square().sum((-2, -1), keepdim=True)
    floor_11 = size.sqrt() / corner_RR[..., :1, :1] * NEGLIGIBLE
    x_1M, z_1N = _unit(outside(x_1M, block.u_RM), floor_11), _unit(outside(z_1N, block.v_RN), floor_11)
    column_R1 = change.coimage_RN @ z_1N.mT * length
    row_1R = x_1M @ change.image_RM.mT * length
    last_11 = x_1M @ operator.apply(moved, z_1N).mT
    return torch.cat([torch.cat([corner_RR, column_R1], -1), torch.cat([row_1R, last_11], -1)], -2)


def _unit(x_1K: Tensor, floor_11: Tensor) -> Tensor:
    """Return the row at length 1; zeros where it is not longer than ``floor``."""
    length_11 = torch.linalg.vector_norm(x_1K, dim=-1, keepdim=True)
    scale_11: Tensor = (length_11 > floor_11) / length_11.clamp_min(TINY)
    return x_1K * scale_11
