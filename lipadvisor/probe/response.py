"""What one step did to the top of a pack's spectra: first order, curvature, predicted change, size, noise.

All changes share one solve with the complement. A step that is long for the norm is followed in stretches, each
predicted from a block brought up to its start.

Shapes: ``l`` layers of the pack, ``R`` block, ``K`` changes or noise directions, ``M`` outputs, ``N`` inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipadvisor.probe.noise import NoiseImages
from lipadvisor.probe.pack import Pack
from lipadvisor.spectra import LayerOperator, TrackedBlock, refresh
from lipadvisor.spectra.change import TINY, BlockChange, bordered_corner, project_change
from lipadvisor.spectra.curvature import split_change

__all__ = ["Pace", "respond", "update_norm"]


MAX_STRETCHES = 32


@dataclass(frozen=True, slots=True)
class Pace:
    """How a long step is cut up.

    Attributes:
        lr: largest learning rate of the pack.
        stretch: longest relative step that is predicted in one go.
        expected: relative step, judged by the last update: what counts where the device must not be waited for.
    """

    lr: float
    stretch: float
    expected: float

    def stretches(self, size_l: Tensor, norm_l: Tensor) -> int:
        """Return the number of stretches for an update of ``size`` on weights of ``norm``."""
        relative = self.expected
        if size_l.device.type == "cpu":
            relative = self.lr * float((size_l / norm_l).max())
        if not math.isfinite(relative):
            return 1
        return min(MAX_STRETCHES, max(1, math.ceil(relative / self.stretch)))


def respond(pack: Pack, direction: Tensor, length: float | Tensor, pace: Pace, noise: NoiseImages | None) -> Tensor:
    """Return columns (l, 5): ``u' U v``, ``q(U)``, predicted change of ``ln s_1``, ``s_1(U)``, noise's form.

    Args:
        pack: with ``old`` refreshed; its update's vectors are moved on.
        direction: U, (l, *kernel shape).
        length: how far along U the weights go; a tensor is (l, 1, 1).
        pace: how a long step is cut up.
        noise: of the batch, if it is asked for; without it its form is nan.
    """
    assert pack.old is not None
    assert pack.operator is not None
    assert pack.update_KN is not None
    kernel, block = pack.old.kernel, pack.old.block
    size_l, change, pack.update_KN = update_norm(pack.operator, direction, block, pack.update_KN)
    stretches = pace.stretches(size_l, block.s_R[:, 0])
    step = length / stretches
    top_l, q_lK = _stretch(pack, kernel, block, direction, change, step, noise)
    ratio_l = top_l / block.s_R[:, 0]
    now = block
    for index in range(1, stretches):
        start = kernel + direction * (step * index)
        now = refresh(pack.operator, start, now.v_RN, 2)
        onward = project_change(pack.operator, direction, now)
        top_l, _ = _stretch(pack, start, now, direction, onward, step, None)
        ratio_l = ratio_l * (top_l / now.s_R[:, 0])
    nothing_l = torch.full_like(size_l, float("nan"))
    noise_l = nothing_l if noise is None else q_lK[:, 1:].sum(1) * noise.factor
    return torch.stack([change.corner_RR[:, 0, 0], q_lK[:, 0], ratio_l.log(), size_l, noise_l], dim=1)


def update_norm(
    operator: LayerOperator, direction: Tensor, block: TrackedBlock, start_KN: Tensor
) -> tuple[Tensor, BlockChange, Tensor]:
    """Return ``s_1(U)`` (l,), what U does to the block, and U's right vectors (l, K, N) to start from next time.

    The size is the Ritz value after two warm-started iterations: never above the true one.
    """
    rank = block.s_R.shape[-1]
    image_KM = operator.apply(direction, torch.cat([block.v_RN, start_KN], 1))
    image_RM = image_KM[:, :rank]
    q_KM = torch.linalg.qr(image_KM[:, rank:].mT)[0].mT
    coimage_KN = operator.adjoint(direction, torch.cat([block.u_RM, q_KM], 1))
    coimage_RN = coimage_KN[:, :rank]
    basis_NK, upper_KK = torch.linalg.qr(coimage_KN[:, rank:].mT)
    turn_KK = torch.linalg.svd(torch.nan_to_num(upper_KK, 0.0, 0.0, 0.0))[0]
    start_KN = turn_KK.mT @ basis_NK.mT
    # The first of them goes once more there and back: a step's direction may be all new.
    image_1M = operator.apply(direction, start_KN[:, :1])
    unit_1M = image_1M / torch.linalg.vector_norm(image_1M, dim=-1, keepdim=True).clamp_min(TINY)
    size_l = torch.linalg.vector_norm(operator.adjoint(direction, unit_1M), dim=-1).squeeze(1)
    return size_l, BlockChange(image_RM, coimage_RN, block.u_RM @ image_RM.mT), start_KN


def _stretch(
    pack: Pack,
    kernel: Tensor,
    block: TrackedBlock,
    direction: Tensor,
    change: BlockChange,
    length: float | Tensor,
    noise: NoiseImages | None,
) -> tuple[Tensor, Tensor]:
    """Return s_1 (l,) after the stretch as predicted, and the forms q (l, 1 + K) of the direction and of the noise."""
    assert pack.operator is not None
    corner_RR = torch.diag_embed(block.s_R) + change.corner_RR * length
    p_1M, y_1N = change.turning(block, corner_RR)
    image_KM, coimage_KN = change.image_RM[:, :1], change.coimage_RN[:, :1]
    if noise is not None:
        image_KM = torch.cat([image_KM, noise.image_KM], 1)
        coimage_KN = torch.cat([coimage_KN, noise.coimage_KN], 1)
    split = split_change(block, image_KM, coimage_KN)
    (x_1M, z_1N), forms_lK = pack.resolvent(kernel, block).both(p_1M, y_1N, split.p_KM, split.y_KN)
    moved = kernel + direction * length
    corner = bordered_corner(pack.operator, moved, block, change, corner_RR, length, x_1M, z_1N)
    finite_l = torch.isfinite(corner).all(-1).all(-1)
    top_l = torch.linalg.svdvals(torch.nan_to_num(corner, 0.0, 0.0, 0.0))[:, 0]
    return torch.where(finite_l, top_l, float("nan")), split.block_K + forms_lK
