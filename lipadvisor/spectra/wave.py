"""A first guess at the top singular vector of a convolution: the plane wave at which its symbol is largest.

The singular vectors of a convolution on maps are close to waves under a wide envelope. Of a kernel that is new at every
step (an optimizer's update) the last step's vector says little where several waves are almost equally large; which of
them is the largest now, the kernel's own Fourier transform tells in a few thousand multiply-adds a channel pair.

Any number of dimensions, groups, transposes. With a stride ``s``, a convolution is one without between the finer map's
``s`` *phases* (entries ``s m + r`` for each r), taken as channels; a transpose is the adjoint of a convolution.

Shapes: ``l`` layers, ``g`` groups, ``O`` channels of a group on the coarse maps (what a convolution makes, what a
transpose is given), ``C`` channels x phases of a group on the fine ones, ``T`` taps, ``F`` frequencies, ``N`` inputs.

References:
    Sedghi, Gupta, Long (2019), *The Singular Values of Convolutional Layers*, Theorem 6 (the symbol of a circular one).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lipadvisor.spectra.conv2d import Conv2dOperator
from lipadvisor.spectra.convolution import ConvOperator

__all__ = ["wave_vectors"]

GRID = 8  # frequencies along a side, at least
FINE = 4  # frequencies for each tap: how smooth the symbol is, how many taps there are says
FEW_CHANNELS = 12  # (x phases) up to which the largest singular value at each frequency is worked out
SQUARINGS = 3  # of a symbol's Gram matrix: the trace is then that of its eighth power
ROUNDS = 3  # powers for the channels, at one frequency
TINY = 1e-30


@dataclass(frozen=True, slots=True)
class _Lattice:
    """What of a convolution matters to waves; of a transpose, the convolution that it is the adjoint of.

    Attributes:
        sizes: of a map of the domain.
        taps: of the kernel, along each dimension; likewise ``stride``, ``before`` (entries
            of padding) and ``dilation``.
        groups: of channels.
        transposed: the domain is the coarse side.
        periodic: maps have no ends.
    """

    sizes: tuple[int, ...]
    taps: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    periodic: bool = False


def wave_vectors(
    operator: Conv2dOperator | ConvOperator,
    kernel: Tensor,
    add: Callable[[Tensor], Tensor] = lambda x: x,
    gather: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """Return one unit vector (l, 1, N) for each layer; of nothing, for a kernel of zeros.

    Args:
        operator: geometry.
        kernel: (l, *kernel shape).
        add: what makes sums over the kernel's rows whole, where others hold more of them (no groups).
        gather: what makes vectors of the domain whole (..., N), where others hold more of their entries.
    """
    lattice = _lattice(operator)
    layers, groups, taps = len(kernel), lattice.groups, math.prod(lattice.taps)
    coarse = kernel.shape[1] // groups
    kernel_gOCT = kernel.reshape(layers * groups, coarse, kernel.shape[2], taps)
    cos_TF, sin_TF, same_TT, phase_TP = (x.to(kernel.device) for x in _waves(lattice, kernel.dtype))
    flat = kernel_gOCT.flatten(1, 2)
    if kernel_gOCT.shape[2] * phase_TP.shape[1] <= FEW_CHANNELS:
        best_g = _spectral_sizes(kernel_gOCT, cos_TF, sin_TF, phase_TP, add).argmax(1)
    else:
        # |K_f|^2 = e_f* Gram e_f; the channel pair with most of it is not looked for, only the frequency
        gram_gTT = add(flat.mT @ flat) * same_TT
        best_g = (((gram_gTT @ cos_TF) * cos_TF).sum(1) + ((gram_gTT @ sin_TF) * sin_TF).sum(1)).argmax(1)
    turned = torch.complex(flat * cos_TF.mT[best_g, None], flat * sin_TF.mT[best_g, None])
    symbol_gOC = (turned @ phase_TP.to(turned.dtype)).reshape(layers * groups, coarse, -1)
    channel_gC1 = _complex(add, symbol_gOC.mH.sum(2, keepdim=True))
    for _ in range(ROUNDS):
        channel_gC1 = channel_gC1 / _length(channel_gC1).clamp_min(TINY)
        channel_gC1 = _complex(add, symbol_gOC.mH @ (symbol_gOC @ channel_gC1))
    power_g = _length(channel_gC1)
    if lattice.transposed:
        channel_gC1 = symbol_gOC @ channel_gC1
    if groups > 1:  # one of a layer's groups has its largest value
        power_lg1 = power_g.reshape(layers, groups, 1)
        best_l1 = power_lg1.argmax(1, keepdim=True)
        best_g = best_g.reshape(layers, groups).gather(1, best_l1[..., 0]).squeeze(1)
        mine = (torch.arange(groups, device=kernel.device).reshape(1, -1, 1) == best_l1).to(kernel.dtype)
        channel_gC1 = channel_gC1.reshape(layers, groups, -1) * mine
    vector_1N = gather(_spread(lattice, channel_gC1.reshape(layers, -1), best_g))
    length_11: Tensor = torch.linalg.vector_norm(vector_1N, dim=-1, keepdim=True)
    return vector_1N / length_11.clamp_min(TINY)


def _spectral_sizes(
    kernel_gOCT: Tensor, cos_TF: Tensor, sin_TF: Tensor, phase_TP: Tensor, add: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return what is largest where the symbol's largest singular value is (g, F).

    Between few channels a symbol's entries may lie in one direction or in all, and their squares do not tell: over
    data without a structure they found a wave that was up to 1.3 times too small.
    """
    groups, coarse = kernel_gOCT.shape[:2]
    tap_TPF = phase_TP[..., None] * torch.complex(cos_TF, sin_TF)[:, None]
    symbol_gOCF = (kernel_gOCT.to(tap_TPF.dtype).flatten(0, 2) @ tap_TPF.flatten(1)).reshape(
        groups, coarse, -1, cos_TF.shape[1]
    )
    symbol_gFOC = symbol_gOCF.permute(0, 3, 1, 2)
    gram_gFCC = _complex(add, symbol_gFOC.mH @ symbol_gFOC)
    power_gF = torch.zeros_like(gram_gFCC[..., 0, 0].real)
    for doubling in range(SQUARINGS + 1):
        trace_gF = gram_gFCC.diagonal(0, -2, -1).real.sum(-1).clamp_min(TINY)
        power_gF += trace_gF.log() / 2**doubling
        gram_gFCC = gram_gFCC / trace_gF[..., None, None]
        gram_gFCC = gram_gFCC @ gram_gFCC
    return power_gF


def _lattice(operator: Conv2dOperator | ConvOperator) -> _Lattice:
    sizes, taps = operator.input_shape[1:], operator.kernel_shape[2:]
    if isinstance(operator, Conv2dOperator):
        return _Lattice(sizes, taps, operator.stride, operator.padding, operator.dilation, operator.groups)
    geometry = operator.geometry
    periodic = geometry.padding_mode == "circular"
    near = (sizes, taps, geometry.stride, geometry.before, geometry.dilation, geometry.groups)
    return _Lattice(*near, geometry.transposed, periodic)


def _spread(lattice: _Lattice, channel_lC: Tensor, best_l: Tensor) -> Tensor:
    """Return channels as waves of the frequencies ``best`` over the domain's maps (l, 1, N)."""
    dims, device = len(lattice.sizes), channel_lC.device
    wave: Tensor | None = None
    for dim, table_FN in enumerate(_maps(lattice, channel_lC.dtype)):
        one = table_FN.to(device)[best_l].reshape(-1, *[1] * dim, lattice.sizes[dim], *[1] * (dims - dim - 1))
        wave = one if wave is None else wave * one
    assert wave is not None
    wave = wave.flatten(1)
    if lattice.transposed or math.prod(lattice.stride) == 1:
        wave = channel_lC.unsqueeze(-1) * wave.unsqueeze(1)
    else:
        phases = len(_phases(lattice)[1])
        of_phase = channel_lC.unflatten(1, (-1, phases))
        none = torch.zeros_like(of_phase[..., :1])  # entries that no tap reads
        wave = torch.cat([of_phase, none], -1)[..., _phase_of_entry(lattice).to(device)] * wave.unsqueeze(1)
    vector_1N: Tensor = torch.view_as_real(wave.resolve_conj())[..., 0].reshape(len(channel_lC), 1, -1)
    return vector_1N


def _length(x_C1: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x_C1, dim=1, keepdim=True)
    return length


def _complex(add: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    total: Tensor = torch.view_as_complex(add(torch.view_as_real(x.resolve_conj())))
    return total


def _tap_places(lattice: _Lattice) -> tuple[list[Tensor], list[Tensor]]:
    """Return where each tap reads, along each dimension: the entry of its phase, and the phase (T,)."""
    rows = zip(lattice.taps, lattice.stride, lattice.before, lattice.dilation, strict=True)
    places = [torch.arange(k) * d - p for k, _, p, d in rows]
    whole = torch.meshgrid(*places, indexing="ij")
    strided = list(zip(whole, lattice.stride, strict=True))
    return (
        [(place.flatten() - place.flatten() % s) // s for place, s in strided],
        [place.flatten() % s for place, s in strided],
    )


def _phases(lattice: _Lattice) -> tuple[list[int], list[int]]:
    """Return which phase each tap reads (T), numbered through all dimensions, and those that any tap does (P)."""
    number = torch.zeros(math.prod(lattice.taps), dtype=torch.long)
    for phase, s in zip(_tap_places(lattice)[1], lattice.stride, strict=True):
        number = number * s + phase
    return number.tolist(), sorted(set(number.tolist()))


@lru_cache(maxsize=64)
def _frequencies(lattice: _Lattice) -> tuple[Tensor, ...]:
    """Return half of all frequencies along each side (F,): the others are their conjugates."""
    angles = []
    for dim, place in enumerate(_tap_places(lattice)[0]):
        count = max(GRID, FINE * int(place.max() - place.min() + 1))
        angle = torch.arange(count, dtype=torch.float64) * (2.0 * math.pi / count)
        angles.append(angle[: count // 2 + 1] if dim + 1 == len(lattice.taps) else angle)
    return tuple(angle.flatten() for angle in torch.meshgrid(*angles, indexing="ij"))


@lru_cache(maxsize=64)
def _waves(lattice: _Lattice, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return cosines and sines (T, F) of every frequency at every tap, which taps share a phase, and which one."""
    angle_TF = torch.zeros(())
    for place_T, frequency_F in zip(_tap_places(lattice)[0], _frequencies(lattice), strict=True):
        angle_TF = angle_TF + place_T.double()[:, None] * frequency_F
    number, phases = _phases(lattice)
    phase_TP = (torch.tensor(number)[:, None] == torch.tensor(phases)).to(dtype)
    return angle_TF.cos().to(dtype), angle_TF.sin().to(dtype), phase_TP @ phase_TP.mT, phase_TP


@lru_cache(maxsize=64)
def _maps(lattice: _Lattice, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return the wave of every frequency along each side of a map, under an envelope that ends with it (F, n)."""
    tables = []
    for dim, (size, frequency_F) in enumerate(zip(lattice.sizes, _frequencies(lattice), strict=True)):
        place_N = torch.arange(size)
        envelope_N = torch.sin(math.pi * (place_N.double() + 1) / (size + 1))
        coarse_N = place_N if lattice.transposed else place_N // lattice.stride[dim]
        if lattice.periodic:
            envelope_N = torch.ones_like(envelope_N)
        table_FN = torch.polar(envelope_N.expand(len(frequency_F), -1), frequency_F[:, None] * coarse_N.double())
        tables.append(table_FN.to(torch.complex128 if dtype == torch.float64 else torch.complex64))
    return tuple(tables)


@lru_cache(maxsize=64)
def _phase_of_entry(lattice: _Lattice) -> Tensor:
    """Return the place among the phases that taps read of each entry of a map (N,); one more for those unread."""
    number = torch.zeros((), dtype=torch.long)
    for dim, (size, s) in enumerate(zip(lattice.sizes, lattice.stride, strict=True)):
        along = (torch.arange(size) % s).reshape(*[1] * dim, -1, *[1] * (len(lattice.sizes) - dim - 1))
        number = number * s + along
    phases = _phases(lattice)[1]
    place = {phase: index for index, phase in enumerate(phases)}
    return torch.tensor([place.get(int(one), len(phases)) for one in number.flatten()])
