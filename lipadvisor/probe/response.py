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
from lipadvisor.spectra import (
    CgResolvent,
    Conv2dOperator,
    ConvOperator,
    LayerOperator,
    Resolvent,
    TrackedBlock,
    curvature_form,
    refresh,
)
from lipadvisor.spectra.change import TINY, moved_norm, turned_pair
from lipadvisor.spectra.conv2d import roughly
from lipadvisor.spectra.curvature import Split, outside, split_change
from lipadvisor.spectra.sharded import ShardedOperator
from lipadvisor.spectra.wave import wave_vectors

__all__ = ["Pace", "Response", "noise_form", "respond", "update_norm"]


MAX_STRETCHES = 32
DEPENDENT = 1e-5  # of unit rows: squared distance of one from the others below which it adds nothing to them


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
    corner_RR = block.u_RM @ moved.image_RM.mT / kept
    pairs = _Pairs.of(block, corner_RR, pace.turned)
    images_JM, coimages_JN, size_l, pack.update_KN = update_norm(
        pack.operator, direction, pairs.left_JM, pairs.right_JN, pack.update_KN
    )
    first_l = (block.u_RM[:, 0] * images_JM[:, 0]).sum(-1)
    alike = None if isinstance(pack.operator, ShardedOperator) else size_l  # by what all processes know alike
    stretches = pace.stretches(alike, block.s_R[:, 0])
    if stretches == 1:
        step = _Step(block, corner_RR, direction, length, moved.kernel, kept)
        top_l, q_l, ahead_RM = _stretch(pack.operator, resolvent, step, pairs, images_JM, coimages_JN)
        ratio_l, ahead_RM = top_l / block.s_R[:, 0], moved.image_RM + ahead_RM
    else:
        ratio_l, q_l = _stretches(pack, resolvent, direction, length / stretches, stretches)
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
    operator: LayerOperator, direction: Tensor, left_JM: Tensor, right_JN: Tensor, start_KN: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images of given vectors, ``s_1(U)`` (l,), and right vectors (l, K, N) for next time.

    The size is a lower bound but for rounding. A convolution's starts from the last step's top vector and from the wave
    at which the update is largest now, see :mod:`lipadvisor.spectra.wave`.

    Args:
        operator: geometry of the layer.
        direction: U (l, *kernel shape).
        left_JM: vectors whose images ``U'u`` (l, J, N) come second.
        right_JN: vectors whose images ``U v`` (l, J, M) come first.
        start_KN: right vectors of the last update.
    """
    geometry, shared = _geometry(operator)
    if geometry is not None:
        images_JM, coimages_JN = operator.apply(direction, right_JN), operator.adjoint(direction, left_JM)
        start_KN = torch.cat([start_KN[:, :1], wave_vectors(geometry, direction, *shared)], 1)
        return images_JM, coimages_JN, *_climb(roughly(operator, direction), direction, start_KN)
    count = right_JN.shape[1]
    image_KM = operator.apply(direction, torch.cat([right_JN, start_KN], 1))
    q_KM = torch.linalg.qr(image_KM[:, count:].mT)[0].mT
    coimage_KN = operator.adjoint(direction, torch.cat([left_JM, q_KM], 1))
    basis_NK, upper_KK = torch.linalg.qr(coimage_KN[:, count:].mT)
    turn_KK = torch.linalg.svd(torch.nan_to_num(upper_KK, 0.0, 0.0, 0.0))[0]
    start_KN = turn_KK.mT @ basis_NK.mT
    # The top one goes once more there and back: a step's direction may be all new.
    again_1M = operator.apply(direction, start_KN[:, :1])
    unit_1M = again_1M / torch.linalg.vector_norm(again_1M, dim=-1, keepdim=True).clamp_min(TINY)
    size_l1 = torch.linalg.vector_norm(operator.adjoint(direction, unit_1M), dim=-1)
    return image_KM[:, :count], coimage_KN[:, :count], size_l1.squeeze(1), start_KN


def _geometry(
    operator: LayerOperator,
) -> tuple[Conv2dOperator | ConvOperator | None, tuple[Callable[[Tensor], Tensor], ...]]:
    """Return the convolution that acts here, if there is one, and what adds up its shares elsewhere."""
    if not isinstance(operator, ShardedOperator):
        return (operator if isinstance(operator, Conv2dOperator | ConvOperator) else None), ()
    part = operator.part if isinstance(operator.part, Conv2dOperator | ConvOperator) else None
    return part, (operator.shard.add, operator.gather_inputs)


def _climb(operator: LayerOperator, direction: Tensor, start_KN: Tensor) -> tuple[Tensor, Tensor]:
    """Return the size (l,) and the top right vector (l, 1, N) between those of a start and of one power more.

    Args:
        operator: geometry of the layer.
        direction: U.
        start_KN: unit rows.
    """
    image_KM = operator.apply(direction, start_KN)
    next_KN = operator.adjoint(direction, image_KM)
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
    right_1N = right_1N / torch.linalg.vector_norm(right_1N, dim=-1, keepdim=True).clamp_min(TINY)
    # The root of |U'U x| would save this application, and loses half a percent.
    return torch.linalg.vector_norm(operator.apply(direction, right_1N), dim=-1).squeeze(1), right_1N


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The vectors that U has to meet: the block's top pair, and what it turns into within the block."""

    left_JM: Tensor  # the second is the turned one, where there is one
    right_JN: Tensor
    turn_1R: Tensor  # its place in the block

    @classmethod
    def of(cls, block: TrackedBlock, corner_RR: Tensor, turned: bool) -> _Pairs:
        left_JM, right_JN = block.u_RM[:, :1], block.v_RN[:, :1]
        if turned:
            pair = turned_pair(block, corner_RR)
            return cls(torch.cat([left_JM, pair.left_1M], 1), torch.cat([right_JN, pair.right_1N], 1), pair.turn_1R)
        turn_1R = torch.eye(1, block.s_R.shape[-1], dtype=left_JM.dtype, device=left_JM.device)
        return cls(left_JM, right_JN, turn_1R.expand(len(left_JM), 1, -1))


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
    operator: LayerOperator, resolvent: Resolvent, step: _Step, pairs: _Pairs, images_JM: Tensor, coimages_JN: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return s_1 (l,) after the stretch as predicted, the form q (l,), and what the turn adds to the block's images."""
    block = step.block
    split = split_change(block, images_JM[:, :1], coimages_JN[:, :1])
    image_1M, coimage_1N, turning = images_JM[:, -1:], coimages_JN[:, -1:], None
    if images_JM.shape[1] > 1:
        turning = outside(image_1M, block.u_RM), outside(coimage_1N, block.v_RN)
        if isinstance(resolvent, CgResolvent) and step.direction.dtype != torch.float64:
            # One solve for both: the complement's part of q as the turned pair has it.
            split, turning = Split(split.block_K, *turning), None
    z_1N, forms_l1 = resolvent.both(turning, split.p_KM, split.y_KN)
    z_1N = outside(z_1N, block.v_RN)
    image_z_1M = roughly(operator, step.moved).apply(step.moved, z_1N)
    top_l = moved_norm(
        block, step.corner_RR, pairs.turn_1R, image_1M, coimage_1N, step.length, z_1N, image_z_1M / step.kept
    )
    return top_l, (split.block_K + forms_l1)[:, 0], pairs.turn_1R.mT @ (image_z_1M * step.length)


def _stretches(
    pack: Pack, resolvent: Resolvent, direction: Tensor, length: float | Tensor, stretches: int
) -> tuple[Tensor, Tensor]:
    """Return the predicted ratio of s_1 (l,) after a long step of several stretches, and the form q of the first."""
    assert pack.old is not None
    assert pack.operator is not None
    operator, now, start = pack.operator, pack.old.block, pack.old.kernel
    ratio_l, first_q_l = torch.ones_like(now.s_R[:, 0]), None
    for index in range(stretches):
        if index:
            now = refresh(operator, start, now.v_RN, 2)
            resolvent = pack.resolvent(start, now)
        moved = start + direction * length
        corner_RR = now.u_RM @ operator.apply(moved, now.v_RN).mT
        pairs = _Pairs.of(now, corner_RR, True)
        images_JM, coimages_JN = operator.apply(direction, pairs.right_JN), operator.adjoint(direction, pairs.left_JM)
        step = _Step(now, corner_RR, direction, length, moved, 1.0)
        top_l, q_l, _ = _stretch(operator, resolvent, step, pairs, images_JM, coimages_JN)
        ratio_l = ratio_l * (top_l / now.s_R[:, 0])
        first_q_l = q_l if first_q_l is None else first_q_l
        start = moved
    assert first_q_l is not None
    return ratio_l, first_q_l
