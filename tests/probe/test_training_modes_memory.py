"""Activation checkpointing, reduced precision, and compiled models."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from per_sample import noise, sample_gradients
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lipadvisor.probe import Probe
from lipadvisor.terms import Terms

BATCH = 10


class Blocks(nn.Module):
    """Two blocks, the second of which uses its layer twice; each may be recomputed during the backward pass."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 9))
        self.twice, self.head = nn.Linear(9, 9), nn.Linear(9, 4)
        self.reentrant = reentrant

    def again(self, x: Tensor) -> Tensor:
        return torch.tanh(self.twice(x))

    def both(self, x: Tensor) -> Tensor:
        return self.again(self.again(x))

    def run(self, block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.reentrant is None or not torch.is_grad_enabled():
            return block(x)
        result: Tensor = checkpoint(block, x, use_reentrant=self.reentrant)
        return result

    def forward(self, x: Tensor) -> Tensor:
        x = self.run(self.first, x)
        x = self.run(self.again, self.run(self.both, x))
        return self.head(x)


def data(k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(BATCH, 7, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 4, (BATCH,), generator=generator)


def blocks(reentrant: bool | None) -> Blocks:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Blocks(reentrant).double()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, probe: Probe, k: int, split: int = 1) -> Terms:
    x, y = data(k)
    probe.arm(k)
    for xs, ys in zip(x.chunk(split), y.chunk(split), strict=True):
        (nn.functional.cross_entropy(model(xs.requires_grad_()), ys) / split).backward()
    probe.before_update()
    optimizer.step()
    probe.after_update({0: 0.05}, {0: 0.0})
    optimizer.zero_grad()
    terms = probe.collect(k)
    assert terms is not None
    return terms


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_layer_that_is_run_again_is_counted_once(reentrant: bool, split: int) -> None:
    seen = {}
    for way in (None, reentrant):
        model = blocks(way)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        probe = Probe(model, optimizer, interval=1)
        for k in range(3):
            terms = step(model, optimizer, probe, k, split)
        assert probe.noise.factor == 1.0
        assert not probe.noise.unmatched
        assert terms.batch_size == BATCH
        seen[way] = terms
    for field in ("noise_LL", "noise_curvature_L", "first_L", "log_norm_after_L"):
        np.testing.assert_allclose(getattr(seen[reentrant], field), getattr(seen[None], field), rtol=1e-9, atol=1e-15)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_noise_of_recomputed_layers_is_that_of_the_samples() -> None:
    model = blocks(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    probe = Probe(model, optimizer, interval=1)
    twin = blocks(None)
    shares = sample_gradients(twin, nn.functional.cross_entropy, *data(0))
    old = [layer.weight.detach().clone() for layer in probe.layers]
    terms = step(model, optimizer, probe, 0)
    truth = noise(probe, old, [shares[f"{layer.name}.weight"] / BATCH for layer in probe.layers], [None] * 4)
    np.testing.assert_allclose(terms.noise_LL, truth.noise_LL, rtol=1e-9, atol=1e-12 * float(truth.noise_LL.max()))
    np.testing.assert_allclose(terms.noise_curvature_L, truth.curvature_L, rtol=1e-8)


def test_bfloat16_autocast_is_measured_in_float32() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(7, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    probe = Probe(model, optimizer, interval=1)
    twin = nn.Sequential(nn.Linear(7, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    for k in range(4):
        x, y = (part.float() if part.is_floating_point() else part for part in data(k))
        twin.load_state_dict(model.state_dict())
        old = [layer.weight.detach().clone() for layer in probe.layers]
        probe.arm(k)
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        probe.before_update()
        optimizer.step()
        probe.after_update({0: 1e-3}, {0: 0.0})
        optimizer.zero_grad()
        terms = probe.collect(k)
    assert terms is not None
    assert probe.noise.method == "samples"
    assert not probe.noise.unmatched
    shares = sample_gradients(twin, nn.functional.cross_entropy, x, y)
    scales: list[Tensor | None] = []
    for layer in probe.layers:
        state = optimizer.state[layer.weight]
        scales.append(1 / ((state["exp_avg_sq"].double() / (1 - 0.999 ** float(state["step"]))).sqrt() + 1e-8))
    own = [shares[f"{layer.name}.weight"] / BATCH for layer in probe.layers]
    truth = noise(probe, old, own, scales)
    assert np.isfinite(terms.noise_LL).all()
    np.testing.assert_allclose(np.diag(terms.noise_LL), truth.noise_LL.diagonal(), rtol=0.05)
    np.testing.assert_allclose(terms.noise_curvature_L, truth.curvature_L, rtol=0.05)
    tops = [float(torch.linalg.svdvals(weight.double())[0].log()) for weight in old]
    np.testing.assert_allclose(terms.log_norm_L, tops, atol=1e-6)
