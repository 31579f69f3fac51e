"""The early warning while a training runs: told once, recorded always, and silent where a run goes well."""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lipadvisor import Advisor, load_run
from lipadvisor.dynamics import PARTS, attribute_recorded
from lipadvisor.forecast import recorded_alarms
from lipadvisor.policies import Constant, Status


class Training:
    """A small classifier whose learning rate grows by a factor each step from step 100 on."""

    def __init__(self, growth: float, steps: int, kind: str = "sgd", **given: Any) -> None:
        self.growth, self.generator = growth, torch.Generator().manual_seed(0)
        self.inputs = torch.randn(512, 16, generator=self.generator)
        self.targets = (self.inputs @ torch.randn(16, 4, generator=self.generator)).argmax(1)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
        makers = {
            "sgd": lambda w: torch.optim.SGD(w, lr=0.1),
            "momentum": lambda w: torch.optim.SGD(w, lr=0.02, momentum=0.9),
            "adamw": lambda w: torch.optim.AdamW(w, lr=1e-3),
        }
        self.optimizer = makers[kind](self.model.parameters())
        self.advisor = Advisor(self.model, self.optimizer, steps, **given)
        self.losses: list[float] = []

    def run(self, steps: int, told: bool = True) -> Training:
        for _ in range(steps):
            if self.growth != 1.0:
                self.optimizer.param_groups[0]["lr"] = 0.1 * self.growth ** max(0, len(self.losses) - 100)
            rows = torch.randint(0, 512, (64,), generator=self.generator)
            loss = nn.functional.cross_entropy(self.model(self.inputs[rows]), self.targets[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.advisor.step(loss if told else None)
            self.losses.append(float(loss.detach()))
        return self

    @property
    def lost(self) -> int:
        smooth = np.convolve(self.losses, np.ones(20) / 20, mode="valid")
        return 100 + int(np.flatnonzero(~(smooth[100:] < np.log(4.0)))[0]) + 19


def onsets(steps: list[int], raised: list[bool]) -> list[int]:
    return [step for step, before, now in zip(steps, [False, *raised], raised, strict=False) if now and not before]


@pytest.mark.parametrize("interval", [1, 5])
def test_a_ramp_is_announced_while_it_runs(interval: int, caplog: pytest.LogCaptureFixture, tmp_path: Any) -> None:
    with caplog.at_level(logging.WARNING, "lipadvisor"):
        training = Training(1.02, 400, mode="shadow", interval=interval, out=tmp_path / "run").run(400)
    training.advisor.close()
    alarms = training.advisor.alarms
    assert alarms
    assert 100 < alarms[0].step < training.lost - 20
    said = [record.message for record in caplog.records if "early warning" in record.message]
    assert len(said) == 1
    assert alarms[0].describe() in said[0]
    network = load_run(tmp_path / "run").observations.query("layer == '*'")
    raised = (network.alarm != "").tolist()
    assert onsets(network.step.tolist(), raised) == [alarm.step for alarm in alarms]
    first = network[network.step == alarms[0].step].iloc[0]
    assert first.alarm.split() == list(alarms[0].signs)
    assert len(alarms[0].signs) >= 2
    assert (network.step_status[raised].isin([Status.UNSTABLE, Status.NON_FINITE])).all()
    assert not (network.step_status[~np.array(raised)] == Status.UNSTABLE).any()


@pytest.mark.parametrize(("kind", "growth"), [("sgd", 1.02), ("sgd", 1.04), ("momentum", 1.02)])
def test_under_the_default_budget_a_loss_that_climbs_has_the_next_step_measured(
    kind: str, growth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "perf_counter", time.process_time)  # a budget of time, whatever else the machine does
    training = Training(growth, 400, kind, mode="shadow").run(400)
    assert len(training.advisor.trajectory.observations.query("layer == '*'")) < 100
    assert training.advisor.alarms
    assert 100 < training.advisor.alarms[0].step < training.lost


def test_an_alarm_in_force_is_told_once_whether_the_run_was_interrupted_or_not() -> None:
    first = Training(1.02, 400, mode="shadow", interval=1)
    while not first.advisor.alarms:
        first.run(1)
    second = Training(1.02, 400, mode="shadow", interval=1)
    for part in ("model", "optimizer", "advisor"):
        getattr(second, part).load_state_dict(getattr(first, part).state_dict())
    second.generator.set_state(first.generator.get_state())
    second.losses = list(first.losses)
    known = len(first.advisor.alarms)
    assert first.run(1).advisor.trajectory.observations.alarm.iloc[-1] != "", "it is still in force"
    assert len(first.advisor.alarms) == known
    assert second.run(1).advisor.alarms == ()


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adamw"])
def test_a_default_run_that_goes_well_raises_nothing(kind: str) -> None:
    training = Training(1.0, 400, kind, interval=1).run(400)
    assert training.losses[-1] < 0.5 * training.losses[0]
    assert training.advisor.alarms == ()
    seen = training.advisor.trajectory
    assert not (seen.observations.alarm != "").any()
    assert not any(alarm.raised for alarm in recorded_alarms(seen.observations, seen.forecasts, None, seen.decisions))


def test_without_a_loss_it_says_what_the_record_says() -> None:
    training = Training(1.02, 300, mode="shadow", interval=3).run(300, told=False)
    seen = training.advisor.trajectory
    offline = recorded_alarms(seen.observations, seen.forecasts)
    network = seen.observations.query("layer == '*' and step > 0")
    assert [" ".join(alarm.signs) if alarm.raised else "" for alarm in offline] == network.alarm.tolist()
    assert any(alarm.raised for alarm in offline)


def test_a_resumed_run_goes_on_watching_as_if_it_had_not_been_interrupted() -> None:
    whole = Training(1.02, 400, mode="shadow", interval=5).run(260)
    first = Training(1.02, 400, mode="shadow", interval=5).run(130)
    saved = [part.state_dict() for part in (first.model, first.optimizer, first.advisor)]
    second = Training(1.02, 400, mode="shadow", interval=5)
    for part, state in zip((second.model, second.optimizer, second.advisor), saved, strict=True):
        part.load_state_dict(state)
    second.generator.set_state(first.generator.get_state())
    second.losses = list(first.losses)
    second.run(130)
    later = [alarm for alarm in whole.advisor.alarms if alarm.step > 130]
    assert later
    assert list(second.advisor.alarms) == later


def test_the_last_steps_can_be_attributed_alone() -> None:
    training = Training(1.0, 60, policy=Constant(lr=0.05, weight_decay=0.1), interval=3).run(60)
    observations = training.advisor.trajectory.observations
    network = observations.query("layer == '*'").set_index("step").log_norm
    found = attribute_recorded(observations, last=20)
    begin = max(step for step in network.index if step <= network.index[-1] - 20)
    assert found.growth == pytest.approx(network.iloc[-1] - network[begin])
    assert set(found.parts) == set(PARTS)
    assert sum(found.shares().values()) == pytest.approx(1.0)
    assert attribute_recorded(observations, last=10**6).parts == attribute_recorded(observations).parts
