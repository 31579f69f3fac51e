"""Inputs and output gradients of a matrix's calls, brought into one order: samples first, then places.

Shapes: ``B`` samples, ``T`` places, ``n`` inputs or outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["either_way", "join", "padded", "samples_first"]


def samples_first(pair: tuple[Tensor, Tensor], samples: int | None) -> tuple[Tensor, Tensor]:
    """Return inputs and gradients (B, T, n) of a layer that may have been given (T, B, n) within the model."""
    x, d = pair
    if samples is None or x.shape[0] == samples or x.shape[1] != samples:
        return pair
    return x.transpose(0, 1), d.transpose(0, 1)


def either_way(x: Tensor, samples: int | None) -> bool:
    """Return whether (B, T, ...) and (T, B, ...) cannot be told apart: there are as many places as samples."""
    return samples is not None and samples > 1 and x.shape[0] == x.shape[1] == samples


def padded(pair: tuple[Tensor, Tensor], places: int) -> tuple[Tensor, Tensor]:
    """Return inputs and gradients with as many places as the longest batch has: zeros add nothing."""
    more = places - pair[0].shape[1]
    x, d = (nn.functional.pad(t, (0, 0, 0, more)) if more else t for t in pair)
    return x, d


def join(pairs: list[tuple[Tensor, Tensor]], dim: int) -> tuple[Tensor, Tensor]:
    """Return pairs one behind the other."""
    return torch.cat([x for x, _ in pairs], dim), torch.cat([d for _, d in pairs], dim)
