"""The diagonal operator against the matrix it stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lipadvisor.spectra import DiagonalOperator, cold_start, refresh, start_vectors
from lipadvisor.spectra.rows import rows


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("factor", [None, random(9, seed=5).abs()])
def test_it_is_its_matrix(factor: Tensor | None) -> None:
    operator = DiagonalOperator(9, None if factor is None else lambda: factor)
    kernel, x, y = random(9), random(4, 9, seed=1), random(4, 9, seed=2)
    matrix = torch.diag(kernel if factor is None else kernel * factor)
    torch.testing.assert_close(operator.apply(kernel, x), x @ matrix.mT)
    torch.testing.assert_close((operator.adjoint(kernel, y) * x).sum(), (operator.apply(kernel, x) * y).sum())
    torch.testing.assert_close((operator.outer(y, x) * kernel).sum(), (operator.apply(kernel, x) * y).sum())


@pytest.mark.parametrize("size", [1, 5, 12, 40])
def test_its_block_is_exact_however_close_the_entries(size: int) -> None:
    operator = DiagonalOperator(size)
    kernel = 1.0 + 1e-7 * random(1, size)
    start = torch.stack([start_vectors(operator, 6, kernel, torch.Generator().manual_seed(0))])
    block = refresh(operator, kernel, cold_start(operator, kernel, start).v_RN)
    expected = kernel.abs().sort(descending=True).values
    torch.testing.assert_close(block.s_R, expected[:, : block.s_R.shape[1]], rtol=0, atol=0)
    torch.testing.assert_close(operator.apply(kernel, block.v_RN), block.u_RM * block.s_R.unsqueeze(-1))
    assert block.complete == (size <= 12)


def test_a_refresh_in_arrays_gives_arrays() -> None:
    operator, kernel = DiagonalOperator(40), random(1, 40)
    start = torch.stack([start_vectors(operator, 6, kernel, torch.Generator().manual_seed(0))])
    block, other = refresh(operator, kernel, start), refresh(operator, kernel, rows(start))
    assert all(isinstance(part, np.ndarray) for part in (other.u_RM, other.s_R, other.v_RN))
    torch.testing.assert_close(other.tensors().u_RM, block.u_RM, rtol=0, atol=0)
    torch.testing.assert_close(other.tensors().s_R, block.s_R, rtol=0, atol=0)
