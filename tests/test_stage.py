"""A rehearsal needs no more of a training than its stage: here one without any advisor, and an advisor's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipadvisor import Advisor, rehearse
from lipadvisor.forecast import BandSeries, Forecast, Standing
from lipadvisor.policies import Status
from lipadvisor.stage import Stage
from lipadvisor.terms import Array


class Bare:
    """A training of one matrix by plain SGD with a decay per step of its own; forecasts that nothing changes."""

    steered, measured, first_loss = True, True, 1e9

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes
        self.model = nn.Linear(3, 3, bias=False)
        nn.init.eye_(self.model.weight)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5)
        self.calls: list[str] = []

    def knobs(self) -> Standing:
        return Standing(np.array([0.5]), np.array([0.2]), np.array([True]))

    def forecast(self, horizon: int, plan: Mapping[str, Any] | None = None) -> Forecast:
        self.calls.append(f"forecast {horizon}")
        series = BandSeries(*(np.zeros(horizon) for _ in range(4)))
        return Forecast(series, {"w": series}, Status.OK, horizon, 0)

    def log_norms(self) -> Array:
        norm = float(torch.linalg.matrix_norm(self.model.weight.detach(), 2).log())
        return np.array([norm, norm])

    @contextmanager
    def cleared(self, before_update: Callable[[], None]) -> Iterator[None]:
        handle = self.optimizer.register_step_pre_hook(lambda *_: before_update())
        try:
            yield
        finally:
            handle.remove()
            self.calls.append("put back")

    def step(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.model.weight.sum()  # its gradient is 1 everywhere
        loss.backward()
        self.optimizer.step()
        return loss


def test_any_training_can_be_rehearsed() -> None:
    stage = Bare()
    assert isinstance(stage, Stage)
    found = rehearse(stage, stage.step, 4, {"lr": [0.1, 0.2, 0.1, 0.1]}, 2, 3)
    weight = torch.eye(3)
    for lr in (0.1, 0.2):
        weight = 0.9 * weight - lr  # .1 = .5 x .2 a step, at any rate
    expected = float(torch.linalg.matrix_norm(weight, 2).log())
    np.testing.assert_allclose(found.change_RS, expected, atol=1e-6)
    np.testing.assert_allclose(found.forecast.network.mean, [expected / 2, *[expected] * 3], atol=1e-6)
    assert stage.calls == ["forecast 4", "put back"]
    assert torch.equal(stage.model.weight.detach(), torch.eye(3))
    assert stage.optimizer.param_groups[0]["lr"] == 0.5


def test_several_processes_are_told_before_anything_is_tried() -> None:
    stage = Bare(processes=4)
    with pytest.raises(ValueError, match=r"must be of a training in one process, got one in 4"):
        rehearse(stage, stage.step, 10)
    assert stage.calls == []


def test_an_advisors_stage_stands_aside_and_comes_back() -> None:
    bare = Bare()
    advisor = Advisor(bare.model, bare.optimizer, 50, interval=1, on_error="raise")
    bare.model(torch.ones(1, 3))
    for _ in range(3):
        advisor.step(bare.step())
    stage, acted = advisor.stage(), []
    assert isinstance(stage, Stage)
    assert (stage.processes, stage.measured, stage.steered) == (1, True, True)
    np.testing.assert_allclose(stage.log_norms(), bare.log_norms(), atol=1e-6)
    measured = advisor.measurements
    with stage.cleared(lambda: acted.append(1)):
        before = bare.model.weight.detach().clone()
        bare.step()
        lr = bare.optimizer.param_groups[0]["lr"]
        torch.testing.assert_close(bare.model.weight.detach(), before - lr)  # no decay of the advisor's
        with pytest.raises(ValueError, match=r"must not call advisor\.step"):
            advisor.step(1.0)
    assert (acted, advisor.measurements, advisor.steps, advisor.unclosed_steps) == ([1], measured, 3, 0)
    advisor.step(bare.step())
    assert (advisor.steps, advisor.measurements) == (4, measured + 1)
    with pytest.raises(KeyError), stage.cleared(lambda: None):
        raise KeyError
    assert stage.understudy is None
    advisor.close()
    with pytest.raises(RuntimeError, match="closed"):
        advisor.stage()
