"""Weights that change between two steps by other hands than the optimizer's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from layer_twins import build, cross_entropy, take_step
from torch import Tensor, nn

from lipadvisor.probe import Probe
from lipadvisor.terms import Terms


def matrices() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))


def maps() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))


def normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 9)), nn.Tanh(), nn.Linear(9, 3))


def behind(weight: Tensor) -> None:
    weight.data.mul_(0.9)


def openly(weight: Tensor) -> None:
    with torch.no_grad():
        weight.mul_(0.9)


def train(make: Callable[[], nn.Module], write: Callable[[Tensor], None]) -> tuple[Terms, str]:
    model = build(make)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    probe = Probe(model, optimizer, interval=1)
    data = torch.Generator().manual_seed(1)
    for step in range(5):
        x = torch.randn(12, 6, dtype=torch.float64, generator=data)
        terms = take_step(model, optimizer, probe, (x, x[:, :3].argmax(1)), step, cross_entropy)
        for weight in model.parameters():
            write(weight)
    return terms, probe.noise.method


@pytest.mark.parametrize("make", [matrices, maps, normed])
def test_what_is_written_through_data_is_no_part_of_the_step(make: Callable[[], nn.Module]) -> None:
    (hidden, method), (seen, expected) = train(make, behind), train(make, openly)
    assert method == expected == "samples"
    for name in ("log_norm_L", "first_L", "change_L", "update_ratio_L", "noise_LL", "noise_curvature_L"):
        np.testing.assert_allclose(getattr(hidden, name), getattr(seen, name), rtol=1e-9, atol=1e-12, err_msg=name)
    assert np.isfinite(hidden.noise_LL).all()
