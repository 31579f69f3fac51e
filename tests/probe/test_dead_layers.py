"""Layers behind units that no sample reaches, in loops that write to the gradients: no noise, and no harm to others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from layer_twins import build, sample_gradients, top_pair
from torch import Tensor, nn

from lipadvisor.probe import Probe
from lipadvisor.terms import Terms


class Gated(nn.Module):
    """Squeeze and excitation whose inner units are dead."""

    def __init__(self, convolution: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6, 3)
        self.inner: nn.Module = nn.Conv2d(6, 4, 3, padding=1) if convolution else nn.Conv2d(6, 4, 1)
        self.gate = nn.Conv2d(4, 6, 1)
        nn.init.constant_(self.inner.bias, -9.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        x = x * torch.sigmoid(self.gate(torch.relu(self.inner(x.mean((2, 3), keepdim=True)))))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("written", ["clipped", "divided", "nothing"])
@pytest.mark.parametrize("halves", [1, 2])
def test_a_dead_layer_has_no_noise_and_the_others_keep_their_samples(
    convolution: bool, written: str, halves: int
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gated(convolution).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    probe = Probe(model, optimizer, interval=1)
    generator = torch.Generator().manual_seed(1)
    for step in range(3):
        x = torch.randn(12, 2, 5, 5, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 3, (12,), generator=generator)
        grads = sample_gradients(model, probe, (x, y), nn.functional.cross_entropy)
        probe.arm(step)
        for part, target in zip(x.chunk(halves), y.chunk(halves), strict=True):
            (nn.functional.cross_entropy(model(part), target) / halves).backward()
        if written == "clipped":
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        elif written == "divided":
            for p in model.parameters():
                assert p.grad is not None
                p.grad.mul_(0.25).mul_(2.0)
        probe.before_update()
        optimizer.step()
        probe.after_update({0: 0.02}, {0: 0.0})
        optimizer.zero_grad()
        terms = probe.collect(step)
    assert terms is not None
    assert probe.noise.method == "samples"
    assert not probe.noise.unmatched
    names = [layer.name for layer in probe.layers]
    variance = dict(zip(names, np.diag(terms.noise_LL), strict=True))
    assert variance["inner"] == 0.0
    assert terms.status_L[names.index("inner")] in ("ok", "gap_limited")
    u, s_1, v = top_pair(probe, names.index("head"))
    shares = [float(u @ g[names.index("head")] @ v / s_1) for g in grads]
    expected = np.var(shares, ddof=1) / 12 * probe.noise.factor**2
    assert variance["head"] == pytest.approx(expected, rel=1e-8)


class Adapted(nn.Module):
    """A frozen matrix and one of low rank beside it, which begins at zero (LoRA)."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.base.requires_grad_(False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.tanh(self.base(x) + self.up(self.down(x))))
        return y


def measured(probe: Probe, optimizer: torch.optim.Optimizer, model: nn.Module, steps: int) -> Iterator[Terms]:
    """Train an :class:`Adapted`, each step measured."""
    lr, decay = (optimizer.param_groups[0].get(name, 0.0) for name in ("lr", "weight_decay"))
    for step in range(steps):
        x = torch.randn(12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        probe.arm(step)
        nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
        probe.before_update()
        optimizer.step()
        probe.after_update({0: lr}, {0: decay})
        optimizer.zero_grad()
        terms = probe.collect(step)
        assert terms is not None
        yield terms


def test_a_layer_that_begins_at_zero_leaves_the_others_their_samples() -> None:
    model = build(Adapted)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    probe = Probe(model, optimizer, interval=1)
    for step, terms in enumerate(measured(probe, optimizer, model, 2)):
        assert dict(zip(terms.names, terms.status_L, strict=True)) == {
            "head": "ok", "down": "ok", "up": "ok" if step else "non_finite",
        }  # fmt: skip
        assert probe.noise.method == "samples"
    assert np.isfinite(terms.noise_LL).all()
    assert "base" in {skipped.name for skipped in probe.skipped}


def test_no_factor_is_told_of_an_optimizer_that_nothing_is_known_of() -> None:
    model = build(Adapted)
    optimizer = torch.optim.RMSprop([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    probe = Probe(model, optimizer, interval=1)
    assert len(list(measured(probe, optimizer, model, 2))) == 2
    assert probe.noise.factor == 1.0
