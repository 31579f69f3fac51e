"""The size of an update, from vectors that are near its top to those that are there.

Between a start and one power more of it the largest image is looked for (block Krylov with restarts): where each step's
direction is new and many of its singular values are alike, that is worth several powers, at the passes over the update
of one.

Shapes: ``l`` layers, ``K`` vectors, ``J`` of two generations, ``M`` outputs, ``N`` inputs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lipadvisor.spectra.rows import (
    Kernel,
    Operator,
    Rows,
    adjoint,
    apply,
    at_least,
    decomposed,
    eigen,
    identity,
    joined,
    like,
    lower_factor,
    normal,
    root,
    solved,
    squares,
    unit,
    wide,
)
from lipadvisor.spectra.sharded import ShardedOperator

__all__ = ["climbed", "decides", "decomposed_update", "rising", "wave_climbed"]

# Rise of a size in half a power, up to which nothing more is asked: what a whole one adds was below 0.06 %.
RISING = 1.01
RISING_DOUBLE = 1.0 + 1e-8
GENERATIONS = 3  # at most, in float32
GENERATIONS_DOUBLE = 12  # exactness is what float64 is for
CLIMBING = 3  # vectors that go on; what is near the top changes places with it
DEPENDENT = 1e-5  # of unit rows: squared distance of one from the others below which it adds nothing to them
DEPENDENT_DOUBLE = 1e-11


def rising(x: Rows) -> float:
    """Return the rise in half a power from which a size in the type of ``x`` has still to be looked for."""
    return RISING_DOUBLE if wide(x[:0]).dtype == x.dtype else RISING


def climbed(
    operator: Operator,
    direction: Kernel,
    start_KN: Rows,
    image_KM: Rows,
    next_KN: Rows,
    size_l: Rows,
    done_l: Rows | None,
) -> tuple[Rows, Rows]:
    """Return ``s_1(U)`` (l,), a lower bound but for rounding, and right vectors (l, K, N) for next time.

    Args:
        operator: geometry of the layers.
        direction: U.
        start_KN: right vectors of length one.
        image_KM: their images ``U v``.
        next_KN: those of one power more, the top one first.
        size_l: what is known of the size.
        done_l: layers that are done, alone or with others: theirs stays as it is. None where numbers cannot be waited
            for (a device), or must be the same on several processes: one generation then.
    """
    double, next_KN = wide(size_l[:0]).dtype == size_l.dtype, next_KN[:, :CLIMBING]
    last = (GENERATIONS_DOUBLE if double else GENERATIONS) if done_l is not None else 1
    for _ in range(last):
        image_JM = joined([image_KM, apply(operator, direction, next_KN)])
        basis_JN = joined([start_KN, next_KN])
        mix_KJ = _largest(basis_JN, image_JM, next_KN.shape[-2])
        image_KM, start_KN = mix_KJ @ image_JM, mix_KJ @ basis_JN
        coimage_KN = adjoint(operator, direction, unit(image_KM))
        again_l, again_KN = root(squares(coimage_KN[:, 0])), unit(coimage_KN)
        if done_l is None:
            return again_l, again_KN
        risen_l = again_l > rising(size_l) * size_l
        size_l = _chosen(done_l, size_l, again_l)
        next_KN = _chosen(done_l[:, None, None], next_KN, again_KN)
        done_l = done_l | ~risen_l
        if done_l.all():
            break
    return size_l, next_KN


def decomposed_update(direction: Tensor, like_KN: Rows) -> tuple[Rows, Rows]:
    """Return ``s_1(U)`` (l,) and right vectors (l, K, N), at most ``CLIMBING``, of a matrix of few rows: to rounding.

    Args:
        direction: U (l, M, N).
        like_KN: of the kind that is returned.
    """
    update_MN: Rows = direction if isinstance(like_KN, Tensor) else direction.numpy()
    double_MN = wide(update_MN)
    power_M, turn_MM = eigen(normal(double_MN @ double_MN.mT))
    right_KN = unit(like(turn_MM.mT[:, :CLIMBING], update_MN) @ update_MN)
    return like(root(at_least(power_M[:, 0], 0.0)), update_MN), right_KN


def wave_climbed(operator: Operator, direction: Kernel, start_KN: Rows) -> tuple[Rows, Rows]:
    """Return the size (l,) and the top right vector (l, 1, N) of a convolution's update.

    Args:
        operator: geometry of the layers.
        direction: U.
        start_KN: unit rows: the last update's top vector, and a wave.
    """
    image_KM = apply(operator, direction, start_KN)
    next_KN = unit(adjoint(operator, direction, image_KM))
    image_JM, basis_JN = joined([image_KM, apply(operator, direction, next_KN)]), joined([start_KN, next_KN])
    mix_KJ = _largest(basis_JN, image_JM, start_KN.shape[-2])
    start_KN, image_KM = mix_KJ @ basis_JN, mix_KJ @ image_JM
    right_1N = unit(adjoint(operator, direction, image_KM[:, :1]))
    # The root of |U'U x| would save this application, and loses half a percent.
    image_1M = apply(operator, direction, right_1N)
    size_l = root(squares(image_1M))[:, 0]
    if not decides(operator, size_l):
        return size_l, right_1N
    done_l = size_l <= rising(size_l) * root(squares(image_KM[:, 0]))
    if done_l.all():
        return size_l, right_1N
    next_KN = unit(adjoint(operator, direction, joined([image_1M, image_KM[:, 1:]])))
    size_l, found_KN = climbed(operator, direction, start_KN, image_KM, next_KN, size_l, done_l)
    return size_l, found_KN[:, :1]


def _largest(basis_JN: Rows, image_JM: Rows, count: int) -> Rows:
    """Return what mixes unit rows, and their images, into the ``count`` whose images are largest (l, K, J)."""
    double = wide(image_JM[:0]).dtype == image_JM.dtype
    overlap_JJ, height_JJ = wide(basis_JN @ basis_JN.mT), wide(image_JM @ image_JM.mT)
    # The rows may be nearly dependent; what the floor hides of them is nothing that the size could miss.
    floor = DEPENDENT_DOUBLE if double else DEPENDENT
    unit_JJ = identity(overlap_JJ.shape[-1], overlap_JJ)
    white_JJ = solved(lower_factor(overlap_JJ + floor * unit_JJ), unit_JJ)
    turn_JK = decomposed(white_JJ @ height_JJ @ white_JJ.mT)[0][..., :count]
    return like(turn_JK.mT @ white_JJ, image_JM)


def _chosen(condition: Rows, x: Rows, other: Rows) -> Rows:
    return torch.where(condition, x, other) if isinstance(x, Tensor) else np.where(condition, x, other)


def decides(operator: Operator, x: Rows) -> bool:
    """Return whether numbers may be looked at: on a processor, and where no other process has to do the same."""
    return not isinstance(operator, ShardedOperator) and (not isinstance(x, Tensor) or x.device.type == "cpu")
