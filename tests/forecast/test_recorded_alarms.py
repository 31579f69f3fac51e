"""The early warning over recorded runs: before a ramp is lost, and not in a run that goes well."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lipadvisor import Advisor
from lipadvisor.forecast import DivergenceWarning, recorded_alarms


def trained(growth: float, steps: int, interval: int) -> tuple[list[float], pd.DataFrame, pd.DataFrame]:
    """Train with a learning rate that grows by a factor each step; return the losses and what was recorded."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 16, generator=generator)
    targets = (inputs @ torch.randn(16, 4, generator=generator)).argmax(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    with Advisor(model, optimizer, steps, mode="shadow", interval=interval) as advisor:
        for step in range(steps):
            rows = torch.randint(0, 512, (64,), generator=generator)
            optimizer.param_groups[0]["lr"] = 0.1 * growth ** max(0, step - 100)
            loss = nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            advisor.step(loss)
            losses.append(float(loss.detach()))
        recorded = advisor.trajectory
    return losses, recorded.observations, recorded.forecasts


@pytest.mark.parametrize("interval", [5, 7])
def test_a_ramp_is_announced_before_it_is_lost(interval: int) -> None:
    losses, observations, forecasts = trained(1.02, 500, interval)
    smooth = np.convolve(losses, np.ones(20) / 20, mode="valid")
    lost = 100 + int(np.flatnonzero(~(smooth[100:] < np.log(4.0)))[0]) + 19
    raised = [alarm.step for alarm in recorded_alarms(observations, forecasts) if alarm.raised]
    assert raised
    assert 100 < raised[0] < lost - 20


def test_a_run_that_goes_well_raises_nothing_and_limits_can_be_others() -> None:
    _, observations, forecasts = trained(1.0, 400, 5)
    alarms = recorded_alarms(observations, forecasts)
    assert [alarm.step for alarm in alarms] == sorted(observations.step[observations.step > 0].unique())
    assert not any(alarm.raised for alarm in alarms)
    strict = DivergenceWarning(z_limit=1e-3, ratio_limit=1e-9)
    assert any(alarm.raised for alarm in recorded_alarms(observations, forecasts, strict))


def test_several_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="must be of one trial"):
        recorded_alarms(pd.DataFrame({"trial": ["a", "b"]}), pd.DataFrame())
