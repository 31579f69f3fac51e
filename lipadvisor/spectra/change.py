"""The change of s_1 under a change E of the weight: tracked block exact, the complement's vectors to first order.

In the basis of the block ``W + E`` is ``[[S + U'EV, U'E V_c], [U_c'E V, D + E_c]]``. The top pair ``h, k`` of the first
corner turns out of the block along ``x, z``, the complement's response to ``p = (I - UU') E V k`` and
``y = (I - VV') E' U h``. The predicted s_1 is the largest singular value of ``W + E`` between ``[U, x]`` and
``[V, z]``: vectors right to first order give a value right to third (Wigner's 2n + 1 rule), whatever the gaps inside
the block, and never above the true one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipadvisor.spectra.block import TrackedBlock
from lipadvisor.spectra.operator import LayerOperator

__all__ = ["BlockChange", "bordered_corner", "project_change"]

TINY = 1e-30


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
        h_1R, k_1R = h_RR[:, :1].mT, k_RR[:1]
        p_1M = torch.addmm(k_1R @ self.image_RM, k_1R @ self.corner_RR.mT, block.u_RM, alpha=-1.0)
        y_1N = torch.addmm(h_1R @ self.coimage_RN, h_1R @ self.corner_RR, block.v_RN, alpha=-1.0)
        return p_1M, y_1N


def project_change(operator: LayerOperator, direction: Tensor, block: TrackedBlock) -> BlockChange:
    """Return what ``direction``, of the kernel's shape, does to the block."""
    image_RM = operator.apply(direction, block.v_RN)
    coimage_RN = operator.adjoint(direction, block.u_RM)
    return BlockChange(image_RM, coimage_RN, block.u_RM @ image_RM.mT)


def bordered_corner(
    operator: LayerOperator,
    moved: Tensor,
    change: BlockChange,
    corner_RR: Tensor,
    length: float,
    x_1M: Tensor,
    z_1N: Tensor,
) -> Tensor:
    """Return ``W + length E`` between ``[U, x]`` and ``[V, z]``, (R+1, R+1); its largest singular value is s_1.

    Args:
        operator: geometry of the layer.
        moved: the kernel ``W + length E``.
        change: of the block along E.
        corner_RR: ``S + length U'EV``.
        length: how far along E.
        x_1M: response on the output side, orthogonal to the block; need not be normalised.
        z_1N: response on the input side.
    """
    x_1M, z_1N = _unit(x_1M, change.corner_RR.shape[0]), _unit(z_1N, change.corner_RR.shape[0])
    column_R1 = change.coimage_RN @ z_1N.mT * length
    row_1R = x_1M @ change.image_RM.mT * length
    last_11 = x_1M @ operator.apply(moved, z_1N).mT
    return torch.cat([torch.cat([corner_RR, column_R1], 1), torch.cat([row_1R, last_11], 1)])


def _unit(x_1K: Tensor, count: int) -> Tensor:
    """Return the row at length 1; zeros where ``count`` rows fill the space and only rounding is left."""
    return torch.zeros_like(x_1K) if x_1K.shape[1] == count else x_1K / x_1K.norm().clamp_min(TINY)
