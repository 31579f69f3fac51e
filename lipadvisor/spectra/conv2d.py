"""The operator of ``nn.Conv2d``: the true zero-padded convolution on its real input size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Conv2dOperator"]


@dataclass(frozen=True, slots=True)
class Conv2dOperator:
    """``y = conv(x; kernel)`` with zero padding, on feature maps of a fixed size.

    Attributes:
        input_shape: (channels, height, width) of one input.
        kernel_shape: (out channels, in channels / groups, kernel height, kernel width).
        stride: of the convolution, likewise ``padding`` (symmetric, zeros), ``dilation`` and ``groups``.
    """

    input_shape: tuple[int, int, int]
    kernel_shape: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one output."""
        size = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(
                self.input_shape[1:], self.padding, self.dilation, self.kernel_shape[2:], self.stride, strict=True
            )
        ]
        return (self.kernel_shape[0], size[0], size[1])

    @property
    def inputs(self) -> int:
        """Number of entries of one input map."""
        return math.prod(self.input_shape)

    @property
    def outputs(self) -> int:
        """Number of entries of one output map."""
        return math.prod(self.output_shape)

    def apply(self, kernel: Tensor, x_KN: Tensor) -> Tensor:
        """Return the convolutions (K, M) of the flat maps (K, N)."""
        return self._convolve(kernel, x_KN.reshape(-1, *self.input_shape)).flatten(1)

    def adjoint(self, kernel: Tensor, y_KM: Tensor) -> Tensor:
        """Return the adjoint convolutions (K, N) of the flat maps (K, M)."""
        y = y_KM.reshape(-1, *self.output_shape)
        # Only the shape of the input is read when its gradient is asked for.
        x = y.new_empty(1).expand(y.shape[0], *self.input_shape)
        return self._backward(y, x, kernel, (True, False, False))[0].flatten(1)

    def outer(self, y_KM: Tensor, x_KN: Tensor) -> Tensor:
        """Return the kernel-shaped ``sum_k d <y_k, conv(x_k; kernel)> / d kernel``."""
        return self._kernel_gradient(y_KM.reshape(-1, *self.output_shape), x_KN.reshape(-1, *self.input_shape))

    def sample_scalars(self, kernel: Tensor, input_B: Tensor, grad_B: Tensor) -> Tensor:
        """Return ``<d_i, conv(a_i; kernel)>`` (B,)."""
        return (self._convolve(kernel, input_B) * grad_B).flatten(1).sum(1)

    def weighted_gradient(self, weight_B: Tensor, input_B: Tensor, grad_B: Tensor) -> Tensor:
        """Return ``sum_i w_i g_i`` of the kernel's shape: one weight-gradient computation."""
        return self._kernel_gradient(grad_B * weight_B.reshape(-1, 1, 1, 1), input_B)

    def _convolve(self, kernel: Tensor, x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, kernel, None, self.stride, self.padding, self.dilation, self.groups)

    def _kernel_gradient(self, y: Tensor, x: Tensor) -> Tensor:
        kernel = y.new_empty(1).expand(self.kernel_shape)
        return self._backward(y, x, kernel, (False, True, False))[1]

    def _backward(
        self, y: Tensor, x: Tensor, kernel: Tensor, mask: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            y, x, kernel, None, self.stride, self.padding, self.dilation, False, (0, 0), self.groups, mask
        )
        return gradients
