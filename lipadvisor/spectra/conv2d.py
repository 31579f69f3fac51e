"""The operator of ``nn.Conv2d``: the true zero-padded convolution on its real input size.

Layers of one geometry are convolved together, as the groups of one convolution: a few maps at a time the library's
kernels take up to twice as long layer by layer, and every call has its price.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from lipadvisor.spectra.linear import has_bfloat16
from lipadvisor.spectra.operator import LayerOperator

__all__ = ["Conv2dOperator", "roughly"]

# All measured on x86 with one thread.
SMALL_WORK = 600_000  # multiply-adds of a call up to which the plain kernel beats the library's
FEW_CHANNELS = 4  # of the input, up to which it does for maps of any number
GROUPED = 400_000  # entries of all maps of a call up to which layers are taken together: then the cache is too small


@dataclass(frozen=True, slots=True)
class Conv2dOperator:
    """``y = conv(x; kernel)`` with zero padding, on feature maps of a fixed size.

    Kernels (l, *kernel_shape) and maps (l, K, N) are of as many layers; for one layer both may do without.

    Attributes:
        input_shape: (channels, height, width) of one input.
        kernel_shape: (out channels, in channels / groups, kernel height, kernel width).
        stride: of the convolution, likewise ``padding`` (symmetric, zeros), ``dilation`` and ``groups``.
        rough: products in bfloat16, where that is quicker: 0.3 % of an entry, at random, in half of the time.
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
    rough: bool = False

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
        return self._by_layers(self._convolve, kernel, x_KN, self.input_shape, self.output_shape)

    def adjoint(self, kernel: Tensor, y_KM: Tensor) -> Tensor:
        """Return the adjoint convolutions (K, N) of the flat maps (K, M)."""
        return self._by_layers(self._transpose, kernel, y_KM, self.output_shape, self.input_shape)

    def outer(self, y_KM: Tensor, x_KN: Tensor) -> Tensor:
        """Return the kernel-shaped ``sum_k d <y_k, conv(x_k; kernel)> / d kernel``."""
        return self._kernel_gradient(y_KM.reshape(-1, *self.output_shape), x_KN.reshape(-1, *self.input_shape))

    def sample_scalars(self, kernel: Tensor, input_B: Tensor, grad_B: Tensor) -> Tensor:
        """Return ``<d_i, conv(a_i; kernel)>`` (B,)."""
        return self._convolve(kernel, input_B).mul_(grad_B).flatten(1).sum(1)

    def weighted_gradient(self, weight_B: Tensor, input_B: Tensor, grad_B: Tensor) -> Tensor:
        """Return ``sum_i w_i g_i`` of the kernel's shape: one weight-gradient computation."""
        return self._kernel_gradient(grad_B * weight_B.reshape(-1, 1, 1, 1), input_B)

    def _by_layers(
        self,
        act: Callable[[Tensor, Tensor, int], Tensor],
        kernel: Tensor,
        x_KN: Tensor,
        shape: tuple[int, int, int],
        made: tuple[int, int, int],
    ) -> Tensor:
        """Return the flat maps that ``act`` makes of flat ones, for as many layers at once as is quick."""
        layers = kernel.numel() // math.prod(self.kernel_shape)
        if (
            self.rough
            and has_bfloat16(x_KN)
            and not (layers == 1 and self._is_small(x_KN, math.prod(x_KN.shape[:-1]), maps=True))
        ):
            own = x_KN.dtype
            return self._grouped(act, kernel.bfloat16(), x_KN.bfloat16(), shape, made).to(own)
        return self._grouped(act, kernel, x_KN, shape, made)

    def _grouped(
        self,
        act: Callable[[Tensor, Tensor, int], Tensor],
        kernel: Tensor,
        x_KN: Tensor,
        shape: tuple[int, int, int],
        made: tuple[int, int, int],
    ) -> Tensor:
        layers = kernel.numel() // math.prod(self.kernel_shape)
        if layers == 1:
            return act(kernel.reshape(self.kernel_shape), x_KN.reshape(-1, *shape), 1).reshape(*x_KN.shape[:-1], -1)
        vectors = x_KN.shape[1]
        together = max(1, GROUPED // (vectors * (self.inputs + self.outputs)))
        parts = []
        for start in range(0, layers, together):
            kernels, maps = kernel[start : start + together], x_KN[start : start + together]
            count = len(kernels)
            y = act(
                kernels.reshape(count * self.kernel_shape[0], *self.kernel_shape[1:]),
                maps.transpose(0, 1).reshape(vectors, count * shape[0], *shape[1:]),
                count,
            )
            parts.append(y.view(vectors, count, math.prod(made)).transpose(0, 1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _is_small(self, x: Tensor, vectors: int, maps: bool) -> bool:
        """Return whether the plain CPU kernel beats the library's, whose set-up costs more than so small a product.

        Args:
            x: maps.
            vectors: their number.
            maps: whether maps are made; a kernel's gradient of few channels is the library's.
        """
        if x.device.type != "cpu" or x.dtype == torch.bfloat16 or self.groups != 1 or self.dilation != (1, 1):
            return False
        if maps and self.kernel_shape[1] <= FEW_CHANNELS:
            return True
        return vectors * math.prod(self.output_shape) * math.prod(self.kernel_shape[1:]) < SMALL_WORK

    def _convolve(self, kernel: Tensor, x: Tensor, layers: int = 1) -> Tensor:
        if layers == 1 and self._is_small(x, len(x), maps=True):
            taps = self.kernel_shape[2:]
            small: Tensor = torch.ops.aten._slow_conv2d_forward(x, kernel, taps, None, self.stride, self.padding)
            return small
        groups = self.groups * layers
        return torch.nn.functional.conv2d(x, kernel, None, self.stride, self.padding, self.dilation, groups)

    def _transpose(self, kernel: Tensor, y: Tensor, layers: int = 1) -> Tensor:
        # Only the shape of the input is read when its gradient is asked for.
        x = y.new_empty(1).expand(y.shape[0], layers * self.input_shape[0], *self.input_shape[1:])
        return self._backward(y, x, kernel, (True, False, False), layers)[0]

    def _kernel_gradient(self, y: Tensor, x: Tensor) -> Tensor:
        kernel = y.new_empty(1).expand(self.kernel_shape)
        return self._backward(y, x, kernel, (False, True, False))[1]

    def _backward(
        self, y: Tensor, x: Tensor, kernel: Tensor, mask: tuple[bool, bool, bool], layers: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        if layers == 1 and self._is_small(x, len(x), maps=mask[0]):
            taps = self.kernel_shape[2:]
            x, kernel = x.contiguous(), kernel.contiguous()
            small: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._slow_conv2d_backward.output_mask(
                y.contiguous(), x, kernel, taps, self.stride, self.padding, mask
            )
            return small
        groups = self.groups * layers
        gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            y, x, kernel, None, self.stride, self.padding, self.dilation, False, (0, 0), groups, mask
        )
        return gradients


@lru_cache(maxsize=256)
def _roughly(operator: Conv2dOperator) -> Conv2dOperator:
    return replace(operator, rough=True)


def roughly(operator: LayerOperator, kernel: Tensor) -> LayerOperator:
    """Return the operator with products in bfloat16, where it has such and ``kernel`` is float32; or itself."""
    if isinstance(operator, Conv2dOperator) and has_bfloat16(kernel):
        return _roughly(operator)
    return operator
