"""Convolutions that apply one matrix at every place: 1 x 1 kernels, patches that do not overlap, transposes of them.

The true operator is then the matrix (first dimension) x (the rest) of the kernel, repeated along the diagonal: the same
norm, each singular value as often as there are places. A change of the kernel is repeated likewise, so that norm,
derivative and curvature of the operator are those of the matrix, which has a gap where the operator has none. Its pairs
at one place are pairs of the operator. No input size is needed.

A transpose is measured as the matrix of its adjoint, which lies in memory as it is: inputs and outputs change places.
In groups the matrix falls into blocks, one a group: it is then the convolution at a single place.

Shapes: ``B`` samples, ``T`` places, ``M`` rows of the kernel, ``N`` the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from lipadvisor.probe.kinds.convolution import (
    AnyConv,
    ConvolutionForm,
    ConvolutionUse,
    conv_kind,
    conv_sides,
    convolution_form,
)
from lipadvisor.probe.kinds.convolution_matrix import MatrixUse, patches
from lipadvisor.probe.kinds.kind import Candidate, Form, Options, Use, wide
from lipadvisor.spectra import Conv2dOperator, ConvGeometry, ConvOperator, LinearOperator

__all__ = ["PlaceForm", "RepeatedForm", "RepeatedUse", "find_repeated", "of_one_form", "repeats"]


def find_repeated(module: nn.Module, options: Options) -> tuple[Candidate, ...] | None:
    """Return the kernel of a convolution that repeats a matrix, as its operator view; None for other modules."""
    if not isinstance(module, AnyConv) or options.conv_view != "operator":
        return None
    operator = convolution_form(module)
    if not repeats(operator.geometry):
        return None
    kind, sides, maps = conv_kind(module), conv_sides(operator.geometry), ConvolutionUse(module, operator)
    if operator.geometry.groups > 1:
        return (Candidate("weight", kind, sides, PlaceForm(operator.geometry, operator.output_padding), maps),)
    form = RepeatedForm(operator)
    return (Candidate("weight", kind, sides, form, RepeatedUse(module, form, maps)),)


def repeats(geometry: ConvGeometry) -> bool:
    """Return whether each entry of the finer map meets one place of the coarser at most, and some place a whole patch.

    Two taps of one dimension meet the same entry where ``stride m = dilation (t - t')`` for some m other than 0.
    Padding cuts patches; of one tap it leaves all or nothing, and all at the map's first entry if the stride comes by.
    """
    rows = zip(
        geometry.kernel_shape[2:], geometry.stride, geometry.dilation, geometry.before, geometry.after, strict=True
    )
    return all(
        stride // math.gcd(stride, dilation) >= taps
        and (before == after == 0 or (taps == 1 and geometry.padding_mode == "zeros" and before % stride == 0))
        for taps, stride, dilation, before, after in rows
    )


@dataclass(frozen=True, slots=True)
class PlaceForm(ConvolutionForm):
    """A kernel in groups as the convolution at one place: the block-diagonal matrix that it applies at all of them."""

    def operator(self, input_shape: tuple[int, ...] | None) -> Conv2dOperator | ConvOperator | None:
        """Return the convolution of one patch, or the transpose of one entry."""
        geometry = self.geometry
        first, second, *taps = geometry.kernel_shape
        none = (0,) * geometry.dimensions
        spans = tuple(d * (k - 1) + 1 for d, k in zip(geometry.dilation, taps, strict=True))
        one = (first, *(1 for _ in taps)) if geometry.transposed else (second * geometry.groups, *spans)
        place = ConvolutionForm(replace(geometry, before=none, after=none), none)
        return place.operator(one)


@dataclass(frozen=True, slots=True)
class RepeatedForm:
    """A kernel as the matrix (M, N) that the convolution, or the adjoint of a transpose, applies at every place."""

    convolution: ConvolutionForm

    @property
    def geometry(self) -> ConvGeometry:
        """Of the convolution."""
        return self.convolution.geometry

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """(first dimension, the rest)."""
        first, *rest = self.geometry.kernel_shape
        return first, math.prod(rest)

    @property
    def matrix(self) -> bool:
        """Whether the kernel is the operator's matrix: yes, up to repetition."""
        return True

    def view(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the parameter's shape as the matrix."""
        return tensor.flatten(1)

    def unview(self, matrix: Tensor) -> Tensor:
        """Return the matrix as a tensor of the parameter's shape."""
        return matrix.reshape(-1, *self.geometry.kernel_shape[1:])

    def operator(self, input_shape: tuple[int, ...] | None) -> LinearOperator:
        """Return the matrix as an operator."""
        first, rest = self.kernel_shape
        return LinearOperator(first, rest)


@dataclass(frozen=True, slots=True)
class RepeatedUse(MatrixUse):
    """A call of such a convolution: ``g = sum_t d_t a_t'``, with ``a_t`` the patch of the finer map at place t."""

    @property
    def flat(self) -> bool:
        """Whether a sample's gradient is a sum of few outer products: yes."""
        return True

    def pair(self, kept: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return patches of the finer maps (B, T, N) and the coarser ones (B, T, M)."""
        geometry = self.form.geometry
        x, d = (wide(t) if t.dim() == geometry.dimensions + 2 else wide(t).unsqueeze(0) for t in (kept, grad))
        fine, coarse = (d, x) if geometry.transposed else (x, d)
        return patches(geometry, geometry.padded(fine), coarse.shape[2:]), coarse.flatten(2).mT


def of_one_form(form: Form, uses: Sequence[Use]) -> tuple[Form, tuple[Use, ...]]:
    """Return form and uses of a kernel that not all of its modules repeat as a matrix: as the convolution then.

    Of a form in shares the uses are dropped: its noise is that of successive steps.
    """
    if isinstance(form, PlaceForm):
        slides = any(isinstance(use, ConvolutionUse) and not repeats(use.form.geometry) for use in uses)
        return (ConvolutionForm(form.geometry, form.output_padding) if slides else form), tuple(uses)
    if len({isinstance(use, RepeatedUse) for use in uses}) < 2:
        return form, tuple(uses)
    if not isinstance(form, RepeatedForm | ConvolutionForm):
        return form, ()
    operator = form.convolution if isinstance(form, RepeatedForm) else form
    return operator, tuple(use.maps if isinstance(use, RepeatedUse) else use for use in uses)
