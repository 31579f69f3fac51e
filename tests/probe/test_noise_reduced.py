"""Convolutions that are reduced during the backward pass, against the same ones kept until after the step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipadvisor.probe import Probe
from lipadvisor.probe.meter import NoiseMeter
from lipadvisor.terms import Terms

BATCH = 12


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 14, 3, padding=1), nn.ReLU(), nn.Conv2d(14, 16, 3, padding=1), nn.ReLU(),
            nn.AvgPool2d(4), nn.Flatten(), nn.Linear(256, 5),
        )  # fmt: skip


def batch(k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(k)
    return torch.randn(BATCH, 3, 16, 16, generator=generator), torch.randint(0, 5, (BATCH,), generator=generator)


def train(level: str, rounds: int, steps: int = 3) -> tuple[list[Terms], Probe]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    probe = Probe(model, optimizer, level=level, interval=1)
    found = []
    for step in range(steps):
        probe.arm(step)
        optimizer.zero_grad()
        x, y = batch(step)
        for xs, ys in zip(x.chunk(rounds), y.chunk(rounds), strict=True):
            (nn.functional.cross_entropy(model(xs), ys) / rounds).backward()
        probe.before_update()
        optimizer.step()
        probe.after_update({0: 0.01}, {0: 0.0})
        terms = probe.collect(step)
        assert terms is not None
        found.append(terms)
    return found, probe


@pytest.mark.parametrize("level", ["noise", "full"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_reducing_early_changes_nothing_that_is_measured(
    level: str, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    early, probe = train(level, rounds)
    assert {0, 1} <= set(probe._capture.reduce_by)
    monkeypatch.setattr(NoiseMeter, "prepare", lambda self: None)
    late, _ = train(level, rounds)
    for one, other in zip(early, late, strict=True):
        assert one.status_L == other.status_L
        np.testing.assert_allclose(one.noise_LL, other.noise_LL, rtol=2e-3, atol=1e-5 * np.diag(other.noise_LL).max())
        np.testing.assert_allclose(one.noise_curvature_L, other.noise_curvature_L, rtol=2e-2, equal_nan=True)


def test_nothing_of_the_maps_is_kept_once_they_are_reduced() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probe = Probe(model, optimizer, interval=1)
    for step in range(2):
        probe.arm(step)
        optimizer.zero_grad()
        x, y = batch(step)
        nn.functional.cross_entropy(model(x), y).backward()
        if step:
            for calls in probe._capture.calls[:2]:
                assert all(call.kept is None and call.grad_B is None and call.projected is not None for call in calls)
        probe.before_update()
        optimizer.step()
        probe.after_update({0: 0.01}, {0: 0.0})
        probe.collect(step)


def test_weights_that_change_behind_the_reduction_leave_the_samples_unknown() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probe = Probe(model, optimizer, interval=1)
    found = []
    for step in range(3):
        probe.arm(step)
        if step == 1:
            with torch.no_grad():
                model[2].weight.mul_(1.5)  # type: ignore[operator]
        optimizer.zero_grad()
        x, y = batch(step)
        nn.functional.cross_entropy(model(x), y).backward()
        probe.before_update()
        optimizer.step()
        probe.after_update({0: 0.01}, {0: 0.0})
        found.append(probe.collect(step))
    assert all(terms is not None for terms in found)
    before, changed, after = (terms.noise_LL for terms in found if terms is not None)
    assert np.isfinite(before).all()
    assert not np.isfinite(changed[1, 1])
    assert np.isfinite(after).all()
