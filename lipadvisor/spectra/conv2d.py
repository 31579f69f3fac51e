"""The operator of ``nn.Conv2d``: the true zero-padded convolution on its real input size."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Conv2dOperator"]

SMALL_WORK = 600_000  # multiply-adds; measured on x86 with one thread


@dataclass(frozen=True, slots=True)
class Conv2dOperator:
    """``y = conv(x; kernel)`` with zero padding, on feature maps of a fixed size; one layer, leading ones allowed.

    Attributes:
        input_shape: (channels, height, width) of one input.
        kernel_shape: (out channels, in channels / groups, kernel height, kernel width).
        stride: of the convolution, likewise ``padding`` (symmetric, zeros), ``dilation`` and ``groups``.
        output_shape: (channels, height, width) of one output.
        inputs: number of entries of one input map.
        outputs: number of entries of one output map.
    """

    input_shape: tuple[int, int, int]
    kernel_shape: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    output_shape: tuple[int, int, int] = field(init=False)
    inputs: int = field(init=False)
    outputs: int = field(init=False)

    def __post_init__(self) -> None:
        """Work out the shape of the output, once: it is needed at every application."""
        height, width = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(
                self.input_shape[1:], self.padding, self.dilation, self.kernel_shape[2:], self.stride, strict=True
            )
        )
        object.__setattr__(self, "output_shape", (self.kernel_shape[0], height, width))
        object.__setattr__(self, "inputs", math.prod(self.input_shape))
        object.__setattr__(self, "outputs", math.prod(self.output_shape))

    def apply(self, kernel: Tensor, x_KN: Tensor) -> Tensor:
        """Return the convolutions (K, M) of the flat maps (K, N)."""
        y = self._convolve(kernel.reshape(self.kernel_shape), x_KN.reshape(-1, *self.input_shape))
        return y.reshape(*x_KN.shape[:-1], self.outputs)

    def adjoint(self, kernel: Tensor, y_KM: Tensor) -> Tensor:
        """Return the adjoint convolutions (K, N) of the flat maps (K, M)."""
        y = y_KM.reshape(-1, *self.output_shape)
        # Only the shape of the input is read when its gradient is asked for.
        x = y.new_empty(1).expand(y.shape[0], *self.input_shape)
        gradients = self._backward(y, x, kernel.reshape(self.kernel_shape), (True, False, False))
        return gradients[0].reshape(*y_KM.shape[:-1], self.inputs)

    def outer(self, y_KM: Tensor, x_KN: Tensor) -> Tensor:
        """Return the kernel-shaped ``sum_k d <y_k, conv(x_k; kernel)> / d kernel``."""
        return self._kernel_gradient(y_KM.reshape(-1, *self.output_shape), x_KN.reshape(-1, *self.input_shape))

    def sample_scalars(self, kernel: Tensor, input_B: Tensor, grad_B: Tensor) -> Tensor:
        """Return ``<d_i, conv(a_i; kernel)>`` (B,)."""
        return (self._convolve(kernel, input_B) * grad_B).flatten(1).sum(1)

    def weighted_gradient(self, weight_B: Tensor, input_B: Tensor, grad_B: Tensor) -> Tensor:
        """Return ``sum_i w_i g_i`` of the kernel's shape: one weight-gradient computation."""
        return self._kernel_gradient(grad_B * weight_B.reshape(-1, 1, 1, 1), input_B)

    def _is_small(self, x: Tensor) -> bool:
        """Return whether the plain CPU kernel beats the library's, whose set-up costs more than so small a product."""
        work = x.shape[0] * math.prod(self.output_shape) * math.prod(self.kernel_shape[1:])
        return work < SMALL_WORK and x.device.type == "cpu" and self.groups == 1 and self.dilation == (1, 1)

    def _convolve(self, kernel: Tensor, x: Tensor) -> Tensor:
        if self._is_small(x):
            taps = self.kernel_shape[2:]
            small: Tensor = torch.ops.aten._slow_conv2d_forward(x, kernel, taps, None, self.stride, self.padding)
            return small
        return torch.nn.functional.conv2d(x, kernel, None, self.stride, self.padding, self.dilation, self.groups)

    def _kernel_gradient(self, y: Tensor, x: Tensor) -> Tensor:
        kernel = y.new_empty(1).expand(self.kernel_shape)
        return self._backward(y, x, kernel, (False, True, False))[1]

    def _backward(
        self, y: Tensor, x: Tensor, kernel: Tensor, mask: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self._is_small(x):
            taps = self.kernel_shape[2:]
            x, kernel = x.contiguous(), kernel.contiguous()
            small: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._slow_conv2d_backward.output_mask(
                y.contiguous(), x, kernel, taps, self.stride, self.padding, mask
            )
            return small
        gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            y, x, kernel, None, self.stride, self.padding, self.dilation, False, (0, 0), self.groups, mask
        )
        return gradients
