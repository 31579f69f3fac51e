"""Operators against the dense matrix they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lipadvisor.spectra import Conv2dOperator, LayerOperator, LinearOperator

CONVOLUTIONS = (
    Conv2dOperator((1, 8, 8), (16, 1, 3, 3), padding=(1, 1)),
    Conv2dOperator((4, 7, 8), (6, 4, 3, 2), stride=(2, 1), padding=(1, 2)),
    Conv2dOperator((4, 9, 8), (6, 2, 3, 3), dilation=(2, 1), groups=2),
    Conv2dOperator((6, 5, 5), (6, 1, 3, 3), padding=(1, 1), groups=6),
    Conv2dOperator((8, 16, 16), (16, 8, 5, 5), stride=(3, 3), padding=(2, 2), dilation=(1, 1)),
)
OPERATORS: tuple[tuple[LayerOperator, tuple[int, ...]], ...] = (
    (LinearOperator(7, 11), (7, 11)),
    *((operator, operator.kernel_shape) for operator in CONVOLUTIONS),
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("operator", "shape"), OPERATORS)
def test_adjoint_and_outer_are_those_of_apply(operator: LayerOperator, shape: tuple[int, ...]) -> None:
    kernel = random(*shape)
    x, y = random(5, operator.inputs, seed=1), random(5, operator.outputs, seed=2)
    product = (operator.apply(kernel, x) * y).sum()
    torch.testing.assert_close((operator.adjoint(kernel, y) * x).sum(), product, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close((operator.outer(y, x) * kernel).sum(), product, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("operator", CONVOLUTIONS)
def test_a_convolution_is_the_one_of_the_module(operator: Conv2dOperator) -> None:
    module = nn.Conv2d(
        operator.input_shape[0],
        operator.kernel_shape[0],
        operator.kernel_shape[2:],
        operator.stride,
        operator.padding,
        operator.dilation,
        operator.groups,
        bias=False,
        dtype=torch.float64,
    )
    x = random(3, *operator.input_shape)
    expected = module(x)
    assert tuple(expected.shape[1:]) == operator.output_shape
    torch.testing.assert_close(operator.apply(module.weight, x.flatten(1)), expected.flatten(1))


@pytest.mark.parametrize(("operator", "shape"), OPERATORS)
def test_per_sample_projections_are_those_of_autograd(operator: LayerOperator, shape: tuple[int, ...]) -> None:
    weight, kernel = random(*shape, seed=3), random(*shape, seed=4)
    in_shape = operator.input_shape if isinstance(operator, Conv2dOperator) else (3, operator.inputs)
    out_shape = operator.output_shape if isinstance(operator, Conv2dOperator) else (3, operator.outputs)
    inputs, grads = random(4, *in_shape, seed=5), random(4, *out_shape, seed=6)
    per_sample = []
    for a, d in zip(inputs, grads, strict=True):
        leaf = weight.clone().requires_grad_()
        a_KN, d_KM = a.reshape(-1, operator.inputs), d.reshape(-1, operator.outputs)
        per_sample.append(torch.autograd.grad((operator.apply(leaf, a_KN) * d_KM).sum(), leaf)[0])
    scalars = torch.stack([(g * kernel).sum() for g in per_sample])
    torch.testing.assert_close(operator.sample_scalars(kernel, inputs, grads), scalars, rtol=1e-11, atol=1e-10)
    weights = random(4, seed=7)
    expected = sum(w * g for w, g in zip(weights, per_sample, strict=True))
    torch.testing.assert_close(operator.weighted_gradient(weights, inputs, grads), expected, rtol=1e-11, atol=1e-10)
