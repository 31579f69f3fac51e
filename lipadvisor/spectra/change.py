"""The change of ln s_1 under a given change of the weight, to second order, with the tracked block treated exactly.

In the basis of the block ``W + E`` is ``[[S + U'EV, U'E V_c], [U_c'E V, D]]``. The top singular triple ``sigma, x, z``
of the first corner is taken exactly, so that values that are close, or cross, do no harm; what couples it to the
complement enters to second order, ``sigma + q_c / 2``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipadvisor.spectra.block import TrackedBlock
from lipadvisor.spectra.operator import LayerOperator

__all__ = ["BlockChange", "project_change"]


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

    def rotated(self, block: TrackedBlock, length: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``sigma`` (), ``p`` (1, M) and ``y`` (1, N) of ``W + length E``: top of the corner, and its coupling.

        Args:
            block: tracked block of W.
            length: how far along E.
        """
        corner = torch.diag(block.s_R) + length * self.corner_RR
        x_RR, sigma_R, z_RR = torch.linalg.svd(torch.nan_to_num(corner))
        x_1R, z_1R = x_RR[:, :1].mT, z_RR[:1]
        p_1M = length * (z_1R @ self.image_RM - (z_1R @ self.corner_RR.mT) @ block.u_RM)
        y_1N = length * (x_1R @ self.coimage_RN - (x_1R @ self.corner_RR) @ block.v_RN)
        return sigma_R[0], p_1M, y_1N


def project_change(operator: LayerOperator, direction: Tensor, block: TrackedBlock) -> BlockChange:
    """Return what ``direction``, of the kernel's shape, does to the block."""
    image_RM = operator.apply(direction, block.v_RN)
    coimage_RN = operator.adjoint(direction, block.u_RM)
    return BlockChange(image_RM, coimage_RN, block.u_RM @ image_RM.mT)
