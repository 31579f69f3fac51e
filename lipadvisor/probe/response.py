"""What one step did to the top of a pack's spectra: first order, curvature, predicted change, size, noise.

All changes share one solve with the complement. A step that is long for the norm is followed in stretches, each
predicted from a block brought up to its start. What the step does within the block is read off the moved weights'
images of the block, which the refresh needs anyway; U itself meets the top pair alone.

Shapes: ``l`` layers of the pack, ``R`` block, ``K`` changes or noise directions, ``M`` outputs, ``N`` inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipadvisor.probe.noise import NoiseImages
from lipadvisor.probe.pack import Pack
from lipadvisor.probe.update_climb import climbed, decides, decomposed_update, rising, wave_climbed
from lipadvisor.probe.update_start import few_outputs
from lipadvisor.spectra import (
    Conv2dOperator,
    ConvOperator,
    LayerOperator,
    Resolvent,
    TrackedBlock,
    curvature_form,
    refresh,
)
from lipadvisor.spectra.before import Before
from lipadvisor.spectra.change import moved_norm, turned_pair
from lipadvisor.spectra.conv2d import roughly
from lipadvisor.spectra.curvature import curvature_and_ratio, outside, split_change
from lipadvisor.spectra.joined import JoinedOperator, filled
from lipadvisor.spectra.rows import (
    TINY,
    Kernel,
    Operator,
    Rows,
    adjoint,
    apply,
    at_least,
    decomposed,
    eigen,
    extremes,
    identity,
    joined,
    like,
    log,
    normal,
    orthonormal,
    quiet,
    root,
    rows,
    squares,
    tensor,
    unit,
    whitening,
    wide,
)
from lipadvisor.spectra.sharded import ShardedOperator
from lipadvisor.spectra.wave import wave_vectors

__all__ = [
    "Pace",
    "Passage",
    "Response",
    "noise_form",
    "relative_sizes",
    "respond",
    "seen_alone",
    "update_norm",
    "waved",
]


MAX_STRETCHES = 32
APART = 0.1  # distance of a unit row from those before it, from which Gram matrices stand for factorisations


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

    def stretches(self, size_l: Rows | None, norm_l: Rows) -> int:
        """Return the number of stretches for an update of ``size`` on weights of ``norm``; None: judged by the last."""
        relative = self.expected
        if size_l is not None and tensor(size_l).device.type == "cpu":
            relative = self.lr * float((size_l / norm_l).max())
        if not math.isfinite(relative):
            return 1
        return min(MAX_STRETCHES, max(1, math.ceil(relative / self.stretch)))


@dataclass(frozen=True, slots=True)
class Passage:
    """A straight step from weights with a block to others: ``kept (W + length U)``.

    Attributes:
        operator: of the layers; that of several packs joined, where kernels are tuples.
        rough: the same, for what need not be exact.
        resolvent: of the complement, before the step.
        renew: makes the resolvent of other weights; None for joined packs.
        block: of the weights before the step.
        old: these weights.
        moved: the weights after it.
        image_RM: their images of the block's right vectors.
        direction: U.
        length: how far along U the weights go; rows are (l, 1, 1).
        kept: what the decay then leaves.
        update_KN: right vectors of the last update.
        one_solve: whether the complement's part of q may be that of the turned pair.
    """

    operator: Operator
    rough: Operator
    resolvent: Resolvent
    renew: Callable[[Tensor, TrackedBlock], Resolvent] | None
    block: TrackedBlock
    old: Kernel
    moved: Kernel
    image_RM: Rows
    direction: Kernel
    length: float | Rows
    kept: float | Rows
    update_KN: Rows
    one_solve: bool


@dataclass(frozen=True, slots=True)
class Response:
    """What a step did to the top pairs of layers.

    Attributes:
        columns_l4: ``u' U v``, ``q(U)``, predicted change of ``ln s_1``, ``s_1(U)``.
        update_KN: right vectors of the update.
        turn_1R: what the top pair turns into within the block.
        gained_1M: image, by the moved weights, of what it gains from outside; None where that is not known.
        complement_l: the complement's part of q over ``(|p|^2 + |y|^2) / s_1``; likewise.
    """

    columns_l4: Rows
    update_KN: Rows
    turn_1R: Rows
    gained_1M: Rows | None
    complement_l: Rows | None

    def ahead(self, image_RM: Rows) -> Rows:
        """Return the moved weights' images of the block's right vectors, the top one turned to first order."""
        return image_RM if self.gained_1M is None else image_RM + self.turn_1R.mT @ self.gained_1M


def respond(step: Passage, turned: bool, stretches: Callable[[Rows, Rows], int]) -> Response | None:
    """Return what a step did; None for joined packs whose step is too long to be predicted in one go.

    Args:
        step: what is known of it.
        turned: whether the top pair may turn within the block.
        stretches: says, of the update's size and the norm, into how many stretches the step is cut up.
    """
    block = step.block
    corner_RR = block.u_RM @ step.image_RM.mT / step.kept
    pairs = _Pairs.of(block, corner_RR, turned)
    images_JM, coimages_JN, size_l, update_KN = update_norm(
        step.operator, step.direction, pairs.left_JM, pairs.right_JN, step.update_KN, step.rough
    )
    first_l = (block.u_RM[:, 0] * images_JM[:, 0]).sum(-1)
    count, gained_1M, complement_l = stretches(size_l, block.s_R[:, 0]), None, None
    if count == 1:
        top_l, q_l, gained_1M, complement_l = _stretch(step, corner_RR, pairs, images_JM, coimages_JN)
        ratio_l = top_l / block.s_R[:, 0]
    elif step.renew is None:
        return None
    else:
        ratio_l, q_l = _stretches(step, count)
    columns = (first_l, q_l, log(ratio_l), size_l)
    columns_l4 = joined([column[:, None] for column in columns], 1)
    return Response(columns_l4, update_KN, pairs.turn_1R, gained_1M, complement_l)


def seen_alone(step: Passage) -> Response:
    """Return what a step did, without a prediction (nan): the step's resolvent is asked for its forms alone."""
    block = step.block
    left_1M, right_1N = block.u_RM[:, :1], block.v_RN[:, :1]
    image_1M, coimage_1N, size_l, update_KN = update_norm(
        step.operator, step.direction, left_1M, right_1N, step.update_KN, step.rough
    )
    first_l = (left_1M[:, 0] * image_1M[:, 0]).sum(-1)
    q_l = curvature_form(block, step.resolvent, image_1M, coimage_1N)[:, 0]
    columns_l4 = joined([x[:, None] for x in (first_l, q_l, first_l * float("nan"), size_l)], 1)
    return Response(columns_l4, update_KN, block.s_R[:, None, :1], None, None)


def relative_sizes(operator: LayerOperator, moved_lr: Tensor, length_lr: Tensor) -> Tensor:
    """Return ``|U|_F / |W|_F``, and the largest norm of a row of ``U`` over that of a row of ``W``, (l, 2).

    Rows are those of the kernel's first dimension: a convolution's row is what makes one output channel.

    Args:
        operator: geometry of the layers.
        moved_lr: lengths of the rows of U that are here.
        length_lr: of those of W.
    """
    if moved_lr.device.type == "cpu" and not isinstance(operator, ShardedOperator):
        step_lr, own_lr = rows(moved_lr), rows(length_lr)
        ratios = root(squares(step_lr) / squares(own_lr)), step_lr.max(-1) / own_lr.max(-1)
        return tensor(joined([ratio_l[:, None] for ratio_l in ratios], 1))
    rows_2lr = torch.stack([moved_lr, length_lr])
    if isinstance(operator, ShardedOperator):
        rows_2lr = operator.shard.gather(rows_2lr)
    sizes_2l2 = torch.stack([torch.linalg.vector_norm(rows_2lr, dim=-1), rows_2lr.amax(-1)], dim=-1)
    return sizes_2l2[0] / sizes_2l2[1]


def noise_form(pack: Pack, resolvent: Resolvent, noise: NoiseImages) -> tuple[Tensor, Rows]:
    """Return the noise's form q (l, 1), and the ratio of its complement's part (l,)."""
    assert pack.old is not None
    assert noise.image_KM is not None
    assert noise.coimage_KN is not None
    short = pack.short
    block = pack.old.block.rows() if short else pack.old.block
    images = (rows(x) if short else x for x in (noise.image_KM, noise.coimage_KN))
    with quiet():
        q_lK, ratio_l = curvature_and_ratio(block, resolvent, *images)
        return tensor(q_lK.sum(1)[:, None] * noise.factor), ratio_l


def update_norm(
    operator: Operator,
    direction: Kernel,
    left_JM: Rows,
    right_JN: Rows,
    start_KN: Rows,
    rough: Operator | None = None,
) -> tuple[Rows, Rows, Rows, Rows]:
    """Return images of given vectors, ``s_1(U)`` (l,), and right vectors (l, K, N) for next time.

    The size is a lower bound but for rounding. A convolution's starts from the last step's top vector and from the wave
    at which the update is largest now, see :mod:`lipadvisor.spectra.wave`.

    Args:
        operator: geometry of the layers.
        direction: U (l, *kernel shape).
        left_JM: vectors whose images ``U'u`` (l, J, N) come second.
        right_JN: vectors whose images ``U v`` (l, J, M) come first.
        start_KN: right vectors of the last update.
        rough: the operator where exactness is not asked for; None finds out.
    """
    if isinstance(direction, Tensor) and few_outputs(operator) and direction.device.type == "cpu":
        images_JM, coimages_JN = apply(operator, direction, right_JN), adjoint(operator, direction, left_JM)
        return images_JM, coimages_JN, *decomposed_update(direction, start_KN)
    wave_1N = _waves(operator, direction, start_KN)
    if wave_1N is not None:
        images_JM, coimages_JN = apply(operator, direction, right_JN), adjoint(operator, direction, left_JM)
        if rough is None:
            assert isinstance(direction, Tensor)
            rough = roughly(operator, direction)
        return images_JM, coimages_JN, *wave_climbed(rough, direction, joined([start_KN[:, :1], wave_1N]))
    count = right_JN.shape[1]
    image_KM = apply(operator, direction, joined([right_JN, start_KN]))
    images_JM, own_KM = image_KM[:, :count], image_KM[:, count:]
    white_KK = None if isinstance(own_KM, Tensor) else whitening(own_KM, APART)
    left_KM = own_KM if white_KK is not None else orthonormal(own_KM)[0]
    coimage_KN = adjoint(operator, direction, joined([left_JM, left_KM]))
    coimages_JN, own_KN = coimage_KN[:, :count], coimage_KN[:, count:]
    if white_KK is None:
        basis_KN, upper_KK = orthonormal(own_KN)
        turn_KK, size_K, _ = decomposed(upper_KK)
        next_KN, size_l = turn_KK.mT @ basis_KN, size_K[:, 0]
    else:
        power_K, turn_KK = eigen(normal(white_KK @ wide(own_KN @ own_KN.mT) @ white_KK.mT))
        next_KN, size_l = unit(like(turn_KK.mT @ white_KK, own_KN) @ own_KN), like(root(power_K[:, 0]), own_KN)
    done_l = None
    if decides(operator, size_l):  # layers whose last vector has hardly moved are done, alone or with others
        done_l = size_l <= rising(size_l) * root(extremes(squares(own_KM))[1][..., 0])
        if done_l.all():
            return images_JM, coimages_JN, size_l, next_KN
    return images_JM, coimages_JN, *climbed(operator, direction, start_KN, own_KM, next_KN, size_l, done_l)


def _waves(operator: Operator, direction: Kernel, like: Rows) -> Rows | None:
    """Return vectors (l, 1, N) at which convolutions are large now; None for other layers."""
    if isinstance(operator, JoinedOperator):
        waves = [_waves(*part, like) for part in zip(operator.parts, direction, strict=True)]
        return None if waves[0] is None else filled(waves, operator.inputs)
    geometry, shared = _geometry(operator)
    if geometry is None:
        return None
    assert isinstance(direction, Tensor)
    wave_1N = wave_vectors(geometry, direction, *shared)
    return wave_1N if isinstance(like, Tensor) else rows(wave_1N)


def waved(operator: LayerOperator) -> bool:
    """Return whether the size of an update starts from a wave."""
    return _geometry(operator)[0] is not None


def _geometry(
    operator: LayerOperator,
) -> tuple[Conv2dOperator | ConvOperator | None, tuple[Callable[[Tensor], Tensor], ...]]:
    """Return the convolution that acts here, if there is one, and what adds up its shares elsewhere."""
    if not isinstance(operator, ShardedOperator):
        return (operator if isinstance(operator, Conv2dOperator | ConvOperator) else None), ()
    part = operator.part if isinstance(operator.part, Conv2dOperator | ConvOperator) else None
    return part, (operator.shard.add, operator.gather_inputs)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The vectors that U has to meet: the block's top pair, and what it turns into within the block."""

    left_JM: Rows  # the second is the turned one, where there is one
    right_JN: Rows
    turn_1R: Rows  # its place in the block

    @classmethod
    def of(cls, block: TrackedBlock, corner_RR: Rows, turned: bool) -> _Pairs:
        left_JM, right_JN = block.u_RM[:, :1], block.v_RN[:, :1]
        if turned:
            pair = turned_pair(block, corner_RR)
            return cls(joined([left_JM, pair.left_1M]), joined([right_JN, pair.right_1N]), pair.turn_1R)
        return cls(left_JM, right_JN, identity(block.s_R.shape[-1], corner_RR)[:, :1])


def _stretch(
    step: Passage, corner_RR: Rows, pairs: _Pairs, images_JM: Rows, coimages_JN: Rows
) -> tuple[Rows, Rows, Rows, Rows]:
    """Return s_1 (l,) after the stretch as predicted, the form q (l,), and what becomes of the complement.

    That is the image of what the top vector gains there, and its part of q, see :class:`Response`.
    """
    block, resolvent = step.block, step.resolvent
    split = split_change(block, images_JM, coimages_JN)
    image_1M, coimage_1N, turning = images_JM[:, -1:], coimages_JN[:, -1:], None
    first, last = ((split.p_KM[:, k], split.y_KN[:, k]) for k in (slice(1), slice(-1, None)))
    if images_JM.shape[1] > 1:
        turning = last
        if step.one_solve:
            first, turning = last, None
    z_1N, forms_l1 = resolvent.both(turning, *first)
    z_1N = outside(z_1N, block.v_RN)
    image_z_1M = apply(step.rough, step.moved, z_1N)
    top_l = moved_norm(block, corner_RR, pairs.turn_1R, image_1M, coimage_1N, step.length, z_1N, image_z_1M / step.kept)
    beyond_l = (squares(first[0]) + squares(first[1]))[:, 0]
    complement_l = forms_l1[:, 0] * block.s_R[:, 0] / at_least(beyond_l, TINY)
    return top_l, (split.block_K[:, :1] + forms_l1)[:, 0], image_z_1M * step.length, complement_l


def _stretches(whole: Passage, stretches: int) -> tuple[Rows, Rows]:
    """Return the predicted ratio of s_1 (l,) after a long step of several stretches, and the form q of the first."""
    operator, now, start, direction = whole.operator, whole.block, whole.old, whole.direction
    start = start.weights() if isinstance(start, Before) else start
    assert isinstance(start, Tensor)
    assert isinstance(direction, Tensor)
    assert whole.renew is not None
    length, resolvent = whole.length / stretches, whole.resolvent
    ratio_l, first_q_l = now.s_R[:, 0] * 0.0 + 1.0, None
    for index in range(stretches):
        if index:
            now = refresh(operator, start, now.v_RN, 2)
            resolvent = whole.renew(start, now)
        moved = start + direction * (length if isinstance(length, float) else tensor(length))
        image_RM = apply(operator, moved, now.v_RN)
        corner_RR = now.u_RM @ image_RM.mT
        pairs = _Pairs.of(now, corner_RR, True)
        images_JM = apply(operator, direction, pairs.right_JN)
        coimages_JN = adjoint(operator, direction, pairs.left_JM)
        step = replace(
            whole, resolvent=resolvent, block=now, old=start, moved=moved, image_RM=image_RM, length=length, kept=1.0
        )
        top_l, q_l, _, _ = _stretch(step, corner_RR, pairs, images_JM, coimages_JN)
        ratio_l = ratio_l * (top_l / now.s_R[:, 0])
        first_q_l = q_l if first_q_l is None else first_q_l
        start = moved
    return ratio_l, first_q_l
