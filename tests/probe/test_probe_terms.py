"""What a measured step says, against per-sample gradients and full SVDs in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipadvisor.probe import Probe
from lipadvisor.terms import Terms

Make = Callable[[nn.Module], torch.optim.Optimizer]

OPTIMIZERS: dict[str, tuple[float, float, Make]] = {
    "sgd": (0.05, 0.0, lambda m: torch.optim.SGD(m.parameters(), lr=0.05)),
    "momentum": (0.05, 0.0, lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True)),
    "adamw": (1e-3, 0.1, lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3, weight_decay=0.1)),
}


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 24), nn.Tanh(), nn.Linear(24, 5)).double()


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 4, 5)),
        nn.Conv2d(1, 6, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(48, 5),
    ).double()


class Sequence(nn.Module):
    """Linear layers over (B, T, n)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(5, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(x.unflatten(1, (4, 5)))).mean(1))


def data(samples: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 20, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 5, (samples,), generator=generator)


def build(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, probe: Probe, lr: float, wd: float, k: int) -> Terms:
    x, y = data(seed=k)
    probe.arm(k)
    nn.functional.cross_entropy(model(x), y).backward()
    probe.before_update()
    optimizer.step()
    probe.after_update({0: lr}, {0: wd})
    optimizer.zero_grad()
    terms = probe.collect(k)
    assert terms is not None
    return terms


def dense(probe: Probe, index: int, kernel: Tensor) -> Tensor:
    layer = probe.layers[index]
    operator = layer.operator(probe._capture.input_shapes.get(index))
    assert operator is not None
    return operator.apply(kernel, torch.eye(operator.inputs, dtype=torch.float64)).mT


def curvature(W: Tensor, E: Tensor) -> Tensor:
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    a, b = U.mT @ (E @ Vh[0]), Vh @ (E.mT @ U[:, 0])
    inside = ((s[0] * (a**2 + b**2) + 2 * s * a * b)[1:] / (s[0] ** 2 - s[1:] ** 2)).sum()
    rest = (E @ Vh[0]).square().sum() - a.square().sum() + (E.mT @ U[:, 0]).square().sum() - b.square().sum()
    return inside + rest / s[0]


@pytest.mark.parametrize("make", [perceptron, convolutional, Sequence])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_terms_are_those_of_per_sample_gradients(make: Callable[[], nn.Module], name: str) -> None:
    lr, wd, optimize = OPTIMIZERS[name]
    model = build(make).double()
    optimizer = optimize(model)
    probe = Probe(model, optimizer, interval=1)
    for k in range(3):
        step(model, optimizer, probe, lr, wd, k)
    old = [layer.weight.detach().clone() for layer in probe.layers]
    x, y = data(seed=3)
    per_sample = []
    for xi, yi in zip(x, y, strict=True):
        loss = nn.functional.cross_entropy(model(xi[None]), yi[None])
        per_sample.append(torch.autograd.grad(loss, [layer.weight for layer in probe.layers]))
    terms = step(model, optimizer, probe, lr, wd, 3)
    assert set(terms.status_L) <= {"ok", "gap_limited"}

    scalars = []
    for index, layer in enumerate(probe.layers):
        W = dense(probe, index, old[index])
        U, s, Vh = torch.linalg.svd(W, full_matrices=False)
        direction = (layer.weight.detach() - old[index] * (1 - lr * wd)) / lr
        E = dense(probe, index, direction)
        close = pytest.approx
        assert terms.log_norm_L[index] == close(float(s[0].log()), abs=1e-6)
        assert terms.gap_L[index] == close(float(1 - s[1] / s[0]), abs=1e-4)
        size = float(torch.linalg.svdvals(E)[0] / s[0])  # bounds every projection of E
        assert terms.first_L[index] == close(float(U[:, 0] @ E @ Vh[0] / s[0]), rel=1e-3, abs=1e-3 * size)
        assert terms.curvature_L[index] == close(float(curvature(W, E) / s[0]), rel=2e-2)
        assert terms.update_ratio_L[index] == close(size, rel=1e-2)
        after = torch.linalg.svdvals(dense(probe, index, layer.weight.detach()))[0]
        assert terms.change_L[index] == close(float((after / s[0]).log()), abs=1e-6, rel=1e-3)
        rms = float(old[index].square().mean().sqrt())
        assert terms.log_gain_L[index] == close(np.log(rms * layer.shape[1] ** 0.5))
        P = torch.ones_like(old[index])
        if name == "adamw":
            state = optimizer.state[layer.weight]
            P = 1 / ((state["exp_avg_sq"] / (1 - 0.999 ** int(state["step"]))).sqrt() + 1e-8)
        noise = [dense(probe, index, P * g[index]) for g in per_sample]
        mean = torch.stack(noise).mean(0)
        scalars.append(torch.stack([U[:, 0] @ g @ Vh[0] / s[0] for g in noise]))
        q = torch.stack([curvature(W, g - mean) for g in noise]).sum() / s[0] / (len(x) * (len(x) - 1))
        # Convolutions are estimated from two random sums of twelve samples.
        spread = 0.02 if layer.kind == "linear" else 0.9
        assert terms.noise_curvature_L[index] == close(float(q), rel=spread)
    expected = torch.cov(torch.stack(scalars)).numpy() / len(x)
    np.testing.assert_allclose(terms.noise_LL, expected, rtol=5e-3, atol=2e-3 * np.abs(expected).max())
    assert terms.batch_size == len(x)
    assert terms.optimizer_step == 4


def test_stochastic_noise_curvature_is_unbiased() -> None:
    model = build(convolutional)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, y = data()
    example = x[:2]
    estimates = []
    for seed in range(60):
        probe = Probe(model, optimizer, interval=1, seed=seed, example_input=example)
        probe.arm(0)
        nn.functional.cross_entropy(model(x), y).backward()
        probe.before_update()
        probe.after_update({0: 0.0}, {0: 0.0})
        optimizer.zero_grad()
        terms = probe.collect(0)
        assert terms is not None
        estimates.append(terms.noise_curvature_L[1])
    W = dense(probe, 1, probe.layers[1].weight.detach())
    noise = []
    for xi, yi in zip(x, y, strict=True):
        loss = nn.functional.cross_entropy(model(xi[None]), yi[None])
        noise.append(dense(probe, 1, torch.autograd.grad(loss, probe.layers[1].weight)[0]))
    mean = torch.stack(noise).mean(0)
    s_1 = torch.linalg.svdvals(W)[0]
    exact = torch.stack([curvature(W, g - mean) for g in noise]).sum() / s_1 / (len(x) * (len(x) - 1))
    error = np.std(estimates) / len(estimates) ** 0.5
    assert abs(np.mean(estimates) - float(exact)) < 4 * error
    assert error < 0.1 * float(exact)


def test_a_step_lost_in_rounding_is_read_from_the_optimizer() -> None:
    for name, make in (
        ("sgd", lambda m, lr: torch.optim.SGD(m.parameters(), lr=lr, momentum=0.9, nesterov=True)),
        ("adamw", lambda m, lr: torch.optim.AdamW(m.parameters(), lr=lr)),
    ):
        measured = []
        for lr, dtype in ((1e-9, torch.float32), (1e-9, torch.float64), (0.0, torch.float32)):
            model = build(perceptron).to(dtype)
            optimizer = make(model, lr)
            probe = Probe(model, optimizer, interval=1)
            x, y = data()
            probe.arm(0)
            nn.functional.cross_entropy(model(x.to(dtype)), y).backward()
            probe.before_update()
            optimizer.step()
            probe.after_update({0: lr}, {0: 0.0})
            terms = probe.collect(0)
            assert terms is not None
            measured.append(terms.first_L)
        np.testing.assert_allclose(measured[0], measured[1], rtol=1e-3, err_msg=name)
        np.testing.assert_allclose(measured[2], measured[1], rtol=1e-3, err_msg=name)
