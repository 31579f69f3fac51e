"""Convolutions as the matrix (out, in x taps) that their kernels are when reshaped: another quantity than the operator.

It needs no input size and costs less, but its norm is not the layer's: between 1 and sqrt(taps) times smaller than
that of the convolution on large maps. Its kinds are named "conv2d_matrix" and so on.

Shapes: ``B`` samples, ``T`` places of the output map, ``M`` output channels, ``N`` in channels of a group x taps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from lipadvisor.probe.kinds.convolution import (
    AnyConv,
    ConvolutionUse,
    conv_kind,
    conv_sides,
    convolution_form,
)
from lipadvisor.probe.kinds.kind import Candidate, Form, Options, wide
from lipadvisor.spectra import ConvGeometry, LinearOperator

__all__ = ["ConvolutionMatrixForm", "ConvolutionMatrixUse", "MatrixUse", "find_convolution_matrix", "patches"]


def find_convolution_matrix(module: nn.Module, options: Options) -> tuple[Candidate, ...] | None:
    """Return the kernel of a convolution or a transpose as a matrix; None for other modules."""
    if not isinstance(module, AnyConv) or options.conv_view != "matrix":
        return None
    operator = convolution_form(module)
    form = ConvolutionMatrixForm(operator.geometry)
    use = ConvolutionMatrixUse(module, form, ConvolutionUse(module, operator))
    return (Candidate("weight", f"{conv_kind(module)}_matrix", conv_sides(form.geometry), form, use),)


@dataclass(frozen=True, slots=True)
class ConvolutionMatrixForm:
    """A kernel as a matrix; its columns run over the channels of one group and the taps."""

    geometry: ConvGeometry

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """(out, in / groups x taps)."""
        return conv_sides(self.geometry)

    @property
    def matrix(self) -> bool:
        """Whether the kernel is the operator's matrix: yes."""
        return True

    def view(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the parameter's shape as the matrix."""
        if self.geometry.transposed:
            tensor = tensor.unflatten(0, (self.geometry.groups, -1)).transpose(1, 2).flatten(0, 1)
        return tensor.flatten(1)

    def unview(self, matrix: Tensor) -> Tensor:
        """Return the matrix as a tensor of the parameter's shape."""
        geometry = self.geometry
        if not geometry.transposed:
            return matrix.reshape(geometry.kernel_shape)
        taps = geometry.kernel_shape[2:]
        blocks = matrix.reshape(geometry.groups, geometry.kernel_shape[1], -1, *taps)
        return blocks.transpose(1, 2).reshape(geometry.kernel_shape)

    def operator(self, input_shape: tuple[int, ...] | None) -> LinearOperator:
        """Return the matrix as an operator."""
        return LinearOperator(*conv_sides(self.geometry))


class MatrixForm(Form, Protocol):
    """A convolution's kernel as a matrix (M, N)."""

    @property
    def geometry(self) -> ConvGeometry:
        """Of the convolution."""
        ...

    def unview(self, matrix: Tensor) -> Tensor:
        """Return the matrix as a tensor of the parameter's shape."""
        ...


@dataclass(frozen=True, slots=True)
class MatrixUse:
    """A call of a convolution whose kernel is measured as a matrix: reduced by maps, whatever its matrix is."""

    module: nn.Module
    form: MatrixForm
    maps: ConvolutionUse

    @property
    def ordered(self) -> bool:
        """Whether the samples are along the first dimension whatever the others are: yes."""
        return True

    def read(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Tensor | None:
        """Return the input."""
        return self.maps.read(arguments, keywords)

    def count(self, kept: Tensor, grad: Tensor) -> int:
        """Return the number of samples."""
        return self.maps.count(kept, grad)

    def scalars(self, jacobian: Tensor, kept: Tensor, grad: Tensor) -> Tensor:
        """Return ``<g_i, J>`` (B,)."""
        return self.maps.scalars(self.form.unview(jacobian), kept, grad)

    def weighted(self, weight_B: Tensor, kept: Tensor, grad: Tensor) -> Tensor:
        """Return ``sum_i w_i g_i`` (M, N)."""
        return self.form.view(self.maps.weighted(weight_B, kept, grad))


@dataclass(frozen=True, slots=True)
class ConvolutionMatrixUse(MatrixUse):
    """A call of a convolution: ``g = sum_t d_t a_t'`` over the output's places, ``a_t`` the patch under place t."""

    @property
    def flat(self) -> bool:
        """Whether patches are cut out: with groups and in transposes there are none of the matrix's width."""
        return self.form.geometry.groups == 1 and not self.form.geometry.transposed

    def pair(self, kept: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return patches (B, T, N) and output gradients (B, T, M)."""
        geometry = self.form.geometry
        dims = geometry.dimensions
        x, d = (wide(t) if t.dim() == dims + 2 else wide(t).unsqueeze(0) for t in (kept, grad))
        return patches(geometry, geometry.padded(x), d.shape[2:]), d.flatten(2).mT


def patches(geometry: ConvGeometry, maps: Tensor, places: Sequence[int]) -> Tensor:
    """Return what the taps meet of padded maps (B, C, ...) at each of ``places`` along the dimensions: (B, T, N)."""
    for dim, count in enumerate(places):
        span = geometry.dilation[dim] * (geometry.kernel_shape[2 + dim] - 1) + 1
        maps = maps.unfold(2 + dim, span, geometry.stride[dim]).narrow(2 + dim, 0, count)
        maps = maps[..., :: geometry.dilation[dim]]
    # (B, C, *sizes, *taps) -> (B, T, C x taps)
    return maps.movedim(1, 1 + len(places)).reshape(len(maps), math.prod(places), -1)
