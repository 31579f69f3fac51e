"""Convolutions of any dimension and their transposes against torch's modules and the dense matrix they stand for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipadvisor.probe.kinds.convolution import AnyConv, ConvolutionForm, find_convolution
from lipadvisor.probe.kinds.kind import Options
from lipadvisor.spectra import Conv2dOperator, ConvOperator, cold_start, conv2d, convolution, start_vectors

FORWARD = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
MODES = ("zeros", "reflect", "replicate", "circular")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def layers(draw: st.DrawFn) -> tuple[AnyConv, tuple[int, ...]]:
    """A convolution with small random arguments, and an input shape it takes."""
    dims, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    groups = draw(st.integers(1, 2))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    taps, stride, dilation = each(1, 3), each(1, 2), each(1, 2)
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    sizes = each(5, 6 if dims < 3 else 5)
    with torch.random.fork_rng():
        torch.manual_seed(draw(st.integers(0, 99)))
        if transposed:
            most = [d * (k - 1) for d, k in zip(dilation, taps, strict=True)]
            padding = tuple(draw(st.integers(0, min(m, 2))) for m in most)
            extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
            module: Any = TRANSPOSED[dims - 1](
                *channels, taps, stride, padding, extra, groups, False, dilation, dtype=torch.float64
            )
        else:
            same = draw(st.booleans())
            mode = draw(st.sampled_from(MODES))
            padding = "same" if same else each(0, 2)
            stride = (1,) * dims if same else stride
            module = FORWARD[dims - 1](
                *channels, taps, stride, padding, dilation, groups, False, mode, dtype=torch.float64
            )
    return module, (channels[0], *sizes)


def operator_of(module: AnyConv, shape: tuple[int, ...]) -> Conv2dOperator | ConvOperator:
    found = find_convolution(module, Options())
    assert found is not None
    operator = found[0].form.operator((1, *shape))
    assert isinstance(operator, (Conv2dOperator, ConvOperator))
    return operator


@settings(max_examples=100, deadline=None, derandomize=True)
@given(layers(), st.integers(0, 99))
def test_operator_is_the_module_and_adjoint_and_outer_are_its_own(
    case: tuple[AnyConv, tuple[int, ...]], seed: int
) -> None:
    module, shape = case
    operator, kernel = operator_of(module, shape), module.weight.detach()
    x = random(3, *shape, seed=seed)
    expected = module(x).detach()
    assert tuple(expected.shape[1:]) == operator.output_shape
    torch.testing.assert_close(operator.apply(kernel, x.flatten(1)), expected.flatten(1), rtol=1e-12, atol=1e-12)
    y = random(3, operator.outputs, seed=seed + 1)
    product = (expected.flatten(1) * y).sum()
    torch.testing.assert_close((operator.adjoint(kernel, y) * x.flatten(1)).sum(), product, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close((operator.outer(y, x.flatten(1)) * kernel).sum(), product, rtol=1e-10, atol=1e-11)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(layers())
def test_the_norm_is_that_of_the_dense_operator(case: tuple[AnyConv, tuple[int, ...]]) -> None:
    module, shape = case
    operator, kernel = operator_of(module, shape), module.weight.detach()
    columns = operator.apply(kernel, torch.eye(operator.inputs, dtype=torch.float64))
    start = start_vectors(operator, 6, kernel, torch.Generator().manual_seed(0))
    block = cold_start(operator, kernel, start, tolerance=1e-12)
    torch.testing.assert_close(block.s_R[0], torch.linalg.svdvals(columns)[0], rtol=1e-6, atol=0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(layers(), st.integers(0, 99))
def test_per_sample_projections_are_those_of_autograd(case: tuple[AnyConv, tuple[int, ...]], seed: int) -> None:
    module, shape = case
    operator, jacobian = operator_of(module, shape), random(*module.weight.shape, seed=seed)
    inputs = random(4, *shape, seed=seed + 1)
    grads = random(4, *operator.output_shape, seed=seed + 2)
    per_sample = [
        torch.autograd.grad((module(a[None]) * d).sum(), module.weight)[0] for a, d in zip(inputs, grads, strict=True)
    ]
    scalars = torch.stack([(g * jacobian).sum() for g in per_sample])
    torch.testing.assert_close(operator.sample_scalars(jacobian, inputs, grads), scalars, rtol=1e-10, atol=1e-11)
    weights = random(4, seed=seed)
    expected = sum(w * g for w, g in zip(weights, per_sample, strict=True))
    torch.testing.assert_close(operator.weighted_gradient(weights, inputs, grads), expected, rtol=1e-10, atol=1e-11)


def test_leading_dimensions_of_the_vectors_are_kept() -> None:
    operator = operator_of(nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular", dtype=torch.float64), (2, 9))
    kernel = random(3, 2, 3)
    assert operator.apply(kernel[None], random(1, 5, 18)).shape == (1, 5, operator.outputs)
    assert operator.adjoint(kernel[None], random(1, 5, operator.outputs)).shape == (1, 5, 18)
    assert operator.outputs == math.prod(operator.output_shape)


def test_a_plain_conv2d_keeps_its_fast_path() -> None:
    assert isinstance(operator_of(nn.Conv2d(2, 3, 3, padding=1), (2, 6, 6)), Conv2dOperator)
    assert isinstance(operator_of(nn.Conv2d(2, 3, 2, padding="same"), (2, 6, 6)), ConvOperator)


@pytest.mark.parametrize("shape", [None, (2, 6, 6), (4, 2, 6, 6)])
def test_the_form_needs_the_input_size(shape: tuple[int, ...] | None) -> None:
    found = find_convolution(nn.Conv2d(2, 3, 3), Options())
    assert found is not None
    form = found[0].form
    assert isinstance(form, ConvolutionForm)
    assert (form.operator(shape) is None) == (shape is None)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(layers(), st.integers(0, 99), st.sampled_from([1, 400_000]))
def test_layers_side_by_side_are_each_by_itself(
    case: tuple[AnyConv, tuple[int, ...]], seed: int, together: int
) -> None:
    module, shape = case
    operator = operator_of(module, shape)
    kernels = random(3, *operator.kernel_shape, seed=seed)
    x, y = random(3, 2, operator.inputs, seed=seed + 1), random(3, 2, operator.outputs, seed=seed + 2)
    with pytest.MonkeyPatch.context() as patch:
        for home in (conv2d, convolution):
            patch.setattr(home, "GROUPED", together)
        images, coimages = operator.apply(kernels, x), operator.adjoint(kernels, y)
    for k in range(3):
        torch.testing.assert_close(images[k], operator.apply(kernels[k], x[k]), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(coimages[k], operator.adjoint(kernels[k], y[k]), rtol=1e-12, atol=1e-12)
