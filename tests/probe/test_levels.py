"""What each level of measuring gives, what the trajectory keeps of its cost, and pairs that are close or cross."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipadvisor import Advisor
from lipadvisor.probe import Probe
from lipadvisor.terms import Terms

NORMS = ("log_norm_L", "gap_L", "log_gain_L", "frobenius_L", "log_norm_after_L", "gap_after_L")
DRIFT = ("first_L", "curvature_L", "change_L", "update_ratio_L", "frobenius_ratio_L", "row_ratio_L")
NOISE = ("noise_LL", "noise_curvature_L")
GIVEN = {
    "norms": NORMS,
    "drift": NORMS + DRIFT,
    "noise": NORMS + DRIFT + ("noise_LL",),
    "full": NORMS + DRIFT + NOISE,
}


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Unflatten(1, (1, 4, 5)), nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(80, 5)
        )


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 20, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :5].argmax(1)


def measure(model: nn.Module, optimizer: torch.optim.Optimizer, probe: Probe, step: int) -> Terms:
    x, y = batch(step)
    probe.arm(step)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    probe.before_update()
    optimizer.step()
    probe.after_update({0: optimizer.param_groups[0]["lr"]}, {0: 0.0})
    terms = probe.collect(step)
    assert terms is not None
    return terms


@pytest.mark.parametrize("level", list(GIVEN))
def test_a_level_gives_its_quantities_and_no_others(level: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    probe = Probe(model, optimizer, level=level, interval=1)
    for step in range(2):
        terms = measure(model, optimizer, probe, step)
    assert terms.level == level
    for name in GIVEN["full"]:
        finite = np.isfinite(getattr(terms, name))
        assert finite.size > 0
        assert finite.all() if name in GIVEN[level] else not finite.any(), name
    assert set(terms.status_L) <= {"ok", "gap_limited"}  # what was not asked for is not missed
    assert math.isfinite(terms.network_log_norm)
    assert 0 < terms.measure_s < terms.step_s


def test_levels_agree_on_what_they_share() -> None:
    found = {}
    for level in GIVEN:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        probe = Probe(model, optimizer, level=level, interval=1, example_input=batch()[0])
        for step in range(4):
            found[level] = measure(model, optimizer, probe, step)
    for level, names in (("norms", NORMS), ("drift", NORMS + DRIFT)):
        for name in names:
            np.testing.assert_allclose(
                getattr(found[level], name), getattr(found["full"], name), rtol=2e-4, atol=1e-6, err_msg=name
            )


@pytest.mark.parametrize("interval", [1, 3, None])
def test_the_trajectory_records_the_cost_of_each_measurement(interval: int | None) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with Advisor(model, optimizer, 30, interval=interval, mode="shadow", on_error="raise") as advisor:
        for step in range(30):
            x, y = batch(step)
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            advisor.step(loss)
        frame = advisor.trajectory.observations
        overhead, measurements = advisor.overhead, advisor.measurements
    assert frame[frame.layer != "*"].measure_s.isna().all()  # a measurement has one cost, on the network's row
    rows = frame[(frame.layer == "*") & (frame.step > 0)]
    assert len(rows) == measurements
    assert ((rows.measure_s > 0) & (rows.measure_s <= rows.step_s)).all()
    assert rows.interval.min() >= 1
    assert rows.overhead.between(0, 1).all()
    if interval == 1:  # the advisor's share holds predicting, deciding and recording too
        assert rows.measure_s.sum() / rows.step_s.sum() <= overhead * (1 + 1e-9) < 1


class Crossing(nn.Module):
    """``diag(2, 1.5, 1, ..)`` whose second value grows past the first under gradient descent on a linear loss."""

    def __init__(self, sides: int = 12) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.U = torch.linalg.qr(torch.randn(sides, sides, generator=generator, dtype=torch.float64))[0]
        self.V = torch.linalg.qr(torch.randn(sides, sides, generator=generator, dtype=torch.float64))[0]
        values = torch.linspace(1.0, 0.2, sides, dtype=torch.float64)
        values[:2] = torch.tensor([2.0, 1.9])
        self.layer = nn.Linear(sides, sides, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.layer.weight.copy_(self.U @ torch.diag(values) @ self.V.T)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_crossing_is_followed_and_flagged_while_the_pair_is_close(dtype: torch.dtype) -> None:
    model = Crossing().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probe = Probe(model, optimizer, interval=1)
    # two samples whose gradients push along u_2 v_2' and against u_1 v_1', with a little noise between them
    x = torch.stack([model.V[:, 1] + 0.1 * model.V[:, 4], model.V[:, 1], model.V[:, 0]]).to(dtype)
    pull = torch.stack([-model.U[:, 1], -model.U[:, 1] - 0.1 * model.U[:, 5], 0.5 * model.U[:, 0]]).to(dtype)
    seen = []
    for step in range(60):
        exact = torch.linalg.svdvals(model.layer.weight.detach().double())
        probe.arm(step)
        optimizer.zero_grad()
        (model(x) * pull).sum().div(3).mul(4 if step < 40 else 8).backward()
        probe.before_update()
        optimizer.step()
        probe.after_update({0: 0.01}, {0: 0.0})
        terms = probe.collect(step)
        assert terms is not None
        after = torch.linalg.svdvals(model.layer.weight.detach().double())
        gap = float(1 - exact[1] / exact[0])
        assert terms.log_norm_L[0] == pytest.approx(float(exact[0].log()), abs=1e-6)
        assert terms.gap_L[0] == pytest.approx(gap, abs=1e-5)
        assert terms.change_L[0] == pytest.approx(float((after[0] / exact[0]).log()), abs=2e-5)
        if abs(gap - 1e-3) > 1e-5:
            assert (terms.status_L[0] == "gap_limited") == (gap < 1e-3), gap
        assert np.isfinite(terms.noise_curvature_L[0])  # floored, never huge in silence
        seen.append((gap, terms.status_L[0]))
    ends = torch.diag(model.U.T @ model.layer.weight.detach().double() @ model.V)
    assert ends[1] > ends[0] + 0.01  # they have crossed
    flagged = [status == "gap_limited" for _, status in seen]
    assert any(flagged)
    assert not flagged[0]
    assert not flagged[-1]
    assert min(gap for gap, _ in seen) < 1e-3 < seen[-1][0]
