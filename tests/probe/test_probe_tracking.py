"""Real training on the digits: predicted and observed norms at every step against exact ones in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lipadvisor.probe import Probe

STEPS = 300
Make = Callable[[nn.Module], torch.optim.Optimizer]


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 12, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 10),
    )


NETWORKS = {"perceptron": perceptron, "convnet": convnet}
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.05),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9),
    "adamw-1e-3": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3, weight_decay=0.1),
    "adamw-1e-2": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.0),
}


def batches(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        index = torch.randint(0, len(labels), (64,), generator=generator)
        yield images[index], labels[index]


def exact(probe: Probe, kernels: list[Tensor]) -> np.ndarray:
    """ln of the largest singular value of every layer, from the Gram matrix of the dense operator in float64."""
    logs = []
    for index, (layer, kernel) in enumerate(zip(probe.layers, kernels, strict=True)):
        operator = layer.operator(probe._capture.input_shapes.get(index))
        assert operator is not None
        dense = operator.apply(kernel.double(), torch.eye(operator.inputs, dtype=torch.float64))
        gram = dense @ dense.mT if dense.shape[0] < dense.shape[1] else dense.mT @ dense
        logs.append(0.5 * float(torch.linalg.eigvalsh(gram)[-1].log()))
    return np.array(logs)


@dataclass
class Run:
    drift: float  # largest |Z integrated from predicted changes - exact Z|, nats
    tracking: float  # 95th percentile of |ln s_1 - exact| over layers and steps
    relative: float  # median relative step of the layer that moves most


def follow(network: str, make: Make, relative: float | None = None) -> Run:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NETWORKS[network]()
    optimizer = make(model)
    wd = optimizer.param_groups[0]["weight_decay"]
    probe = Probe(model, optimizer, interval=1, example_input=torch.zeros(2, 1, 8, 8))
    start = exact(probe, [layer.weight.detach() for layer in probe.layers])
    total, drift, errors, sizes = 0.0, 0.0, [], []
    ratio = None
    for k, (x, y) in enumerate(batches(STEPS)):
        if relative is not None:
            optimizer.param_groups[0]["lr"] = 1e-3 if ratio is None else relative / ratio
        lr = optimizer.param_groups[0]["lr"]
        probe.arm(k)
        nn.functional.cross_entropy(model(x), y).backward()
        probe.before_update()
        optimizer.step()
        probe.after_update({0: lr}, {0: wd})
        optimizer.zero_grad()
        terms = probe.collect(k)
        assert terms is not None
        now = exact(probe, [layer.weight.detach() for layer in probe.layers])
        total += float(terms.change_L.sum())
        drift = max(drift, abs(total - float((now - start).sum())))
        errors.append(np.abs(terms.log_norm_after_L - now))
        ratio = float(terms.update_ratio_L.max())
        sizes.append(lr * ratio)
    return Run(drift, float(np.quantile(errors, 0.95)), float(np.median(sizes)))


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_integrated_predictions_and_observed_norms_are_exact_along_a_training(network: str, optimizer: str) -> None:
    run = follow(network, OPTIMIZERS[optimizer])
    assert run.drift < 0.01
    assert run.tracking < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("relative", [0.05, 0.08])
def test_steps_that_are_long_for_the_norm_are_predicted_too(network: str, relative: float) -> None:
    run = follow(network, lambda m: torch.optim.SGD(m.parameters(), lr=1e-3), relative)
    assert 0.5 * relative < run.relative < 2 * relative
    assert run.drift < 0.01
    assert run.tracking < 1e-4


@pytest.mark.parametrize("outputs", [1, 2, 4, 9])
def test_a_small_matrix_that_shares_a_pack_with_larger_ones_is_exact_at_every_step(outputs: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, outputs))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    probe = Probe(model, optimizer, interval=1)
    generator = torch.Generator().manual_seed(0)
    weights = [module.weight for module in model if isinstance(module, nn.Linear)]
    for step in range(40):
        probe.arm(step)
        loss = model(torch.randn(64, 16, generator=generator)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        before = [weight.detach().double() for weight in weights]
        probe.before_update()
        optimizer.step()
        update = [(old - weight.detach().double()) / 0.02 for old, weight in zip(before, weights, strict=True)]
        probe.after_update({0: 0.02}, {0: 0.0})
        terms = probe.collect(step)
        assert terms is not None
        sizes = [torch.linalg.matrix_norm(matrix, 2) for matrix in before]
        ratios = [torch.linalg.matrix_norm(u, 2) / size for u, size in zip(update, sizes, strict=True)]
        np.testing.assert_allclose(terms.log_norm_L, [float(size.log()) for size in sizes], atol=1e-4)
        assert float(terms.update_ratio_L[-1]) == pytest.approx(float(ratios[-1]), rel=0.02)


def test_samples_of_a_convolution_with_few_living_filters_add_up(caplog: pytest.LogCaptureFixture) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 4),
        )
    with torch.no_grad():
        model[2].weight[3:] = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    probe = Probe(model, optimizer, interval=1)
    generator = torch.Generator().manual_seed(0)
    for step in range(15):
        probe.arm(step)
        inputs, labels = torch.randn(8, 3, 16, 16, generator=generator), torch.randint(0, 4, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        probe.before_update()
        optimizer.step()
        probe.after_update({0: 0.05}, {0: 0.0})
        assert probe.collect(step) is not None
        assert probe.noise.factor == pytest.approx(1.0, abs=5e-3)
    assert "do not add up" not in caplog.text
