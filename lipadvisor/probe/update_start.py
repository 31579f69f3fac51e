"""Where the search for the size of a matrix's update starts.

The last update's vectors are a good start where updates change slowly. Where each step's direction is new (plain
gradient steps of small batches, the first steps of any optimizer) they know little of it, and the largest rows of the
update itself, the two largest, do. Convolutions start from a wave instead, see :mod:`lipadvisor.spectra.wave`.

Shapes: ``l`` layers of a pack, ``K`` vectors, ``r`` rows, ``N`` inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipadvisor.probe.pack import UPDATE_RANK
from lipadvisor.spectra import LayerOperator, LinearOperator
from lipadvisor.spectra.rows import Operator, orthonormal, unit

__all__ = ["few_outputs", "update_start"]

ROWS = 2  # of the update, the largest ones
DECOMPOSED = 16  # outputs, at most, of a matrix whose update's Gram matrix is decomposed
FIRST_POWERS = 4  # where there was no update before, once in a run: an optimizer's first one has many directions alike


def few_outputs(operator: Operator) -> bool:
    """Return whether an update of this matrix is decomposed whole: it costs less than looking for its top."""
    return isinstance(operator, LinearOperator) and operator.outputs <= DECOMPOSED


def update_start(
    operator: LayerOperator, direction: Tensor, length_lr: Tensor, last_KN: Tensor, first: bool = False
) -> Tensor:
    """Return right vectors (l, K, N) to start from: the last ones, and of matrices the update's largest rows.

    Args:
        operator: geometry of the layers.
        direction: U.
        length_lr: of its rows.
        last_KN: right vectors of the update before, with the rows that were added to them, if any.
        first: there was none: they are of something else.
    """
    if few_outputs(operator):
        return last_KN
    if not isinstance(operator, LinearOperator) or min(operator.inputs, operator.outputs) <= UPDATE_RANK:
        return last_KN
    place_lrN = length_lr.topk(ROWS, -1).indices[..., None].expand(-1, -1, operator.inputs)
    start_KN: Tensor = unit(torch.cat([last_KN[:, :UPDATE_RANK], direction.gather(1, place_lrN)], 1))
    for _ in range(FIRST_POWERS if first else 0):
        start_KN, _ = orthonormal(operator.adjoint(direction, operator.apply(direction, start_KN)))
    return start_KN
