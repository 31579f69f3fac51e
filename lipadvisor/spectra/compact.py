"""A convolution's kernel between few channels: what a batch's projections on ``d s_1 / d kernel`` are cheap with.

The top pair of a convolution on large maps varies smoothly over them, so that its channels move together: the Jacobian
of s_1 is nearly of low rank in its input channels and in its output channels. Between the leading few of both, a
projection of a sample costs two reads of its maps and a convolution of few channels.

So do the images ``g_i v`` and ``g_i' u`` of a sample's gradient: what a kernel does to ``v`` is what it does to the
patches of ``v``, and these are sums of few patterns.

Shapes: ``O`` output channels, ``C`` input channels, ``P`` and ``Q`` the kept ones, ``B`` samples, ``E`` patterns,
``Y`` and ``X`` places of an output and of an input map, ``M`` outputs, ``N`` inputs of the operator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipadvisor.spectra.conv2d import Conv2dOperator

__all__ = ["ROUGH", "SMOOTH", "CompactKernel", "Sketch", "compact_kernel", "sketch"]

SMOOTH, ROUGH = 6, 16  # channels kept on either side, where the top pair varies smoothly over the maps and where not
SMOOTH_SIDE = 16  # entries of an output map from which it does, with a stride of 1
PATTERNS = 8  # of a patch: what is left out of u and v is 1e-4 to 1e-2 of their squares
_ROUNDS = 2  # of subspace iteration: the leading channels stand out


@dataclass(frozen=True, slots=True)
class CompactKernel:
    """``kernel = sum_pq out_p core_pq in_q``, with orthonormal rows ``out_PO`` and ``in_QC``."""

    operator: Conv2dOperator
    out_PO: Tensor
    core: Tensor  # (P, Q, *taps)
    in_QC: Tensor

    def sample_scalars(self, input_B: Tensor, grad_B: Tensor) -> Tensor:
        """Return ``<d_i, conv(a_i; kernel)>`` (B,)."""
        few = (self.in_QC @ input_B.flatten(2)).unflatten(2, input_B.shape[2:])
        geometry = self.operator
        few = torch.nn.functional.conv2d(few, self.core, None, geometry.stride, geometry.padding, geometry.dilation)
        return (self.out_PO @ grad_B.flatten(2)).mul_(few.flatten(2)).flatten(1).sum(1)


@dataclass(frozen=True, slots=True)
class Sketch:
    """The top pair as few patterns: what a batch's gradients are asked for, see :func:`sketch`."""

    kernel: CompactKernel
    of_input: Tensor  # (E, Q, *taps), orthonormal patterns of the patches of v
    of_output: Tensor  # (E, P, *taps), the same of u
    place_EY: Tensor  # how much of each pattern is at each place: patches of v = sum_e of_input_e place_e
    place_EX: Tensor

    @property
    def core(self) -> Tensor:
        """The kernel between the kept channels (P, Q, *taps)."""
        return self.kernel.core

    def samples(self, input_B: Tensor, grad_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``<g_i, J>`` (B,), and each sample's gradient between patterns and channels (B, O, E), (B, C, E)."""
        kernel, operator = self.kernel, self.kernel.operator
        few = (kernel.in_QC @ input_B.flatten(2)).unflatten(2, input_B.shape[2:])
        few_d = kernel.out_PO @ grad_B.flatten(2)
        both = torch.cat([kernel.core, self.of_input])
        seen = torch.nn.functional.conv2d(few, both, None, 1, operator.padding, operator.dilation).flatten(2)
        kept = len(kernel.core)
        scalars_B = seen[:, :kept].mul_(few_d).flatten(1).sum(1)
        left_BOE = grad_B.flatten(2) @ seen[:, kept:].mT
        few_d, around = few_d.unflatten(2, grad_B.shape[2:]), _around(operator)
        back = torch.nn.functional.conv2d(few_d, self.of_output, None, 1, around, operator.dilation)
        return scalars_B, left_BOE, input_B.flatten(2) @ back.flatten(2).mT

    def images(self, left_KOE: Tensor, right_KCE: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``G v`` (K, M) and ``G' u`` (K, N) of sums G of the samples' gradients."""
        return (left_KOE @ self.place_EY).flatten(1), (right_KCE @ self.place_EX).flatten(1)


def sketch(kernel: CompactKernel, u_1M: Tensor, v_1N: Tensor) -> Sketch | None:
    """Return the top pair as patterns; None where it does not vary smoothly over the maps.

    Good for estimates: images are wrong by the root of what is left out, 1 to 9 % with kernels of random entries.

    Args:
        kernel: the Jacobian, whose channels are kept.
        u_1M: top left vector.
        v_1N: top right vector.
    """
    operator = kernel.operator
    around = _around(operator)
    if not _smooth(operator) or min(around) < 0:
        return None
    taps, dilation = operator.kernel_shape[2:], operator.dilation
    v, u = v_1N.reshape(operator.input_shape), u_1M.reshape(operator.output_shape)
    v = (kernel.in_QC @ v.flatten(1)).unflatten(1, v.shape[1:])
    u = (kernel.out_PO @ u.flatten(1)).unflatten(1, u.shape[1:])
    patches_v = torch.nn.functional.unfold(v[None], taps, dilation, operator.padding)[0]
    patches_u = torch.nn.functional.unfold(u[None], taps, dilation, around)[0]
    of_input, of_output = (_leading(p, min(PATTERNS, len(p))) for p in (patches_v, patches_u))
    return Sketch(
        kernel,
        of_input.reshape(-1, len(v), *taps),
        of_output.reshape(-1, len(u), *taps),
        of_input @ patches_v,
        of_output @ patches_u,
    )


def _smooth(operator: Conv2dOperator) -> bool:
    return operator.stride == (1, 1) and min(operator.output_shape[1:]) >= SMOOTH_SIDE


def _around(operator: Conv2dOperator) -> tuple[int, int]:
    """Return the padding with which the adjoint of a convolution of stride 1 is one itself."""
    (high, wide), (down, across), (p, q) = operator.kernel_shape[2:], operator.dilation, operator.padding
    return down * (high - 1) - p, across * (wide - 1) - q


def compact_kernel(operator: Conv2dOperator, kernel: Tensor) -> CompactKernel | None:
    """Return a kernel between few channels; None where there is nothing to gain, or where exactness is asked for.

    With kernels of random entries, projections are wrong by 1e-3 of their spread where maps are large (1e-4 in
    training), by up to 1e-2 where they are small; their variance by no more.

    Args:
        operator: geometry of the layer.
        kernel: near one of low rank, float32; float64 asks for exactness.
    """
    outputs, inputs = kernel.shape[:2]
    channels = SMOOTH if _smooth(operator) else ROUGH
    if kernel.dtype == torch.float64 or operator.groups != 1 or outputs < 2 * channels:
        return None
    out_PO = _leading(kernel.flatten(1), channels)
    if inputs <= channels:
        in_QC = torch.eye(inputs, dtype=kernel.dtype, device=kernel.device)
    else:
        in_QC = _leading(kernel.transpose(0, 1).flatten(1), channels)
    core = (out_PO @ kernel.flatten(1)).unflatten(1, kernel.shape[1:])
    core = (in_QC @ core.flatten(2)).unflatten(2, kernel.shape[2:])
    return CompactKernel(operator, out_PO, core, in_QC)


def _leading(matrix: Tensor, count: int) -> Tensor:
    """Return ``count`` orthonormal rows that span the leading left singular vectors of ``matrix``."""
    random = torch.randn(len(matrix), count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = random.to(matrix)
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(matrix @ (matrix.mT @ basis))[0]
    return basis.mT.contiguous()
