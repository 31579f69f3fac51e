"""What one step did to the top of a pack's spectra: first order, curvature, predicted change, size, noise.

All changes share one solve with the complement. A step that is long for the norm is followed in stretches, each
predicted from a block brought up to its start. What the step does within the block is read off the moved weights'
images of the block, which the refresh needs anyway; U itself meets the top pair alone.

Shapes: ``l`` layers of the pack, ``R`` block, ``K`` changes or noise directions, ``M`` outputs, ``N`` inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipadvisor.probe.noise import NoiseImages
from lipadvisor.probe.pack import Pack
from lipadvisor.spectra import Conv2dOperator, LayerOperator, Resolvent, TrackedBlock, curvature_form, refresh
from lipadvisor.spectra.change import TINY, moved_norm, turned_pair
from lipadvisor.spectra.curvature import outside, split_change
from lipadvisor.spectra.sharded import ShardedOperator
from lipadvisor.spectra.wave import wave_vectors

__all__ = ["Pace", "Response", "noise_form", "respond", "update_norm"]


MAX_STRETCHES = 32
DEPENDENT = 1e-6  # of unit rows: squared distance of one from the others below which it adds nothing to them


@dataclass(frozen=True, slots=True)
class Pace:
    """How a long step is cut up.

    Attributes:
        lr: largest learning rate of the pack.
        stretch: longest relative step that is predicted in one go.
        expected: relative step, judged by the last update: what counts where the device must not be waited for.
        turned: whether the top pair may turn within the block, judged likewise.
    """

    lr: float
    stretch: float
    expected: float
    turned: bool

    def stretches(self, size_l: Tensor | None, norm_l: Tensor) -> int:
        """Return the number of stretches for an update of ``size`` on weights of ``norm``; None: judged by the last."""
        relative = self.expected
        if size_l is not None and size_l.device.type == "cpu":
            relative = self.lr * float((size_l / norm_l).max())
        if not math.isfinite(relative):
            return 1
        return min(MAX_STRETCHES, max(1, math.ceil(relative / self.stretch)))


@dataclass(frozen=True, slots=True)
class Response:
    """What a step did to the top pairs of a pack.

    Attributes:
        columns_l6: ``u' U v``, ``q(U)``, predicted change of ``ln s_1``, ``s_1(U)``, :func:`relative_sizes`.
        ahead_RM: images, by the moved weights, of the block's right vectors, the top one turned to first order.
    """

    columns_l6: Tensor
    ahead_RM: Tensor


def respond(
    pack: Pack, resolvent: Resolvent, direction: Tensor, length: float | Tensor, kept: float | Tensor, pace: Pace
) -> Response:
    """Return what a step did.

    Args:
        pack: with ``old`` refreshed, and moved; its update's vectors are moved on.
        resolvent: of ``old``.
        direction: U, (l, *kernel shape).
        length: how far along U the weights go; a tensor is (l, 1, 1).
        kept: what the decay then leaves: the new weights are ``kept (W + length U)``.
        pace: how a long step is cut up.
    """
    assert pack.old is not None
    assert pack.moved is not None
    assert pack.operator is not None
    assert pack.update_KN is not None
    block, moved = pack.old.block, pack.moved
    image_1M, coimage_1N, size_l, pack.update_KN = update_norm(
        pack.operator, direction, block.u_RM[:, :1], block.v_RN[:, :1], pack.update_KN
    )
    first_l = (block.u_RM[:, 0] * image_1M[:, 0]).sum(-1)
    alike = None if isinstance(pack.operator, ShardedOperator) else size_l  # by what all processes know alike
    stretches = pace.stretches(alike, block.s_R[:, 0])
    if stretches == 1:
        corner_RR = block.u_RM @ moved.image_RM.mT / kept
        step = _Step(block, corner_RR, direction, length, moved.kernel, kept)
        top_l, q_l, ahead_RM = _stretch(pack, resolvent, step, image_1M, coimage_1N, pace.turned)
        ratio_l, ahead_RM = top_l / block.s_R[:, 0], moved.image_RM + ahead_RM
    else:
        ratio_l, q_l = _stretches(pack, resolvent, direction, length / stretches, stretches, image_1M, coimage_1N)
        ahead_RM = moved.image_RM
    columns_l4 = torch.stack([first_l, q_l, ratio_l.log(), size_l], dim=1)
    return Response(torch.cat([columns_l4, relative_sizes(pack.operator, direction, pack.old.kernel)], 1), ahead_RM)


def relative_sizes(operator: LayerOperator, direction: Tensor, kernel: Tensor) -> Tensor:
    """Return ``|U|_F / |W|_F``, and the largest norm of a row of ``U`` over that of a row of ``W``, (l, 2).

    Rows are those of the kernel's first dimension: a convolution's row is what makes one output channel.
    """
    rows_2lr = torch.stack([torch.linalg.vector_norm(x.reshape(*x.shape[:2], -1), dim=-1) for x in (direction, kernel)])
    if isinstance(operator, ShardedOperator):
        rows_2lr = operator.shard.gather(rows_2lr)
    sizes_2l2 = torch.stack([torch.linalg.vector_norm(rows_2lr, dim=-1), rows_2lr.amax(-1)], dim=-1)
    return sizes_2l2[0] / sizes_2l2[1]


def noise_form(pack: Pack, resolvent: Resolvent, noise: NoiseImages) -> Tensor:
    """Return the noise's form q (l, 1)."""
    assert pack.old is not None
    assert noise.image_KM is not None
    assert noise.coimage_KN is not None
    q_lK = curvature_form(pack.old.block, resolvent, noise.image_KM, noise.coimage_KN)
    return q_lK.sum(1, keepdim=True) * noise.factor


def update_norm(
    operator: LayerOperator, direction: Tensor, u_1M: Tensor, v_1N: Tensor, start_KN: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``U v`` (l, 1, M), ``U' u`` (l, 1, N), ``s_1(U)`` (l,), and right vectors (l, K, N) for next time.

    The size is a Ritz value: never above the true one. A convolution's starts from the last step's top vector and from
    the wave at which the update is largest now, see :mod:`lipadvisor.spectra.wave`.
    """
    geometry, shared = _geometry(operator)
    waves = geometry is not None
    if geometry is not None:
        start_KN = torch.cat([start_KN[:, :1], wave_vectors(geometry, direction, *shared)], 1)
    image_KM = operator.apply(direction, torch.cat([v_1N, start_KN], 1))
    q_KM = image_KM[:, 1:] if waves else torch.linalg.qr(image_KM[:, 1:].mT)[0].mT
    coimage_KN = operator.adjoint(direction, torch.cat([u_1M, q_KM], 1))
    if waves:
        next_1N = _climb(operator, direction, start_KN, image_KM[:, 1:], coimage_KN[:, 1:])
    else:
        basis_NK, upper_KK = torch.linalg.qr(coimage_KN[:, 1:].mT)
        turn_KK = torch.linalg.svd(torch.nan_to_num(upper_KK, 0.0, 0.0, 0.0))[0]
        start_KN = turn_KK.mT @ basis_NK.mT
        next_1N = start_KN[:, :1]
    # The top one goes once more there and back: a step's direction may be all new.
    again_1M = operator.apply(direction, next_1N)
    size_l1 = torch.linalg.vector_norm(again_1M, dim=-1)
    if not waves:
        unit_1M = again_1M / size_l1.unsqueeze(-1).clamp_min(TINY)
        size_l1 = torch.linalg.vector_norm(operator.adjoint(direction, unit_1M), dim=-1)
        next_1N = start_KN
    return image_KM[:, :1], coimage_KN[:, :1], size_l1.squeeze(1), next_1N


def _geometry(operator: LayerOperator) -> tuple[Conv2dOperator | None, tuple[Callable[[Tensor], Tensor], ...]]:
    """Return the convolution that acts here, if there is one without groups, and what adds up its shares elsewhere."""
    part = operator.part if isinstance(operator, ShardedOperator) else operator
    shared = (operator.shard.add,) if isinstance(operator, ShardedOperator) else ()
    return (part if isinstance(part, Conv2dOperator) and part.groups == 1 else None), shared


def _climb(operator: LayerOperator, direction: Tensor, start_KN: Tensor, image_KM: Tensor, next_KN: Tensor) -> Tensor:
    """Return the top right vector (l, 1, N) between the vectors of a start and those after one power.

    Args:
        operator: geometry of the layer.
        direction: U.
        start_KN: unit rows.
        image_KM: their images.
        next_KN: the images under the adjoint.
    """
    next_KN = next_KN / torch.linalg.vector_norm(next_KN, dim=-1, keepdim=True).clamp_min(TINY)
    image_JM, basis_JN = torch.cat([image_KM, operator.apply(direction, next_KN)], 1), torch.cat([start_KN, next_KN], 1)
    overlap_JJ, height_JJ = (basis_JN @ basis_JN.mT).double(), (image_JM @ image_JM.mT).double()
    # The rows may be nearly dependent; what the floor hides of them is nothing that the size could miss.
    overlap_JJ.diagonal(dim1=-2, dim2=-1).add_(DEPENDENT)
    lower_JJ = torch.linalg.cholesky_ex(overlap_JJ)[0]
    half_JJ = torch.linalg.solve_triangular(lower_JJ, height_JJ, upper=False)
    height_JJ = torch.linalg.solve_triangular(lower_JJ, half_JJ.mT, upper=False)
    mix_J1 = torch.linalg.svd(torch.nan_to_num(height_JJ, 0.0, 0.0, 0.0))[0][..., :1]
    mix_J1 = torch.linalg.solve_triangular(lower_JJ.mT, mix_J1, upper=True)
    right_1N = operator.adjoint(direction, mix_J1.mT.to(image_JM) @ image_JM)
    size: Tensor = torch.linalg.vector_norm(right_1N, dim=-1, keepdim=True)
    return right_1N / size.clamp_min(TINY)


@dataclass(frozen=True, slots=True)
class _Step:
    """A straight step from weights with a block: to ``moved / kept = W + length U``."""

    block: TrackedBlock
    corner_RR: Tensor  # U'(W + length E)V of the block
    direction: Tensor
    length: float | Tensor
    moved: Tensor
    kept: float | Tensor


def _stretch(
    pack: Pack, resolvent: Resolvent, step: _Step, image_1M: Tensor, coimage_1N: Tensor, turned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return s_1 (l,) after the stretch as predicted, the form q (l,), and what the turn adds to the block's images."""
    assert pack.operator is not None
    block, operator = step.block, pack.operator
    split = split_change(block, image_1M, coimage_1N)
    turning = None
    if turned:
        pair = turned_pair(block, step.corner_RR)
        turn_1R = pair.turn_1R
        image_1M = operator.apply(step.direction, pair.right_1N)
        coimage_1N = operator.adjoint(step.direction, pair.left_1M)
        turning = outside(image_1M, block.u_RM), outside(coimage_1N, block.v_RN)
    else:
        turn_1R = torch.eye(1, block.s_R.shape[-1], dtype=image_1M.dtype, device=image_1M.device)
        turn_1R = turn_1R.expand(len(image_1M), 1, -1)
    z_1N, forms_l1 = resolvent.both(turning, split.p_KM, split.y_KN)
    z_1N = outside(z_1N, block.v_RN)
    image_z_1M = operator.apply(step.moved, z_1N)
    top_l = moved_norm(block, step.corner_RR, turn_1R, image_1M, coimage_1N, step.length, z_1N, image_z_1M / step.kept)
    return top_l, (split.block_K + forms_l1)[:, 0], turn_1R.mT @ (image_z_1M * step.length)


def _stretches(
    pack: Pack,
    resolvent: Resolvent,
    direction: Tensor,
    length: float | Tensor,
    stretches: int,
    image_1M: Tensor,
    coimage_1N: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the predicted ratio of s_1 (l,) after a long step of several stretches, and the form q of the first."""
    assert pack.old is not None
    assert pack.operator is not None
    now, start = pack.old.block, pack.old.kernel
    ratio_l, first_q_l = torch.ones_like(now.s_R[:, 0]), None
    for index in range(stretches):
        if index:
            now = refresh(pack.operator, start, now.v_RN, 2)
            image_1M = pack.operator.apply(direction, now.v_RN[:, :1])
            coimage_1N = pack.operator.adjoint(direction, now.u_RM[:, :1])
            resolvent = pack.resolvent(start, now)
        moved = start + direction * length
        corner_RR = now.u_RM @ pack.operator.apply(moved, now.v_RN).mT
        step = _Step(now, corner_RR, direction, length, moved, 1.0)
        top_l, q_l, _ = _stretch(pack, resolvent, step, image_1M, coimage_1N, True)
        ratio_l = ratio_l * (top_l / now.s_R[:, 0])
        first_q_l = q_l if first_q_l is None else first_q_l
        start = moved
    assert first_q_l is not None
    return ratio_l, first_q_l
