"""Constants and Jacobians of modules whose shapes and options are drawn, on inputs that are: against autograd."""

import random

import pytest
import torch
from drawn import BOUNDED, EXACT, Drawn
from entries import generator, randomized
from test_module_constants import autograd_jacobian, searched
from torch import Tensor

from lipadvisor.modules import Kind, constant_of, jacobian_of

torch.set_num_threads(1)
SEEDS = range(6)


def drawn(family: object, seed: int) -> tuple[Drawn, Tensor]:
    r = random.Random(f"{family.__name__} {seed}")  # type: ignore[attr-defined]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module, shape = family(r)  # type: ignore[operator]
    module = randomized(module, seed, size=r.choice([0.5, 1.0, 3.0])).eval()
    x = torch.randn(3, *shape, generator=generator(seed), dtype=torch.float64) * r.choice([0.1, 1.0, 5.0])
    return (module, shape), x


@pytest.mark.parametrize("family", [*EXACT, *BOUNDED], ids=lambda family: family.__name__)
@pytest.mark.parametrize("seed", SEEDS)
def test_jacobian_is_autograds_and_never_above_the_constant(family: object, seed: int) -> None:
    (module, _), x = drawn(family, seed)
    constant = constant_of(module, x)
    for sample in x:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            expected = autograd_jacobian(module, sample)
        torch.testing.assert_close(jacobian_of(module, sample), expected, atol=1e-8, rtol=1e-8)
        assert float(torch.linalg.matrix_norm(expected, 2)) <= constant.value * (1 + 1e-6)


@pytest.mark.parametrize("family", EXACT, ids=lambda family: family.__name__)
@pytest.mark.parametrize("seed", SEEDS)
def test_exact_constants_are_attained(family: object, seed: int) -> None:
    (module, shape), x = drawn(family, seed)
    constant = constant_of(module, x)
    assert constant.kind is Kind.EXACT
    found = searched(module, shape, seed)
    assert constant.value * 0.99 <= found <= constant.value * (1 + 1e-6)


@pytest.mark.parametrize("family", BOUNDED, ids=lambda family: family.__name__)
@pytest.mark.parametrize("seed", SEEDS)
def test_upper_bounds_hold_where_a_search_leads(family: object, seed: int) -> None:
    (module, shape), _ = drawn(family, seed)
    constant = constant_of(module)
    if constant.kind is Kind.UPPER:
        assert searched(module, shape, seed, steps=6) <= constant.value * (1 + 1e-6)
