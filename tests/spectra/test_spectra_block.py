"""The tracked block and the curvature form against a full SVD in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lipadvisor.spectra import (
    CgResolvent,
    Conv2dOperator,
    FlatResolvent,
    GramResolvent,
    LayerOperator,
    LinearOperator,
    TrackedBlock,
    cold_start,
    curvature_form,
    refresh,
    start_vectors,
)
from lipadvisor.spectra.change import moved_norm, turned_pair
from lipadvisor.spectra.curvature import outside, split_change

SHAPES = ((64, 64), (10, 64), (30, 50), (50, 30), (40, 8), (1, 9), (9, 1), (3, 3))
CONVOLUTIONS = (
    Conv2dOperator((1, 8, 8), (16, 1, 3, 3), padding=(1, 1)),
    Conv2dOperator((4, 7, 8), (6, 4, 3, 2), stride=(2, 1), padding=(1, 2)),
    Conv2dOperator((4, 9, 8), (6, 2, 3, 3), dilation=(2, 1), groups=2),
    Conv2dOperator((8, 6, 6), (6, 8, 3, 3), padding=(1, 1)),
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(operator: LayerOperator, kernel: Tensor) -> Tensor:
    return operator.apply(kernel, torch.eye(operator.inputs, dtype=torch.float64)).mT


def sum_over_k(W: Tensor, E: Tensor) -> Tensor:
    """Lemma 12's form, from a full SVD."""
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    a, b = U.mT @ (E @ Vh[0]), Vh @ (E.mT @ U[:, 0])
    inside = ((s[0] * (a**2 + b**2) + 2 * s * a * b)[1:] / (s[0] ** 2 - s[1:] ** 2)).sum()
    rest = (E @ Vh[0]).square().sum() - a.square().sum() + (E.mT @ U[:, 0]).square().sum() - b.square().sum()
    return inside + rest / s[0]


def tracked(operator: LayerOperator, kernel: Tensor) -> TrackedBlock:
    start = start_vectors(operator, 6, kernel, torch.Generator().manual_seed(0))
    return cold_start(operator, kernel, start, tolerance=1e-15)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_a_matrix_block_is_the_top_of_its_svd(shape: tuple[int, int], seed: int) -> None:
    operator, W = LinearOperator(*shape), random(*shape, seed=seed)
    block = tracked(operator, W)
    s = torch.linalg.svdvals(W)[: len(block.s_R)]
    torch.testing.assert_close(block.s_R[:2], s[:2], rtol=1e-10, atol=0)
    torch.testing.assert_close(W.mT @ block.u_RM.mT, (block.v_RN * block.s_R[:, None]).mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("operator", CONVOLUTIONS)
def test_a_convolution_norm_is_that_of_the_dense_operator(operator: Conv2dOperator) -> None:
    kernel = random(*operator.kernel_shape)
    block = tracked(operator, kernel)
    torch.testing.assert_close(block.s_R[0], torch.linalg.svdvals(dense(operator, kernel))[0], rtol=1e-8, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_curvature_form_is_the_sum_over_all_singular_values(shape: tuple[int, int], seed: int) -> None:
    operator, W, E = LinearOperator(*shape), random(*shape, seed=seed), random(*shape, seed=seed + 9)
    block = tracked(operator, W)
    resolvent = FlatResolvent(block.s_R[0]) if block.complete else GramResolvent.build(W, block)
    q = curvature_form(block, resolvent, operator.apply(E, block.v_RN[:1]), operator.adjoint(E, block.u_RM[:1]))[0]
    # What is left of the block's own residual enters here; the loosest of these blocks stops at 1e-7.
    torch.testing.assert_close(q, sum_over_k(W, E), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (14, 14)])
def test_curvature_form_is_the_second_difference_of_the_norm(shape: tuple[int, int]) -> None:
    operator, W, E = LinearOperator(*shape), random(*shape), random(*shape, seed=5)
    block = tracked(operator, W)
    resolvent = FlatResolvent(block.s_R[0]) if block.complete else GramResolvent.build(W, block)
    q = curvature_form(block, resolvent, operator.apply(E, block.v_RN[:1]), operator.adjoint(E, block.u_RM[:1]))[0]
    h = 1e-4
    plus, zero, minus = (torch.linalg.svdvals(W + t * E)[0] for t in (h, 0.0, -h))
    torch.testing.assert_close(q, (plus - 2 * zero + minus) / h**2, rtol=1e-4, atol=0)


@pytest.mark.parametrize("operator", CONVOLUTIONS[1:])
def test_conjugate_gradients_reach_the_complement_of_the_dense_operator(operator: Conv2dOperator) -> None:
    kernel, change = random(*operator.kernel_shape), random(*operator.kernel_shape, seed=5)
    W, E, R = dense(operator, kernel), dense(operator, change), 6
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    block = TrackedBlock(U[:, :R].mT, s[:R], Vh[:R], False)
    split = split_change(block, operator.apply(change, block.v_RN[:1]), operator.adjoint(change, block.u_RM[:1]))
    a, b = U.mT @ (E @ Vh[0]), Vh @ (E.mT @ U[:, 0])
    beyond = ((s[0] * (a**2 + b**2) + 2 * s * a * b)[R:] / (s[0] ** 2 - s[R:] ** 2)).sum()
    rest = (E @ Vh[0]).square().sum() - a.square().sum() + (E.mT @ U[:, 0]).square().sum() - b.square().sum()
    for iterations, tolerance in ((3, 0.1), (60, 1e-8)):
        resolvent = CgResolvent(operator, kernel, block, iterations=iterations)
        form = resolvent.forms(split.p_KM, split.y_KN)[0]
        exact = beyond + rest / s[0]
        torch.testing.assert_close(form, exact, rtol=tolerance, atol=0)
        assert form <= exact * (1 + 1e-9)  # conjugate gradients rise to the form from below


@pytest.mark.parametrize("gap", [0.0, 1e-6, 1e-3, 0.1])
def test_the_turned_pair_follows_the_norm_through_a_crossing(gap: float) -> None:
    operator = LinearOperator(30, 30)
    U, s, Vh = torch.linalg.svd(random(30, 30))
    s[0] = s[1] * (1 + gap)
    W, E = U @ torch.diag(s) @ Vh, random(30, 30, seed=4)
    length = float(0.05 * s[0] / torch.linalg.svdvals(E)[0])
    block = tracked(operator, W)
    corner = block.u_RM @ (W + length * E) @ block.v_RN.mT
    pair = turned_pair(block, corner)
    image, coimage = operator.apply(E, pair.right_1N), operator.adjoint(E, pair.left_1M)
    p, y = outside(image, block.u_RM), outside(coimage, block.v_RN)
    z, _ = GramResolvent.build(W, block).both((p, y), p, y)
    z = outside(z, block.v_RN)
    moved_z = operator.apply(W + length * E, z)
    predicted = moved_norm(block, corner, pair.turn_1R, image, coimage, length, z, moved_z)
    expected = torch.linalg.svdvals(W + length * E)[0]
    assert abs(float((predicted / expected).log())) < 3e-5
    assert predicted <= expected * (1 + 1e-6)


@pytest.mark.parametrize("length", [1e-2, 1e-3])
def test_a_pair_that_does_not_turn_keeps_its_vectors(length: float) -> None:
    operator, W, E = LinearOperator(30, 20), random(30, 20), random(30, 20, seed=4)
    block = tracked(operator, W)
    step = length * float((block.s_R[0] - block.s_R[1]) / torch.linalg.svdvals(E)[0])
    corner = block.u_RM @ (W + step * E) @ block.v_RN.mT
    same = torch.eye(1, len(block.s_R), dtype=torch.float64)
    image, coimage = operator.apply(E, block.v_RN[:1]), operator.adjoint(E, block.u_RM[:1])
    split = split_change(block, image, coimage)
    z, forms = GramResolvent.build(W, block).both(None, split.p_KM, split.y_KN)
    z = outside(z, block.v_RN)
    predicted = moved_norm(block, corner, same, image, coimage, step, z, operator.apply(W + step * E, z))
    expected = torch.linalg.svdvals(W + step * E)[0]
    second_order = block.s_R[0] + step * block.u_RM[0] @ E @ block.v_RN[0] + step**2 / 2 * (split.block_K + forms)[0]
    assert abs(float(predicted / expected - 1)) < length**3
    torch.testing.assert_close(second_order, expected, rtol=length**2, atol=0)


def test_a_warm_refresh_keeps_up_with_a_moving_matrix() -> None:
    operator, W = LinearOperator(64, 64), random(64, 64).float()
    block = tracked(operator, W)
    for step in range(30):
        E = random(64, 64, seed=100 + step).float()
        W = W + E * (0.02 * block.s_R[0] / torch.linalg.svdvals(E)[0])
        block = refresh(operator, W, block.v_RN)
        error = block.s_R[0] / torch.linalg.svdvals(W.double())[0] - 1
        assert abs(float(error)) < 1e-4
