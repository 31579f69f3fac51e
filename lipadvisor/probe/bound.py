"""What can be said of a layer's spectrum before its operator is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipadvisor.probe.kinds.sharded import sharded_bound
from lipadvisor.probe.layers import TrackedLayer

__all__ = ["bound_row"]


def bound_row(layer: TrackedLayer) -> Tensor:
    """Return the spectrum (1, 5) of a convolution of unknown input size: sqrt(taps) times its matrix's, a bound.

    Its matrix is (first dimension) x (the rest), for a transpose that of the convolution it is the adjoint of.
    """
    if layer.shares:
        return sharded_bound(layer)
    weight = layer.weight.detach()
    weight = weight if weight.dtype == torch.float64 else weight.float()
    s_R = torch.linalg.svdvals(torch.nan_to_num(weight.flatten(1)))
    taps = math.prod(weight.shape[2:])
    second = s_R[1] if len(s_R) > 1 else torch.zeros_like(s_R[0])
    loose = torch.ones_like(second)
    return torch.stack([s_R[0] * taps**0.5, second * taps**0.5, second * 0.0, weight.square().sum(), loose])[None]
