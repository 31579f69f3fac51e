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


def test_what_a_probe_cannot_follow_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    model[2].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    probe = Probe(model, optimizer, interval=1)
    data = torch.Generator().manual_seed(1)
    statuses = []
    for step in range(8):
        if step == 2:
            model[2].requires_grad_(True)
        if step == 4:
            model[4].weight = nn.Parameter(model[4].weight.detach().clone())
            optimizer.add_param_group({"params": [model[4].weight], "lr": 0.05})
        x = torch.randn(12, 6, dtype=torch.float64, generator=data)
        probe.arm(step)
        cross_entropy(model(x), x[:, :3].argmax(1)).backward()
        probe.before_update()
        optimizer.step()
        probe.after_update({0: 0.05, 1: 0.05}, {0: 0.0, 1: 0.0})
        optimizer.zero_grad()
        terms = probe.collect(step)
        assert terms is not None
        statuses.append(terms.status_L)
        told = [text.split(":")[0] for text in caplog.messages if "would find it" in text]
        assert told == (["2.weight"] if step >= 2 else []) + (["4", "the optimizer"] if step >= 4 else [])
    assert [status[-1] for status in statuses] == ["ok"] * 4 + ["not_converged"] * 4


def test_one_sample_has_no_noise() -> None:
    model = build(matrices)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    probe = Probe(model, optimizer, interval=1)
    x = torch.randn(1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    terms = take_step(model, optimizer, probe, (x, x[:, :3].argmax(1)), 0, cross_entropy)
    assert np.isnan(terms.noise_curvature_L).all()
    assert np.isnan(np.diag(terms.noise_LL)).all()
    assert set(terms.status_L) == {"too_few_points"}
