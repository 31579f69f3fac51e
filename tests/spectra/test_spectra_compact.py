"""Projections between few channels against the whole kernel's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lipadvisor.spectra import Conv2dOperator, cold_start, start_vectors
from lipadvisor.spectra.compact import ROUGH, SMOOTH, compact_kernel, sketch


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("channels", "side", "outputs", "stride", "allowed"),
    [(3, 16, 24, 1, 3e-3), (16, 16, 24, 1, 3e-3), (16, 16, 40, 2, 0.02), (64, 8, 64, 1, 0.02)],
)
def test_a_top_pair_projects_the_samples_as_its_whole_jacobian_does(
    channels: int, side: int, outputs: int, stride: int, allowed: float
) -> None:
    operator = Conv2dOperator((channels, side, side), (outputs, channels, 3, 3), (stride, stride), (1, 1))
    kernel = random(*operator.kernel_shape)
    start = start_vectors(operator, 6, kernel, torch.Generator().manual_seed(0))
    block = cold_start(operator, kernel, start)
    jacobian = operator.outer(block.u_RM[:1], block.v_RN[:1])
    compact = compact_kernel(operator, jacobian)
    assert compact is not None
    inputs, grads = random(8, *operator.input_shape, seed=1), random(8, *operator.output_shape, seed=2)
    expected = operator.sample_scalars(jacobian, inputs, grads)
    error = compact.sample_scalars(inputs, grads) - expected
    assert float(error.std() / expected.std()) < allowed


@pytest.mark.parametrize("shape", [(40, 24, 3, 3), (40, 4, 3, 2)])
def test_a_kernel_of_few_channels_is_kept_whole(shape: tuple[int, int, int, int]) -> None:
    operator = Conv2dOperator((shape[1], 9, 8), shape, (2, 1), (1, 1), (1, 2))
    left, right = random(shape[0], SMOOTH), random(SMOOTH, shape[1], seed=1)
    kernel = torch.einsum("op,pqij,qc->ocij", left, random(SMOOTH, SMOOTH, *shape[2:], seed=2), right)
    compact = compact_kernel(operator, kernel)
    assert compact is not None
    inputs, grads = random(5, *operator.input_shape, seed=1), random(5, *operator.output_shape, seed=2)
    expected = operator.sample_scalars(kernel, inputs, grads)
    found = compact.sample_scalars(inputs, grads)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


def test_exactness_is_kept_where_it_is_asked_for_or_costs_nothing() -> None:
    operator = Conv2dOperator((16, 8, 8), (40, 16, 3, 3))
    assert compact_kernel(operator, random(40, 16, 3, 3).double()) is None
    few = Conv2dOperator((16, 8, 8), (2 * ROUGH - 1, 16, 3, 3))
    assert compact_kernel(few, random(*few.kernel_shape)) is None


@pytest.mark.parametrize(
    ("channels", "side", "outputs", "taps", "padding"), [(3, 24, 12, 3, 1), (16, 16, 24, 3, 1), (12, 20, 14, 5, 1)]
)
def test_a_sketch_images_the_samples_sums_as_their_whole_gradient_does(
    channels: int, side: int, outputs: int, taps: int, padding: int
) -> None:
    operator = Conv2dOperator((channels, side, side), (outputs, channels, taps, taps), (1, 1), (padding, padding))
    kernel = random(*operator.kernel_shape)
    block = cold_start(operator, kernel, start_vectors(operator, 6, kernel, torch.Generator().manual_seed(0)))
    u_1M, v_1N = block.u_RM[:1], block.v_RN[:1]
    compact = compact_kernel(operator, operator.outer(u_1M, v_1N))
    assert compact is not None
    found = sketch(compact, u_1M, v_1N)
    assert found is not None
    inputs, grads = random(8, *operator.input_shape, seed=1), random(8, *operator.output_shape, seed=2)
    scalars_B, left_BOE, right_BCE = found.samples(inputs, grads)
    torch.testing.assert_close(scalars_B, compact.sample_scalars(inputs, grads), rtol=1e-4, atol=1e-4)
    weights_KB = random(2, 8, seed=3)
    image_KM, coimage_KN = found.images(
        torch.tensordot(weights_KB, left_BOE, 1), torch.tensordot(weights_KB, right_BCE, 1)
    )
    for weight_B, image_M, coimage_N in zip(weights_KB, image_KM, coimage_KN, strict=True):
        gradient = operator.weighted_gradient(weight_B, inputs, grads)
        for one, exact in (
            (image_M, operator.apply(gradient, v_1N)[0]),
            (coimage_N, operator.adjoint(gradient, u_1M)[0]),
        ):
            assert float(torch.dist(one, exact) / exact.norm()) < 0.15


def test_nothing_is_sketched_where_the_pair_does_not_vary_smoothly() -> None:
    for stride, side in ((2, 32), (1, 8)):
        operator = Conv2dOperator((40, side, side), (40, 40, 3, 3), (stride, stride), (1, 1))
        compact = compact_kernel(operator, random(40, 40, 3, 3))
        assert compact is not None
        assert sketch(compact, random(1, operator.outputs), random(1, operator.inputs)) is None
