"""A first guess at the top singular vector of a convolution: the plane wave at which its symbol is largest.

The singular vectors of a convolution on maps are close to waves under a wide envelope. Of a kernel that is new at every
step (an optimizer's update) the last step's vector says little where several waves are almost equally large; which of
them is the largest now, the kernel's own Fourier transform tells in a few thousand multiply-adds a channel pair.

Shapes: ``l`` layers, ``O`` and ``C`` channels, ``T`` taps, ``F`` frequencies, ``N`` inputs of the operator.

References:
    Sedghi, Gupta, Long (2019), *The Singular Values of Convolutional Layers*, Theorem 6 (the symbol of a circular one).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from lipadvisor.spectra.conv2d import Conv2dOperator

__all__ = ["wave_vectors"]

GRID = 8  # frequencies along a side: the symbol of a kernel of few taps is smooth
ROUNDS = 3  # powers for the channels, at one frequency
TINY = 1e-30


def wave_vectors(operator: Conv2dOperator, kernel: Tensor, add: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """Return one unit vector (l, 1, N) for each layer; of nothing, for a kernel of zeros.

    Args:
        operator: geometry, without groups.
        kernel: (l, O, C, *taps).
        add: what makes sums over the outputs whole, where others hold more of them.
    """
    layers, outputs, inputs = kernel.shape[:3]
    cos_TF, sin_TF = _waves(operator.kernel_shape[2], operator.kernel_shape[3], operator.dilation, kernel.dtype)
    cos_TF, sin_TF = cos_TF.to(kernel.device), sin_TF.to(kernel.device)
    taps_lTP = kernel.flatten(3).flatten(1, 2).mT
    gram_lTT = add(taps_lTP @ taps_lTP.mT)
    # |K_f|^2 = e_f* Gram e_f; the channel pair with most of it is not looked for, only the frequency
    size_lF = ((gram_lTT @ cos_TF) * cos_TF).sum(1) + ((gram_lTT @ sin_TF) * sin_TF).sum(1)
    best_l = size_lF.argmax(1)
    cos_lT1, sin_lT1 = cos_TF.mT[best_l].unsqueeze(-1), sin_TF.mT[best_l].unsqueeze(-1)
    taps = kernel.flatten(3).flatten(1, 2)
    symbol = torch.complex(taps @ cos_lT1, taps @ sin_lT1).reshape(layers, outputs, inputs)
    channel_lC1 = _complex(add, symbol.mH.sum(2, keepdim=True))
    for _ in range(ROUNDS):
        channel_lC1 = channel_lC1 / torch.linalg.vector_norm(channel_lC1, dim=1, keepdim=True).clamp_min(TINY)
        channel_lC1 = _complex(add, symbol.mH @ (symbol @ channel_lC1))
    wave = channel_lC1 * _maps(operator, kernel.dtype).to(kernel.device)[best_l].unsqueeze(1)
    vector_1N: Tensor = torch.view_as_real(wave.resolve_conj())[..., 0].reshape(layers, 1, -1)
    size: Tensor = torch.linalg.vector_norm(vector_1N, dim=-1, keepdim=True)
    return vector_1N / size.clamp_min(TINY)


def _complex(add: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    total: Tensor = torch.view_as_complex(add(torch.view_as_real(x.resolve_conj())))
    return total


def _frequencies() -> tuple[Tensor, Tensor]:
    """Return half of all frequencies along both sides (F,): the others are their conjugates."""
    angle = torch.arange(GRID, dtype=torch.float64) * (2.0 * math.pi / GRID)
    across = angle[: GRID // 2 + 1]
    return angle.repeat_interleave(len(across)), across.repeat(GRID)


@lru_cache(maxsize=32)
def _waves(rows: int, columns: int, dilation: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (T, F) of every frequency at every tap."""
    down_F, across_F = _frequencies()
    row_T = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns) * dilation[0]
    column_T = torch.arange(columns, dtype=torch.float64).repeat(rows) * dilation[1]
    phase_TF = row_T[:, None] * down_F + column_T[:, None] * across_F
    return phase_TF.cos().to(dtype), phase_TF.sin().to(dtype)


@lru_cache(maxsize=32)
def _maps(operator: Conv2dOperator, dtype: torch.dtype) -> Tensor:
    """Return the wave of every frequency on an input map, under an envelope that ends with it (F, H W), complex."""
    height, width = operator.input_shape[1:]
    down_F, across_F = _frequencies()
    row_H, column_W = torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64)
    phase = row_H[:, None] * down_F[:, None, None] + column_W * across_F[:, None, None]
    envelope = torch.sin(math.pi * (row_H[:, None] + 1) / (height + 1)) * torch.sin(
        math.pi * (column_W + 1) / (width + 1)
    )
    wave = torch.polar(envelope.expand_as(phase).contiguous(), phase).flatten(1)
    return wave.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
