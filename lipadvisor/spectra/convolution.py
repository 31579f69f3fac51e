"""Convolutions in any number of dimensions and their transposes: the true operator on its real input size.

One geometry covers ``nn.Conv1d/2d/3d`` and ``nn.ConvTranspose1d/2d/3d`` with stride, any padding ('same' and uneven
ones included), padding modes, dilation, groups and output padding. Padding that the library's kernel cannot do is a
selection of entries along each dimension, whose adjoint adds them back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["PADDING_MODES", "ConvGeometry", "ConvOperator"]

GROUPED = 400_000  # entries of all maps of a call up to which layers are taken together
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True, slots=True)
class ConvGeometry:
    """What a convolution does to maps of any size; bilinear in kernel and map.

    Attributes:
        kernel_shape: as the module stores it: (out, in / groups, *taps), or (in, out / groups, *taps) if transposed.
        stride: one number a dimension, likewise ``before``, ``after`` and ``dilation``.
        before: entries of padding before the first one; of a transpose: entries cut off there, the same as ``after``.
        after: entries of padding after the last one.
        dilation: distance between taps.
        groups: of channels.
        padding_mode: one of ``PADDING_MODES``; "zeros" for a transpose.
        transposed: the adjoint of a convolution is applied.
    """

    kernel_shape: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    padding_mode: str = "zeros"
    transposed: bool = False

    @property
    def dimensions(self) -> int:
        """Number of spatial dimensions."""
        return len(self.stride)

    def output_shape(self, sizes: tuple[int, ...], output_padding: tuple[int, ...]) -> tuple[int, ...]:
        """Return (channels, *sizes) of the output for maps of ``sizes``."""
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_shape[2:], strict=True)]
        rows = zip(sizes, self.stride, self.before, self.after, spans, output_padding, strict=True)
        if self.transposed:
            channels = self.kernel_shape[1] * self.groups
            return (channels, *((n - 1) * s - b - a + span + o for n, s, b, a, span, o in rows))
        return (self.kernel_shape[0], *((n + b + a - span) // s + 1 for n, s, b, a, span, _ in rows))

    def forward(self, kernel: Tensor, x: Tensor, output_padding: tuple[int, ...]) -> Tensor:
        """Return the maps (B, out, ...) of ``x`` (B, in, ...)."""
        padding = self._library_padding()
        y: Tensor = torch.ops.aten.convolution(
            self._padded(x), kernel, None, self.stride, padding, self.dilation, self.transposed, output_padding,
            self.groups,
        )  # fmt: skip
        return y

    def backward(self, kernel: Tensor, y: Tensor, x_shape: tuple[int, ...], output_padding: tuple[int, ...]) -> Tensor:
        """Return the adjoint maps of ``y``, of shape ``x_shape`` (B, in, ...)."""
        x = y.new_empty(1).expand(self._padded_shape(x_shape))  # only its shape is read
        padded = self._library_backward(y, x, kernel, output_padding, (True, False, False))[0]
        return self._unpadded(padded, x_shape)

    def kernel_gradient(self, y: Tensor, x: Tensor, output_padding: tuple[int, ...]) -> Tensor:
        """Return ``sum_b d <y_b, forward(x_b; kernel)> / d kernel``."""
        kernel = y.new_empty(1).expand(self.kernel_shape)
        return self._library_backward(y, self._padded(x), kernel, output_padding, (False, True, False))[1]

    def _library_backward(
        self, y: Tensor, x: Tensor, kernel: Tensor, output_padding: tuple[int, ...], mask: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            y, x, kernel, None, self.stride, self._library_padding(), self.dilation, self.transposed, output_padding,
            self.groups, mask,
        )  # fmt: skip
        return gradients

    @property
    def _plain(self) -> bool:
        """Whether the library's kernel does the padding itself."""
        return self.padding_mode == "zeros" and self.before == self.after

    def _library_padding(self) -> tuple[int, ...]:
        return self.before if self._plain else (0,) * self.dimensions

    def _padded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self._plain:
            return shape
        sizes = (n + b + a for n, b, a in zip(shape[2:], self.before, self.after, strict=True))
        return (*shape[:2], *sizes)

    def _padded(self, x: Tensor) -> Tensor:
        return x if self._plain else self.padded(x)

    def padded(self, x: Tensor) -> Tensor:
        """Return maps with their padding."""
        if self.padding_mode == "zeros":
            ends = [end for pair in zip(self.before, self.after, strict=True) for end in reversed(pair)]
            return torch.nn.functional.pad(x, ends[::-1])
        for dim, (before, after) in enumerate(zip(self.before, self.after, strict=True), start=2):
            if before or after:
                x = x.index_select(dim, self._entries(x.shape[dim], before, after, x.device))
        return x

    def _unpadded(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the adjoint of :meth:`_padded`."""
        if self._plain:
            return y
        for dim, (before, after) in enumerate(zip(self.before, self.after, strict=True), start=2):
            size = shape[dim]
            if self.padding_mode == "zeros":
                y = y.narrow(dim, before, size)
            elif before or after:
                inside = y.new_zeros(*y.shape[:dim], size, *y.shape[dim + 1 :])
                y = inside.index_add_(dim, self._entries(size, before, after, y.device), y)
        return y

    def _entries(self, size: int, before: int, after: int, device: torch.device) -> Tensor:
        """Return which of ``size`` entries stands at each place of the padded row."""
        places = torch.arange(-before, size + after, device=device)
        if self.padding_mode == "circular":
            return places.remainder(size)
        if self.padding_mode == "replicate":
            return places.clamp(0, size - 1)
        return (size - 1) - ((size - 1) - places.abs()).abs()


@lru_cache(maxsize=256)
def _as_groups(geometry: ConvGeometry, layers: int) -> ConvGeometry:
    """Return layers side by side, their channels one after the other, as one convolution."""
    first, *rest = geometry.kernel_shape
    return replace(geometry, kernel_shape=(first * layers, *rest), groups=geometry.groups * layers)


@dataclass(frozen=True, slots=True)
class ConvOperator:
    """A convolution, or a transpose, on maps of a fixed size.

    Kernels (l, *kernel_shape) and maps (l, K, N) are of as many layers, which are the groups of one convolution; for
    one layer both may do without.

    Attributes:
        geometry: of the layer.
        input_shape: (channels, *sizes) of one input.
        output_padding: entries added to one end of a transpose's output; zeros otherwise.
        output_shape: (channels, *sizes) of one output.
        inputs: number of entries of one input map.
        outputs: number of entries of one output map.
    """

    geometry: ConvGeometry
    input_shape: tuple[int, ...]
    output_padding: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = field(init=False)
    inputs: int = field(init=False)
    outputs: int = field(init=False)

    def __post_init__(self) -> None:
        """Work out the shape of the output, once: it is needed at every application."""
        if not self.output_padding:
            object.__setattr__(self, "output_padding", (0,) * self.geometry.dimensions)
        shape = self.geometry.output_shape(self.input_shape[1:], self.output_padding)
        object.__setattr__(self, "output_shape", shape)
        object.__setattr__(self, "inputs", math.prod(self.input_shape))
        object.__setattr__(self, "outputs", math.prod(shape))

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the kernel, as the module stores it."""
        return self.geometry.kernel_shape

    def apply(self, kernel: Tensor, x_KN: Tensor) -> Tensor:
        """Return the convolutions (K, M) of the flat maps (K, N)."""

        def act(geometry: ConvGeometry, kernel: Tensor, x: Tensor) -> Tensor:
            return geometry.forward(kernel, x, self.output_padding)

        return self._by_layers(act, kernel, x_KN, self.input_shape, self.outputs)

    def adjoint(self, kernel: Tensor, y_KM: Tensor) -> Tensor:
        """Return the adjoint convolutions (K, N) of the flat maps (K, M)."""

        def act(geometry: ConvGeometry, kernel: Tensor, y: Tensor) -> Tensor:
            channels = self.input_shape[0] * (geometry.groups // self.geometry.groups)
            shape = (len(y), channels, *self.input_shape[1:])
            return geometry.backward(kernel, y, shape, self.output_padding)

        return self._by_layers(act, kernel, y_KM, self.output_shape, self.inputs)

    def _by_layers(
        self,
        act: Callable[[ConvGeometry, Tensor, Tensor], Tensor],
        kernel: Tensor,
        x_KN: Tensor,
        shape: tuple[int, ...],
        made: int,
    ) -> Tensor:
        """Return the flat maps that ``act`` makes of flat ones, for as many layers at once as the cache can take."""
        layers = kernel.numel() // math.prod(self.kernel_shape)
        if layers == 1:
            y = act(self.geometry, kernel.reshape(self.kernel_shape), x_KN.reshape(-1, *shape))
            return y.reshape(*x_KN.shape[:-1], made)
        vectors, parts = x_KN.shape[1], []
        together = max(1, GROUPED // (vectors * (self.inputs + self.outputs)))
        for start in range(0, layers, together):
            kernels, maps = kernel[start : start + together], x_KN[start : start + together]
            count, (first, *rest) = len(kernels), self.kernel_shape
            geometry = _as_groups(self.geometry, count)
            channels = maps.transpose(0, 1).reshape(vectors, count * shape[0], *shape[1:])
            y = act(geometry, kernels.reshape(count * first, *rest), channels)
            parts.append(y.reshape(vectors, count, made).transpose(0, 1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def outer(self, y_KM: Tensor, x_KN: Tensor) -> Tensor:
        """Return the kernel-shaped ``sum_k d <y_k, conv(x_k; kernel)> / d kernel``."""
        y, x = y_KM.reshape(-1, *self.output_shape), x_KN.reshape(-1, *self.input_shape)
        return self.geometry.kernel_gradient(y, x, self.output_padding)

    def sample_scalars(self, kernel: Tensor, input_B: Tensor, grad_B: Tensor) -> Tensor:
        """Return ``<d_i, conv(a_i; kernel)>`` (B,)."""
        return (self._forward(kernel, input_B) * grad_B).flatten(1).sum(1)

    def weighted_gradient(self, weight_B: Tensor, input_B: Tensor, grad_B: Tensor) -> Tensor:
        """Return ``sum_i w_i g_i`` of the kernel's shape: one weight-gradient computation."""
        weighted = grad_B * weight_B.reshape(-1, *[1] * (grad_B.dim() - 1))
        return self.geometry.kernel_gradient(weighted, input_B, self.output_padding)

    def _forward(self, kernel: Tensor, x: Tensor) -> Tensor:
        return self.geometry.forward(kernel.reshape(self.kernel_shape), x, self.output_padding)
