"""Plans as a user gives them, forecast and rehearsed: what is not named goes on as those who own it mean it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipadvisor import Advisor, rehearse
from lipadvisor.policies import Constant, Decision, Knobs

STEPS = 20


class Coupled:
    """Asks for a decay that takes the same off a weight at any rate, as the default does; or leaves it to the user."""

    name = "coupled"

    def __init__(self, lr: float, shrink: float | None) -> None:
        self.lr, self.shrink = lr, shrink

    def init(self) -> tuple[()]:
        return ()

    def decide(self, observation: Any, state: Any) -> tuple[Decision, Any]:
        decay = None if self.shrink is None else self.shrink / self.lr
        knobs = tuple(Knobs(k.group, self.lr, decay) for k in observation.knobs)
        return Decision(step=observation.step, policy=self.name, reason="always", knobs=knobs), state


def trained(
    mode: str, policy: Any, decay: float, steps: int = STEPS, interval: int = 1
) -> tuple[Advisor, Callable[[], Tensor]]:
    """Return an advisor, and a training step; plain AdamW, that a rate of zero would leave with its decay alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=decay)
    advisor = Advisor(model, optimizer, 100, policy=policy, mode=mode, interval=interval, on_error="raise")  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)

    def step() -> Tensor:
        x = torch.randn(16, 6, generator=generator)
        loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(steps):
        advisor.step(step())
    return advisor, step


def taken(advisor: Advisor, plan: dict[str, Any], horizon: int = 5) -> float:
    """Return what decay takes off a layer's log-norm over the horizon, nats: all but it is the same in both plans."""
    rate = plan.get("lr", 1e-9)
    with_it = advisor.forecast(horizon, {"lr": rate} if "lr" in plan else {})["0"].mean[-1]
    return float(with_it - advisor.forecast(horizon, {"lr": rate, "weight_decay": 0.0})["0"].mean[-1])


def test_a_forecast_starts_at_the_present_step_where_the_last_measurement_is_older() -> None:
    advisor = trained("shadow", Constant(0.01), 0.0, interval=8)[0]
    assert advisor._line.prediction is not None
    forecaster = advisor._line.prediction.forecaster
    gap = STEPS - forecaster.step
    assert gap >= 3
    now = advisor.forecast(5)
    assert now.start_step == STEPS
    np.testing.assert_allclose(now["*"].mean, forecaster.forecast(5 + gap)["*"].mean[gap:], rtol=1e-9)


@pytest.mark.parametrize("lr", [1e-6, 1e-5, 1e-4])
def test_the_policys_own_decay_goes_on_per_step_and_the_users_as_its_coefficient(lr: float) -> None:
    owned = trained("takeover", Coupled(0.01, 0.05), 3.0)[0]
    assert taken(owned, {"lr": lr}) == pytest.approx(5 * np.log(0.95), rel=2e-3)
    for mode, policy in (
        ("shadow", Coupled(0.01, 0.05)),
        ("cap", Constant(0.01)),
        ("takeover", Coupled(0.01, None)),
    ):
        users = trained(mode, policy, 3.0)[0]
        assert taken(users, {"lr": lr}) == pytest.approx(5 * np.log(1 - 3.0 * lr), rel=2e-3), mode


def test_an_array_of_rates_keeps_the_decay_of_each_step_and_a_rate_of_zero_takes_nothing() -> None:
    owned = trained("takeover", Coupled(0.01, 0.05), 0.0)[0]
    rates = np.array([1e-6, 3e-5, 0.0, 1e-7, 0.0])
    assert taken(owned, {"lr": rates}) == pytest.approx(3 * np.log(0.95), rel=2e-3)


def test_near_the_start_a_rate_alone_is_a_plan_like_any_other() -> None:
    advisor = trained("takeover", "lipschitz", 0.0, steps=1)[0]
    optimizer = advisor.stage().optimizer
    knobs = advisor.trajectory.decisions.iloc[-1]
    in_force = np.log1p(-knobs.lr_applied * knobs.weight_decay_applied)
    assert knobs.lr_applied == optimizer.param_groups[0]["lr"]
    for lr in (1e-4, 0.01, 1.0, 10.0):
        assert 50 * in_force <= taken(advisor, {"lr": lr}, 50) < 20 * in_force < 0.0
    assert advisor.forecast(50, {"lr": 0.01}).network.mean[-1] == pytest.approx(
        advisor.forecast(1)["*"].mean[-1], abs=0.5
    )


@pytest.mark.parametrize("mode", ["takeover", "cap", "shadow"])
def test_no_error_names_what_was_not_planned(mode: str) -> None:
    advisor = trained(mode, Coupled(0.01, 0.05), 3.0)[0]
    if mode == "takeover":
        assert np.isfinite(advisor.forecast(5, {"lr": 10.0}).network.mean).all()
    else:
        with pytest.raises(ValueError, match=r"plan\['lr'\] must be below 0.333333, .* decay in force, got 10") as told:
            advisor.forecast(5, {"lr": 10.0})
        assert "weight_decay" not in str(told.value)
    with pytest.raises(
        ValueError, match=r"plan\['weight_decay'\] must be below 100, .* rate in force, got 200"
    ) as told:
        advisor.forecast(5, {"weight_decay": 200.0})
    assert "plan['lr']" not in str(told.value)


@pytest.mark.parametrize(
    ("mode", "policy", "expected"),
    [
        ("takeover", Coupled(0.01, 0.05), 0.95),
        ("takeover", Coupled(0.01, None), 1.0 - 1e-9 * 3.0),
        ("shadow", Coupled(0.01, 0.05), 1.0 - 1e-9 * 3.0),
        ("cap", Constant(0.01), 1.0 - 1e-9 * 3.0),
    ],
)
def test_a_rehearsal_takes_the_decay_that_the_forecast_does(mode: str, policy: Any, expected: float) -> None:
    advisor, step = trained(mode, policy, 3.0)
    found = rehearse(advisor, step, 10, {"lr": 1e-9}, 4, 2)  # nothing moves but by decay
    np.testing.assert_allclose(found.change_RS[:, :2], 4 * np.log(expected), rtol=2e-4, atol=2e-6)
    assert found.change_RS[:, -1] == pytest.approx(found.change_RS[:, :-1].sum(1))


@pytest.mark.parametrize("mode", ["takeover", "cap", "shadow"])
def test_a_rehearsal_of_no_plan_runs_at_the_rates_in_force(mode: str) -> None:
    advisor, step = trained(mode, Constant(0.002), 0.0)
    optimizer = advisor.stage().optimizer
    seen: list[float] = []

    def looking() -> Tensor:
        seen.append(optimizer.param_groups[0]["lr"])
        return step()

    rehearse(advisor, looking, 10, None, 3, 2)
    assert seen == [0.01 if mode == "shadow" else 0.002] * 6
    assert optimizer.param_groups[0]["lr"] == (0.002 if mode == "takeover" else 0.01)
