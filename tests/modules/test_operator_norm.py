"""Norms of linear maps and Jacobians against a singular value decomposition."""

import math

import pytest
import torch
from torch import nn

from lipadvisor.modules.operator_norm import jacobian_norm, lanczos_norm, linear_map_norm, matrix_norm

torch.set_num_threads(1)


@pytest.mark.parametrize("seed", range(5))
def test_lanczos_equals_the_decomposition(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    m, n = (int(torch.randint(1, 60, (1,), generator=g)) for _ in range(2))
    A = torch.randn(m, n, generator=g, dtype=torch.float64)
    expected = float(torch.linalg.matrix_norm(A, 2))
    start = torch.randn(n, generator=g, dtype=torch.float64)
    assert lanczos_norm(lambda v: A @ v, lambda u: A.T @ u, start).value == pytest.approx(expected, rel=1e-6)
    assert matrix_norm(A) == pytest.approx(expected, rel=1e-12)
    bias = torch.randn(m, generator=g, dtype=torch.float64)
    assert linear_map_norm(lambda x: x @ A.T + bias, (1, n)).value == pytest.approx(expected, rel=1e-6)


def test_near_degenerate_pair_and_zero_map() -> None:
    A = torch.diag(torch.tensor([1.0, 1.0 - 1e-9, 0.5], dtype=torch.float64))
    norm = lanczos_norm(lambda v: A @ v, lambda u: A.T @ u, torch.ones(3, dtype=torch.float64))
    assert norm.converged
    assert norm.value == pytest.approx(1.0)
    zero = lanczos_norm(lambda v: 0 * v, lambda u: 0 * u, torch.ones(3))
    assert zero.converged
    assert zero.value == 0.0
    assert jacobian_norm(lambda x: x.detach() * 2, torch.ones(3)).value == 0.0


def test_large_matrix_goes_by_lanczos() -> None:
    g = torch.Generator().manual_seed(0)
    A = torch.randn(1100, 1200, generator=g)
    assert matrix_norm(A) == pytest.approx(float(torch.linalg.matrix_norm(A, 2)), rel=1e-3)


def test_jacobian_norm_where_torch_has_no_second_derivative() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Hardsigmoid(), nn.Linear(4, 2)).double()
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    J = torch.autograd.functional.jacobian(model, x).reshape(2, 4)
    assert jacobian_norm(model, x).value == pytest.approx(float(torch.linalg.matrix_norm(J, 2)), rel=1e-6)


def test_non_finite_is_returned_not_raised() -> None:
    assert math.isnan(matrix_norm(torch.full((3, 3), float("nan"))))
