"""Convolutions and their transposes in one, two and three dimensions, as the true operator on their real input size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lipadvisor.probe.kinds.kind import Candidate, Options, wide
from lipadvisor.spectra import Conv2dOperator, ConvGeometry, ConvOperator
from lipadvisor.spectra.compact import CompactKernel, Sketch

__all__ = [
    "CONVOLUTIONS",
    "AnyConv",
    "ConvolutionForm",
    "ConvolutionUse",
    "conv_geometry",
    "conv_kind",
    "conv_sides",
    "convolution_form",
    "find_convolution",
]

CONVOLUTIONS: dict[type[nn.Module], str] = {
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
}
AnyConv = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def find_convolution(module: nn.Module, options: Options) -> tuple[Candidate, ...] | None:
    """Return the kernel of a convolution or a transpose as the true operator; None for other modules."""
    if not isinstance(module, AnyConv) or options.conv_view != "operator":
        return None
    form = convolution_form(module)
    return (Candidate("weight", conv_kind(module), conv_sides(form.geometry), form, ConvolutionUse(module, form)),)


def convolution_form(module: AnyConv) -> ConvolutionForm:
    """Return the kernel of ``module`` as an operator."""
    geometry = conv_geometry(module)
    output_padding = module.output_padding if geometry.transposed else (0,) * geometry.dimensions
    return ConvolutionForm(geometry, tuple(int(entries) for entries in output_padding))


def conv_kind(module: AnyConv) -> str:
    """Return "conv1d", ..., "conv_transpose3d"."""
    return next(kind for known, kind in CONVOLUTIONS.items() if isinstance(module, known))


@dataclass(frozen=True, slots=True)
class ConvolutionForm:
    """A kernel as the convolution on maps of the size that the layer last saw."""

    geometry: ConvGeometry
    output_padding: tuple[int, ...]

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the kernel, as the module stores it."""
        return self.geometry.kernel_shape

    @property
    def matrix(self) -> bool:
        """Whether the kernel is the operator's matrix: no."""
        return False

    def view(self, tensor: Tensor) -> Tensor:
        """Return the tensor as it is."""
        return tensor

    @property
    def plain(self) -> bool:
        """Whether it is a convolution in two dimensions with even padding of zeros."""
        geometry = self.geometry
        even = geometry.padding_mode == "zeros" and geometry.before == geometry.after
        return even and not geometry.transposed and geometry.dimensions == 2

    def operator(self, input_shape: tuple[int, ...] | None) -> Conv2dOperator | ConvOperator | None:
        """Return the operator for inputs (B, C, ...) or (C, ...); None if their shape is not known."""
        if input_shape is None:
            return None
        geometry = self.geometry
        one = tuple(int(size) for size in input_shape[-1 - geometry.dimensions :])
        if self.plain:
            (h, w), (p, q), (d, e), kernel = geometry.stride, geometry.before, geometry.dilation, geometry.kernel_shape
            shape = (kernel[0], kernel[1], kernel[2], kernel[3])
            return Conv2dOperator((one[0], one[1], one[2]), shape, (h, w), (p, q), (d, e), geometry.groups)
        return ConvOperator(geometry, one, self.output_padding)


@dataclass(frozen=True, slots=True)
class ConvolutionUse:
    """A call of a convolution: samples along the first dimension."""

    module: nn.Module
    form: ConvolutionForm

    @property
    def flat(self) -> bool:
        """Whether a sample's gradient is a sum of few outer products: no."""
        return False

    def read(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Tensor | None:
        """Return the input."""
        x = arguments[0] if arguments else keywords.get("input")
        return x.detach() if isinstance(x, Tensor) else None

    def count(self, kept: Tensor, grad: Tensor) -> int:
        """Return the number of samples."""
        return self._maps(grad).shape[0]

    def pair(self, kept: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Not for maps: a place for each entry of the output would be too many.

        Raises:
            TypeError: always.
        """
        raise TypeError("a convolution's gradient is not given as outer products")

    def scalars(self, jacobian: Tensor | CompactKernel, kept: Tensor, grad: Tensor) -> Tensor:
        """Return ``<d_i, conv(a_i; J)>`` (B,)."""
        inputs, grads = self._maps(wide(kept)), self._maps(wide(grad))
        if isinstance(jacobian, CompactKernel):
            return jacobian.sample_scalars(inputs, grads)
        return self._operator(inputs, grads).sample_scalars(jacobian, inputs, grads)

    def sketched(self, sketch: Sketch, kept: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what ``sketch`` makes of the samples, see :class:`lipadvisor.spectra.compact.Sketch`."""
        return sketch.samples(self._maps(wide(kept)), self._maps(wide(grad)))

    def weighted(self, weight_B: Tensor, kept: Tensor, grad: Tensor) -> Tensor:
        """Return ``sum_i w_i g_i``: one weight-gradient computation."""
        inputs, grads = self._maps(wide(kept)), self._maps(wide(grad))
        return self._operator(inputs, grads).weighted_gradient(weight_B, inputs, grads)

    def _maps(self, x: Tensor) -> Tensor:
        """Return (B, C, ...); a map without a batch is one sample."""
        return x if x.dim() == self.form.geometry.dimensions + 2 else x.unsqueeze(0)

    def _operator(self, inputs: Tensor, grads: Tensor) -> Conv2dOperator | ConvOperator:
        operator = self.form.operator(tuple(inputs.shape))
        assert operator is not None
        if isinstance(operator, ConvOperator) and operator.output_shape != tuple(grads.shape[1:]):
            # The caller asked for another output size than the module's own.
            found = zip(grads.shape[2:], operator.output_shape[1:], operator.output_padding, strict=True)
            operator = ConvOperator(operator.geometry, operator.input_shape, tuple(n - m + p for n, m, p in found))
        return operator


def conv_geometry(module: AnyConv) -> ConvGeometry:
    """Return the geometry of a convolution module."""
    before, after = _padding(module)
    sides = (
        (module.in_channels, module.out_channels) if module.transposed else (module.out_channels, module.in_channels)
    )
    shape = (sides[0], sides[1] // module.groups, *module.kernel_size)  # the weight itself may be computed: not touched
    return ConvGeometry(
        shape, tuple(module.stride), before, after, tuple(module.dilation), module.groups,
        module.padding_mode, module.transposed,
    )  # fmt: skip


def conv_sides(geometry: ConvGeometry) -> tuple[int, int]:
    """Return (fan_out, fan_in) of the kernel reshaped to a matrix."""
    first, second, *taps = geometry.kernel_shape
    if geometry.transposed:
        return second * geometry.groups, first // geometry.groups * math.prod(taps)
    return first, second * math.prod(taps)


def _padding(module: AnyConv) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the entries of padding before and after, one number a dimension."""
    if not isinstance(module.padding, str):
        return tuple(module.padding), tuple(module.padding)
    if module.padding == "valid":
        none = (0,) * len(module.kernel_size)
        return none, none
    total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
