"""Every entry: its Jacobian equals autograd's, its constant bounds what a search finds, and is found where exact."""

import pytest
import torch
from entries import COMPOSED, EVERY, EXACT, NORMALIZATIONS, NOT_LIPSCHITZ, generator, seeded
from torch import Tensor, nn

from lipadvisor.modules import DotProductAttention, Kind, constant_of, jacobian_of

torch.set_num_threads(1)


def autograd_jacobian(module: nn.Module, x: Tensor) -> Tensor:
    J = torch.autograd.functional.jacobian(lambda z: module(z.unsqueeze(0)).squeeze(0), x)
    return J.reshape(-1, x.numel())


@pytest.mark.parametrize("name", sorted(EVERY))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_analytic_jacobian_is_autograds(name: str, seed: int) -> None:
    build, shape = EVERY[name]
    module = seeded(build, seed)
    x = torch.randn(shape, generator=generator(seed + 10), dtype=torch.float64)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = autograd_jacobian(module, x)
    torch.testing.assert_close(jacobian_of(module, x), expected, atol=1e-8, rtol=1e-8)


def searched(module: nn.Module, shape: tuple[int, ...], seed: int, steps: int = 100) -> float:
    """Gradient ascent on the Jacobian's top singular value from several starts: the largest norm that it met."""
    best = 0.0
    g = generator(seed)
    for start in range(6):
        x = torch.randn(shape, generator=g, dtype=torch.float64) * 10.0 ** (start - 3)
        if start % 2:  # one entry stands out: it wins every window that holds it
            x = torch.zeros(shape, dtype=torch.float64)
            x[tuple(max(length // 2 - start // 2, 0) for length in shape)] = 10.0 ** (start - 3)
        x.requires_grad_(True)
        optimizer = torch.optim.Adam([x], lr=0.1)
        for _ in range(steps):
            with torch.enable_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                J = torch.autograd.functional.jacobian(
                    lambda z: module(z.unsqueeze(0)).squeeze(0), x, create_graph=True
                ).reshape(-1, x.numel())
                norm = torch.linalg.matrix_norm(J, 2)
            best = max(best, float(norm.detach()))
            if not norm.requires_grad:  # the Jacobian does not depend on x
                break
            optimizer.zero_grad()
            try:
                (-norm.log()).backward()
            except RuntimeError:
                break  # torch has no second derivative of this one
            if x.grad is None or not torch.isfinite(x.grad).all() or not x.grad.any():
                break  # piecewise linear: no slope to follow, the next start looks elsewhere
            optimizer.step()
    return best


@pytest.mark.parametrize("name", sorted(set(EXACT) - NOT_LIPSCHITZ))
@pytest.mark.parametrize("seed", [0, 1])
def test_exact_constant_bounds_and_is_attained(name: str, seed: int) -> None:
    build, shape = EXACT[name]
    module = seeded(build, seed)
    x = torch.randn(2, *shape, generator=generator(seed), dtype=torch.float64)
    constant = constant_of(module, x)
    assert constant.kind is Kind.EXACT
    found = searched(module, shape, seed)
    assert found <= constant.value * (1 + 1e-6)
    assert found >= constant.value * 0.99


@pytest.mark.parametrize("name", sorted(NORMALIZATIONS))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_normalisation_local_and_worst(name: str, seed: int) -> None:
    build, shape = NORMALIZATIONS[name]
    module = seeded(build, seed)
    x = torch.randn(4, *shape, generator=generator(seed), dtype=torch.float64)
    here = max(float(torch.linalg.matrix_norm(autograd_jacobian(module, sample), 2)) for sample in x)
    local, worst = constant_of(module, x), constant_of(module)
    assert local.kind is Kind.LOCAL
    assert here <= local.value * (1 + 1e-9) <= worst.value * (1 + 2e-9)
    assert worst.kind is Kind.UPPER  # gamma is random
    with torch.no_grad():
        module.weight.fill_(1.3)
    here = max(float(torch.linalg.matrix_norm(autograd_jacobian(module, sample), 2)) for sample in x)
    assert here == pytest.approx(constant_of(module, x).value, rel=1e-2)
    assert constant_of(module).kind is Kind.EXACT
    flat = torch.zeros(shape, dtype=torch.float64)
    at_rest = float(torch.linalg.matrix_norm(autograd_jacobian(module, flat), 2))
    assert at_rest == pytest.approx(constant_of(module).value, rel=1e-9)


@pytest.mark.parametrize("name", sorted(COMPOSED))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_composed_constant_is_never_below_the_jacobian(name: str, seed: int) -> None:
    build, shape = COMPOSED[name]
    module = seeded(build, seed)
    x = torch.randn(3, *shape, generator=generator(seed), dtype=torch.float64)
    here = max(float(torch.linalg.matrix_norm(jacobian_of(module, sample), 2)) for sample in x)
    constant = constant_of(module, x)
    assert here <= constant.value * (1 + 1e-6)
    if constant.kind is Kind.UPPER:
        assert searched(module, shape, seed, steps=6) <= constant.value * (1 + 1e-6)
    if isinstance(module, DotProductAttention):
        assert constant.value == pytest.approx(here, rel=1e-2)
