"""Groups of channels that share nothing: which of them may rise above those that a block follows.

A convolution in groups (depthwise: one channel each) is a block-diagonal operator. What a tracked block has of a group
outside of it decays to zeros, and nothing brings it back: a group that overtakes the others later would never be
found. One vector that has a part in every group costs no more to apply than any other, and one power of it, group by
group, says how large each of them is.

Shapes: ``l`` layers, ``G`` groups, ``R`` block, ``M`` outputs, ``N`` inputs, ``m`` and ``n`` of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipadvisor.spectra.block import TrackedBlock
from lipadvisor.spectra.conv2d import Conv2dOperator
from lipadvisor.spectra.convolution import ConvOperator
from lipadvisor.spectra.operator import LayerOperator
from lipadvisor.spectra.rows import squares, unit

__all__ = ["looked_around", "scout_vector", "wants_scout"]

FIRST_POWERS = 8  # of a random vector
STRANGE = 1e-2  # share of a group's vector inside of the block below which the block knows nothing of the group


def _groups(operator: LayerOperator | None) -> int:
    """Return the number of groups that a convolution's channels fall into; 1 for all other operators."""
    if isinstance(operator, Conv2dOperator):
        return operator.groups
    return operator.geometry.groups if isinstance(operator, ConvOperator) else 1


def wants_scout(operator: LayerOperator, rank: int) -> bool:
    """Return whether a block of ``rank`` vectors may know nothing of some group."""
    return _groups(operator) > 1 and rank < min(operator.inputs, operator.outputs)


def scout_vector(operator: LayerOperator, kernel: Tensor, start_1N: Tensor) -> Tensor:
    """Return right vectors (l, 1, N) of length 1 in every group, near the top of each, from random ones."""
    groups = _groups(operator)
    for _ in range(FIRST_POWERS):
        _, _, start_1N = _power(operator, kernel, start_1N, groups)
    return start_1N


def looked_around(
    operator: LayerOperator, kernel: Tensor, block: TrackedBlock, residual_l1: Tensor, scout_1N: Tensor
) -> tuple[TrackedBlock, Tensor, Tensor]:
    """Return block and residual with the largest group of which the block has nothing, and the scout for next time.

    That group's pair takes the place of the block's last one, if it is larger than that.

    Args:
        operator: of the layers, in groups.
        kernel: their weights.
        block: of these.
        residual_l1: of its top pair.
        scout_1N: what :func:`scout_vector` or this function returned last.
    """
    groups = _groups(operator)
    left_lGm, s_lG, scout_new_1N = _power(operator, kernel, scout_1N, groups)
    right_lGn = scout_new_1N.unflatten(-1, (groups, -1)).squeeze(1)
    inside_lG = torch.einsum("lrgn,lgn->lrg", block.v_RN.unflatten(-1, (groups, -1)), right_lGn).square().sum(1)
    s_l1, place_l1 = (s_lG * (inside_lG < STRANGE)).max(1, keepdim=True)
    only_lG1 = torch.zeros_like(s_lG).scatter_(1, place_l1, 1.0).unsqueeze(-1)
    better_l1 = s_l1 > block.s_R[:, -1:]
    off_l1 = torch.linalg.vector_norm((right_lGn - scout_1N.reshape(right_lGn.shape)) * only_lG1, dim=(1, 2))[:, None]
    u_1M, v_1N = ((x * only_lG1).flatten(1).unsqueeze(1) for x in (left_lGm, right_lGn))
    s_R = torch.cat([block.s_R[:, :-1], torch.where(better_l1, s_l1, block.s_R[:, -1:])], 1)
    u_RM, v_RN = (
        torch.cat([own[:, :-1], torch.where(better_l1.unsqueeze(-1), new, own[:, -1:])], 1)
        for own, new in ((block.u_RM, u_1M), (block.v_RN, v_1N))
    )
    s_R, order_R = s_R.sort(dim=1, descending=True, stable=True)
    risen_l1 = better_l1 & (order_R[:, :1] == block.s_R.shape[1] - 1)
    u_RM, v_RN = (torch.take_along_dim(x, order_R.unsqueeze(-1), 1) for x in (u_RM, v_RN))
    residual_l1 = torch.where(risen_l1, off_l1, residual_l1)
    return TrackedBlock(u_RM, s_R, v_RN, block.complete), residual_l1, scout_new_1N


def _power(operator: LayerOperator, kernel: Tensor, right_1N: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return left vectors (l, G, m), sizes (l, G) and right vectors (l, 1, N) of each group after one power."""
    image_lGm = operator.apply(kernel, right_1N).unflatten(-1, (groups, -1)).squeeze(1)
    left_lGm = unit(image_lGm)
    back_lGn = operator.adjoint(kernel, left_lGm.flatten(1).unsqueeze(1)).unflatten(-1, (groups, -1)).squeeze(1)
    s_lG = squares(back_lGn).sqrt()
    before_lGn = right_1N.unflatten(-1, (groups, -1)).squeeze(1)
    # A group of zeros, or of what is no number, keeps its vector: it may come back.
    right_lGn = torch.where(((s_lG > 0) & s_lG.isfinite()).unsqueeze(-1), unit(back_lGn), before_lGn)
    return left_lGm, s_lG, unit(right_lGn).flatten(1).unsqueeze(1)
