"""Gains of normalisation layers: left out by name unless asked for, exact where they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from layer_twins import Batch, build, check_step, take_step
from torch import Tensor, nn

from lipadvisor.probe import Probe


def data(shape: tuple[int, ...], count: int = 3, samples: int = 6) -> list[Batch]:
    generator = torch.Generator().manual_seed(7)
    return [
        (
            torch.randn(samples, *shape, generator=generator, dtype=torch.float64),
            torch.randint(0, 3, (samples,), generator=generator),
        )
        for _ in range(count)
    ]


def spread(model: nn.Module) -> nn.Module:
    """Give every gain a size of its own."""
    generator = torch.Generator().manual_seed(8)
    for module in model.modules():
        if "Norm" in type(module).__name__:
            module.weight.data += 0.5 * torch.randn(module.weight.shape, generator=generator).abs()
    return model


class Frozen(nn.Module):
    """Layers that normalise by their running statistics, as in fine-tuning."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(36, 3)
        self.norm.running_var.mul_(torch.tensor([0.3, 1.0, 2.0, 5.0]))
        self.norm.running_mean.add_(0.2)

    def forward(self, x: Tensor) -> Tensor:
        self.norm.eval()
        y: Tensor = self.head(torch.tanh(self.norm(self.conv(x))).flatten(1))
        return y


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer": (lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Flatten(), nn.Linear(12, 3)), (3, 5)),
    "layer_maps": (lambda: nn.Sequential(nn.LayerNorm([2, 5]), nn.Flatten(), nn.Linear(10, 3)), (2, 5)),
    "rms": (lambda: nn.Sequential(nn.Linear(5, 4), nn.RMSNorm(4), nn.Flatten(), nn.Linear(12, 3)), (3, 5)),
    "group": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(36, 3)),
        (1, 5, 5),
    ),
    "instance": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4, affine=True), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
        ),
        (2, 5),
    ),
    "frozen_batch": (Frozen, (1, 5, 5)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("adam", [False, True])
def test_terms_are_those_of_the_gains_and_single_samples(case: str, adam: bool) -> None:
    make, shape = CASES[case]
    model = spread(build(make))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3) if adam else torch.optim.SGD(model.parameters(), lr=0.05)
    probe = Probe(model, optimizer, interval=1, gains=True)
    terms = check_step(model, optimizer, probe, data(shape))
    index = next(i for i, kind in enumerate(terms.kinds) if kind.endswith("_norm"))
    assert terms.composition_L[index] == 0.0
    assert terms.weight_decay_L[index] == 0.0
    assert np.isnan(terms.log_gain_L[index])
    assert terms.noise_curvature_L[index] == pytest.approx(0.0, abs=1e-12)  # the size of one entry is linear in it


def test_a_frozen_batch_norm_is_measured_with_its_running_variance() -> None:
    model = build(Frozen)
    model.norm.eval()
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.1), gains=True)
    names = [layer.name for layer in probe.layers]
    largest = (model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()).abs().max()
    log_norm = probe.spectrum().log_norm_L[names.index("norm")]
    assert log_norm == pytest.approx(float(largest.detach().log()), abs=1e-9)
    model.norm.train()  # it normalises by its batch now
    log_norm = probe.spectrum().log_norm_L[names.index("norm")]
    assert log_norm == pytest.approx(float(model.norm.weight.detach().abs().max().log()), abs=1e-9)


def test_samples_of_a_batch_norm_in_training_add_up_to_its_gradient() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))

    model = spread(build(make))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    probe = Probe(model, optimizer, interval=1, gains=True)
    for step, batch in enumerate(data((5,))):
        terms = take_step(model, optimizer, probe, batch, step, nn.functional.cross_entropy)
        assert np.isfinite(terms.change_L).all()
        assert probe.noise.unmatched == ()
        assert probe.noise.coupled_by == ("1",)


def test_gains_are_left_out_by_name_unless_they_are_asked_for() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 3))
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert [layer.kind for layer in probe.layers] == ["linear", "linear"]
    assert {skip.name: skip.reason for skip in probe.skipped} == {
        "1": "a gain: measured with gains=True",
        "*.bias": "3 biases: an offset moves no norm",
    }
