"""Matrices in modules of no known kind: named where they are left out, exact in norm and change where they are not."""

from __future__ import annotations

import numpy as np
import torch
from layer_twins import Batch, build, check_step, take_step
from torch import Tensor, nn

from lipadvisor.probe import Probe


class Mixed(nn.Module):
    """A matrix, a stack of matrices, a vector and a scalar of its own around a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(5, 4))
        self.heads = nn.Parameter(torch.randn(2, 4, 3))
        self.scale, self.temperature = nn.Parameter(torch.ones(4)), nn.Parameter(torch.tensor(1.0))
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inner(x @ self.mix) * self.scale) * self.temperature
        return torch.einsum("bi,hij->bj", x, self.heads)


def data(count: int, samples: int = 6) -> list[Batch]:
    generator = torch.Generator().manual_seed(9)
    return [
        (
            torch.randn(samples, 5, generator=generator, dtype=torch.float64),
            torch.randint(0, 3, (samples,), generator=generator),
        )
        for _ in range(count)
    ]


def test_norms_and_changes_are_exact_and_the_noise_is_not_made_up() -> None:
    model = build(Mixed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    probe = Probe(model, optimizer, interval=1, parameters=True)
    terms = check_step(model, optimizer, probe, data(3), noisy=lambda layer: layer.kind != "parameter")
    assert terms.names == ("mix", "heads", "inner")
    assert terms.kinds == ("parameter", "parameter", "linear")
    assert terms.shapes[:2] == ((5, 4), (2, 12))
    assert terms.composition_L.tolist() == [0.0, 0.0, 1.0]
    assert np.isnan(terms.noise_LL[0, 0])
    assert terms.status_L[2] in ("ok", "gap_limited")
    assert set(terms.status_L[:2]) == {"not_measured"}


def test_their_noise_comes_from_successive_steps_once_there_are_enough() -> None:
    model = build(Mixed)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    probe = Probe(model, optimizer, interval=1, parameters=True)
    for step, batch in enumerate(data(12)):
        terms = take_step(model, optimizer, probe, batch, step, nn.functional.cross_entropy)
    assert set(terms.status_L) <= {"ok", "gap_limited"}
    assert (np.diag(terms.noise_LL) > 0).all()


def test_every_parameter_is_measured_or_listed_once() -> None:
    model = build(Mixed)
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert [layer.name for layer in probe.layers] == ["inner"]
    reasons = {skip.name: skip.reason for skip in probe.skipped}
    assert set(reasons) == {"", "scale", "temperature", "*.bias"}
    assert "mix, heads" in reasons[""]
    assert len(reasons) == len(probe.skipped)
