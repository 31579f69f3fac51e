"""On random shapes: projections, covariance, noise-curvature and finite-step term against vmap(grad) in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from per_sample import adam_scale, dense, form, noise, sample_gradients
from torch import Tensor, nn

from lipadvisor.probe import Probe
from lipadvisor.terms import Terms

LR, DECAY = 0.03, 0.2
REL = 1e-10
SMALL = st.integers(1, 12)  # decomposed whole: nothing to converge
sizes = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


class Places(nn.Module):
    """Linear layers over (B, T, n), one of them used twice."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.inner, self.twice = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden, bias=False)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.twice(torch.tanh(self.twice(torch.tanh(self.inner(x))))))
        return self.head(x).mean(1)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.mse_loss(output, target)


def build(seed: int, inputs: int, hidden: int, outputs: int, places: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if places:
            return Places(inputs, hidden, outputs).double()
        return nn.Sequential(
            nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, outputs)
        ).double()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, probe: Probe, k: int, x: Tensor, y: Tensor) -> Terms:
    group = optimizer.param_groups[0]
    decoupled = group["weight_decay"] if isinstance(optimizer, torch.optim.AdamW) else 0.0
    probe.arm(k)
    loss(model(x), y).backward()
    probe.before_update()
    optimizer.step()
    probe.after_update({0: group["lr"]}, {0: decoupled})
    optimizer.zero_grad()
    terms = probe.collect(k)
    assert terms is not None
    return terms


def compare(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, settle: int, rel: float) -> None:
    """Measure a step after ``settle`` refreshes at the same weights, and check every term of it."""
    probe = Probe(model, optimizer, interval=1, example_input=x)
    optimizer.param_groups[0]["lr"] = 0.0
    for k in range(settle):
        step(model, optimizer, probe, k, x, y)
    optimizer.param_groups[0]["lr"] = LR
    old = [layer.weight.detach().clone() for layer in probe.layers]
    shares = sample_gradients(model, loss, x, y)
    terms = step(model, optimizer, probe, settle, x, y)
    adam = isinstance(optimizer, torch.optim.AdamW)
    scales: list[Tensor | None] = [adam_scale(optimizer, layer.weight) if adam else None for layer in probe.layers]
    names = {id(p): name for name, p in model.named_parameters()}
    own = [shares[names[id(layer.weight)]] / len(x) for layer in probe.layers]
    truth = noise(probe, old, own, scales)
    biggest = float(truth.noise_LL.diagonal().max())
    np.testing.assert_allclose(terms.noise_LL, truth.noise_LL, rtol=rel, atol=rel * biggest)
    kept = 1 - LR * DECAY if adam else 1.0
    for index, layer in enumerate(probe.layers):
        W = dense(probe, index, old[index])
        U = dense(probe, index, (layer.weight.detach() - old[index] * kept) / LR)
        left, s, right = torch.linalg.svd(W, full_matrices=False)
        size = float(torch.linalg.matrix_norm(U) / s[0])
        assert terms.log_norm_L[index] == pytest.approx(float(s[0].log()), abs=rel)
        assert terms.first_L[index] == pytest.approx(float(left[:, 0] @ U @ right[0] / s[0]), rel=rel, abs=rel * size)
        if layer.kind != "linear" or (len(s) > 1 and s[1] > 0.97 * s[0]):
            continue  # estimated, or as ill-conditioned as its gap
        assert terms.curvature_L[index] == pytest.approx(float(form(W, U) / s[0]), rel=rel, abs=rel * size**2)
        assert terms.noise_curvature_L[index] == pytest.approx(float(truth.curvature_L[index]), rel=rel)
    if not adam:  # the gradient is the sum of the shares: the drift is theirs
        np.testing.assert_allclose(terms.first_L, -truth.scalars_LB.sum(1), rtol=rel, atol=rel * biggest**0.5)


def sample(seed: int, samples: int, shape: tuple[int, ...], outputs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randn(samples, outputs, generator=generator, dtype=torch.float64)


@sizes
@given(inputs=SMALL, hidden=SMALL, outputs=SMALL, samples=st.integers(2, 9), places=st.integers(0, 3))
def test_terms_of_sgd_on_any_shape(inputs: int, hidden: int, outputs: int, samples: int, places: int) -> None:
    model = build(inputs + hidden, inputs, hidden, outputs, places)
    x, y = sample(samples, samples, (places, inputs) if places else (inputs,), outputs)
    compare(model, torch.optim.SGD(model.parameters(), lr=LR), x, y, 1, REL)


@sizes
@given(inputs=SMALL, hidden=SMALL, outputs=SMALL, samples=st.integers(2, 9), places=st.integers(0, 3))
def test_terms_of_adamw_on_any_shape(inputs: int, hidden: int, outputs: int, samples: int, places: int) -> None:
    model = build(inputs + hidden, inputs, hidden, outputs, places)
    x, y = sample(samples, samples, (places, inputs) if places else (inputs,), outputs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, eps=1e-6)
    compare(model, optimizer, x, y, 2, REL)


@pytest.mark.slow
@pytest.mark.parametrize(("inputs", "hidden"), [(17, 40), (64, 23), (50, 50)])
def test_terms_of_tracked_blocks_once_they_have_converged(inputs: int, hidden: int) -> None:
    model = build(0, inputs, hidden, 15, 0)
    x, y = sample(1, 12, (inputs,), 15)
    compare(model, torch.optim.SGD(model.parameters(), lr=LR), x, y, 150, REL)


@pytest.mark.slow
@sizes
@given(
    channels=st.integers(1, 4), outputs=st.integers(1, 4), side=st.integers(3, 5), kernel=st.integers(1, 3),
    stride=st.integers(1, 2), padding=st.integers(0, 1), samples=st.integers(2, 6),
)  # fmt: skip
def test_projections_of_convolutions_on_any_geometry(
    channels: int, outputs: int, side: int, kernel: int, stride: int, padding: int, samples: int
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(channels)
        convolution = nn.Conv2d(channels, outputs, kernel, stride, padding)
        features = convolution(torch.zeros(1, channels, side, side)).numel()
        model = nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), nn.Linear(features, 2)).double()
    x, y = sample(samples, samples, (channels, side, side), 2)
    compare(model, torch.optim.SGD(model.parameters(), lr=LR), x, y, 120, 1e-9)
