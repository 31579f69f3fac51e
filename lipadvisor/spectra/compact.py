"""A convolution's kernel between few channels: what a batch's projections on ``d s_1 / d kernel`` are cheap with.

The top pair of a convolution on large maps varies smoothly over them, so that its channels move together: the Jacobian
of s_1 is nearly of low rank in its input channels and in its output channels. Between the leading few of both, a
projection of a sample costs two reads of its maps and a convolution of few channels.

Shapes: ``O`` output channels, ``C`` input channels, ``P`` and ``Q`` the kept ones, ``B`` samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipadvisor.spectra.conv2d import Conv2dOperator

__all__ = ["ROUGH", "SMOOTH", "CompactKernel", "compact_kernel"]

SMOOTH, ROUGH = 6, 16  # channels kept on either side, where the top pair varies smoothly over the maps and where not
SMOOTH_SIDE = 16  # entries of an output map from which it does, with a stride of 1
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
        return (few.flatten(2) * (self.out_PO @ grad_B.flatten(2))).flatten(1).sum(1)


def compact_kernel(operator: Conv2dOperator, kernel: Tensor) -> CompactKernel | None:
    """Return a kernel between few channels; None where there is nothing to gain, or where exactness is asked for.

    With kernels of random entries, projections are wrong by 1e-3 of their spread where maps are large (1e-4 in
    training), by up to 1e-2 where they are small; their variance by no more.

    Args:
        operator: geometry of the layer.
        kernel: near one of low rank, float32; float64 asks for exactness.
    """
    outputs, inputs = kernel.shape[:2]
    smooth = operator.stride == (1, 1) and min(operator.output_shape[1:]) >= SMOOTH_SIDE
    channels = SMOOTH if smooth else ROUGH
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
