"""The expansion of the update map: from the measured Hessian against the Jacobian of the optimizer's real step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipadvisor.dynamics import expansion_factor, map_expansion, stability_limit
from lipadvisor.probe.sharpness import LossHessian, Sharpness

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def problem(seed: int) -> tuple[list[nn.Parameter], Callable[[], Tensor]]:
    """A tanh network of 23 weights with its loss on sixteen samples."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (16,), generator=generator)
    shapes = ((4, 3), (3, 4))
    weights = [nn.Parameter(0.8 * torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes]
    return weights, lambda: nn.functional.cross_entropy(torch.tanh(x @ weights[0].T) @ weights[1].T, y)


def optimizers(lr: float) -> dict[str, tuple[str, float, bool, float, Make]]:
    """Name, momentum, Nesterov, decoupled decay, and how to make it."""
    return {
        "plain": ("sgd", 0.0, False, 0.0, lambda w: torch.optim.SGD(w, lr=lr)),
        "momentum": ("sgd", 0.9, False, 0.0, lambda w: torch.optim.SGD(w, lr=lr, momentum=0.9)),
        "nesterov": ("sgd", 0.9, True, 0.0, lambda w: torch.optim.SGD(w, lr=lr, momentum=0.9, nesterov=True)),
        # second moments that hardly move: the preconditioner is frozen, as in the linearised map
        "adamw": ("adamw", 0.9, False, 0.3, lambda w: torch.optim.AdamW(w, lr, (0.9, 1 - 1e-9), weight_decay=0.3)),
    }


def real_step(
    make: Make, weights: list[nn.Parameter], loss: Callable[[], Tensor], at: Tensor, second: Tensor
) -> Tensor:
    """Take one step of the real optimizer from (weights, first moments), flat; return where it ends."""
    size = sum(w.numel() for w in weights)
    sizes = [w.numel() for w in weights]
    optimizer = make(weights)
    with torch.no_grad():
        for w, part in zip(weights, at[:size].split(sizes), strict=True):
            w.copy_(part.reshape(w.shape))
    for w, first, square in zip(weights, at[size:].split(sizes), second.split(sizes), strict=True):
        state = optimizer.state[w]
        if isinstance(optimizer, torch.optim.AdamW):
            state["step"] = torch.tensor(1e12, dtype=torch.float64)
            state["exp_avg"], state["exp_avg_sq"] = first.reshape(w.shape).clone(), square.reshape(w.shape).clone()
        else:
            state["momentum_buffer"] = first.reshape(w.shape).clone()
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
    key = "exp_avg" if isinstance(optimizer, torch.optim.AdamW) else "momentum_buffer"
    ends = [w.detach().reshape(-1) for w in weights]
    moments = [optimizer.state[w].get(key, torch.zeros_like(w)).reshape(-1) for w in weights]
    return torch.cat(ends + moments)


def jacobian(step: Callable[[Tensor], Tensor], at: Tensor, h: float = 1e-5) -> np.ndarray:
    columns = [(step(at + h * e) - step(at - h * e)) / (2 * h) for e in torch.eye(len(at), dtype=torch.float64)]
    return torch.stack(columns, 1).numpy()


def spectrum(weights: list[nn.Parameter], loss: Callable[[], Tensor], scale: Tensor) -> np.ndarray:
    hessian = LossHessian(loss(), weights)
    H = torch.stack([hessian.product(e) for e in torch.eye(len(scale), dtype=torch.float64)])
    return np.linalg.eigvals((scale[:, None] * H).numpy()).real


@pytest.mark.parametrize("name", ["plain", "momentum", "nesterov", "adamw"])
@pytest.mark.parametrize("lr", [0.02, 0.5, 3.0])
def test_equals_the_spectral_radius_of_the_real_steps_jacobian(name: str, lr: float) -> None:
    weights, loss = problem(seed=1)
    optimizer, b, nesterov, decay, make = optimizers(lr)[name]
    size = sum(w.numel() for w in weights)
    generator = torch.Generator().manual_seed(0)
    at = torch.cat([w.detach().reshape(-1) for w in weights] + [torch.zeros(size, dtype=torch.float64)])
    second = 0.2 + torch.rand(size, generator=generator, dtype=torch.float64)
    found = jacobian(lambda z: real_step(make, weights, loss, z, second), at)
    radius = np.abs(np.linalg.eigvals(found)).max()
    with torch.no_grad():
        for w, part in zip(weights, at[:size].split([w.numel() for w in weights]), strict=True):
            w.copy_(part.reshape(w.shape))
    scale = 1 / (second.sqrt() + 1e-8) if name == "adamw" else torch.ones(size, dtype=torch.float64)
    values = spectrum(weights, loss, scale)
    every = [expansion_factor(optimizer, b, lr, lam, decay, nesterov) for lam in values]
    assert max(every) == pytest.approx(radius, rel=1e-5)
    # the two ends of the spectrum tell
    ends = map_expansion(optimizer, b, lr, values.min(), values.max(), decay, nesterov)
    assert ends == pytest.approx(max(every), rel=1e-9)
    # and so does the sharpness as it is measured, for the stiffest direction
    measured = Sharpness(tolerance=1e-6).measure(LossHessian(loss(), weights), scale)
    stiffest = expansion_factor(optimizer, b, lr, values.max(), decay, nesterov)
    assert expansion_factor(optimizer, b, lr, measured.value, decay, nesterov) == pytest.approx(stiffest, rel=1e-3)


@pytest.mark.parametrize(("b", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_training_leaves_a_minimum_exactly_where_the_map_stops_contracting(b: float, nesterov: bool) -> None:
    """Below the limit measured from the sharpness a perturbed minimum is found again, above it is lost."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    weight = nn.Parameter(torch.zeros(6, dtype=torch.float64))

    def loss() -> Tensor:
        return 0.5 * (A @ weight).square().sum() + 0.1 * weight.square().sum()

    sharpness = Sharpness(tolerance=1e-8).measure(LossHessian(loss(), [weight])).value
    limit = stability_limit("sgd", b, nesterov) / sharpness
    for share, contracts in ((0.97, True), (1.03, False)):
        lr = share * limit
        lowest = float(torch.linalg.eigvalsh(A.T @ A)[0]) + 0.2
        assert (map_expansion("sgd", b, lr, lowest, sharpness, nesterov=nesterov) < 1) == contracts
        with torch.no_grad():
            weight.copy_(1e-3 * torch.ones(6))
        optimizer = torch.optim.SGD([weight], lr=lr, momentum=b, nesterov=nesterov)
        for _ in range(3000):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        assert (float(weight.detach().norm()) < 1e-3) == contracts


def test_decay_can_outweigh_negative_curvature() -> None:
    assert map_expansion("sgd", 0.9, 0.1, -0.5, 1.0) > 1
    assert map_expansion("sgd", 0.9, 0.1, -0.5, 1.0, weight_decay=6.0) < 1
