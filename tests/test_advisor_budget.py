from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from training_loop import batches, network, optimizer_of, train

from lipadvisor import Advisor
from lipadvisor.experiments.workloads import WORKLOADS
from lipadvisor.loss import LossWatch
from lipadvisor.probe import Probe
from lipadvisor.probe.schedule import Budget


def test_an_adaptive_probe_measures_less_often_and_the_knobs_still_move() -> None:
    model = network()
    optimizer = optimizer_of("sgd", model)
    with Advisor(model, optimizer, 300, on_error="raise", max_overhead=0.2) as advisor:
        train(model, optimizer, advisor, 300)
        steps = advisor.trajectory.observations.query("layer == '*'").step
    assert len(steps) < 200
    assert advisor.errors == 0


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_short_path_of_steps_without_measurement_changes_nothing(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained() -> tuple[nn.Module, list[float], pd.DataFrame]:
        model = network()
        optimizer = optimizer_of(kind, model)
        rates = []
        with Advisor(model, optimizer, 1000, interval=13, on_error="raise") as advisor:
            for x, y in batches(130):
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                if len(rates) == 60:
                    optimizer.param_groups[0]["lr"] = 7.0  # from outside
                optimizer.step()
                optimizer.zero_grad()
                advisor.step(loss)
                rates.append(float(optimizer.param_groups[0]["lr"]))
            frame = advisor.trajectory.observations.query("layer == '*'")
        return model, rates, frame

    model, rates, frame = trained()
    monkeypatch.setattr(Probe, "idle", False)
    slow_model, slow_rates, slow_frame = trained()
    assert max(rates) < 7.0
    assert rates == slow_rates
    for one, other in zip(model.parameters(), slow_model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert (frame.step.diff().dropna() > 1).any(), "some steps were not measured"
    for column in ("step", "tau", "log_norm", "predicted"):
        np.testing.assert_array_equal(frame[column], slow_frame[column])


def test_a_loss_that_leaves_its_range_is_looked_at_out_of_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budget, "_wait", lambda self, step: 10_000)  # nothing after the early steps but what is urged
    model = network()
    optimizer = optimizer_of("sgd", model)
    with Advisor(model, optimizer, 400, policy="constant", on_error="raise") as advisor:
        for step, (x, y) in enumerate(batches(300)):
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            advisor.step(loss.item() * (50.0 if step in (200, 201) else 1.0))
        steps = advisor.trajectory.observations.query("layer == '*'").step.tolist()
    late = [step for step in steps if step > 125]
    assert late[:2] == [202, 203], "the steps after the two that were unusual, counted as steps taken"
    assert late[2:] == [212, 222, 242], "ever more rarely while the smoothed loss is still up"


def test_a_loss_watch_is_calm_on_noise_and_on_decay_and_sees_a_jump() -> None:
    generator = np.random.default_rng(0)
    watch = LossWatch()
    losses = np.exp(-0.01 * np.arange(1000) + 0.3 * generator.normal(size=1000))
    assert not any(watch.unusual(float(loss)) for loss in losses)
    assert watch.unusual(float(losses[-1]) * 20.0)
    assert watch.unusual(float("nan"))
    again = LossWatch()
    again.load_state_dict(watch.state_dict())
    assert again.state_dict() == watch.state_dict()


def test_a_loss_that_climbs_slowly_is_looked_at_ever_more_rarely_until_it_is_back() -> None:
    watch = LossWatch()
    climbing = [1.0] * 50 + [1.0 + 0.01 * step for step in range(300)]
    looks = [step for step, loss in enumerate(climbing) if watch.unusual(loss)]
    assert len(looks) == 6
    assert 50 < looks[0] < 90
    assert np.diff(looks).tolist() == [10, 10, 20, 40, 80]
    again = LossWatch()
    again.load_state_dict(watch.state_dict())
    assert again.state_dict() == watch.state_dict()
    assert not any(watch.unusual(1.0) for _ in range(20))
    for _ in range(100):
        watch.unusual(1.0)
    assert any(watch.unusual(1.5) for _ in range(20)), "a new climb is told anew"


def test_losses_of_either_sign_have_a_level() -> None:
    generator = np.random.default_rng(0)
    watch, losses = LossWatch(), 2.0 + 0.1 * generator.normal(size=200)
    for loss in losses:
        watch.unusual(float(loss))
    assert watch.level == pytest.approx(2.0, abs=0.1)
    for loss in losses - 3.5:
        watch.unusual(float(loss))
    assert watch.level == pytest.approx(-1.5, abs=0.1)
    again = LossWatch()
    again.load_state_dict({"mean": 0.5, "spread": 0.0})  # of an earlier version
    assert again.level == pytest.approx(np.exp(0.5))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_long_blind_stretches_do_not_kill_a_network_that_has_learnt(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budget, "_wait", lambda self, step: max(1, step))  # 120, 240, 480, ...: as under a tight budget
    workload = WORKLOADS["digits_convnet"]
    data, model = workload.load(), workload.model(seed)
    optimizer, drawn = workload.optimizer(model), workload.batches(data, seed)
    losses = []
    with Advisor(model, optimizer, 11_000, seed=seed, on_error="raise") as advisor:
        for _ in range(2200):
            x, y = next(drawn)
            loss = workload.loss(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            advisor.step(loss)
            losses.append(loss.item())
        assert advisor.measurements < 80
    assert np.mean(losses[-200:]) < 0.2
    assert workload.evaluate(model, data.test).accuracy > 0.93


def test_what_is_no_finite_number_takes_the_long_way_and_is_told_there() -> None:
    model = network()
    optimizer = optimizer_of("sgd", model)
    with Advisor(model, optimizer, 1000, interval=50) as advisor:
        train(model, optimizer, advisor, 8)
        for step, (x, y) in enumerate(batches(16, start=8)):
            loss = nn.functional.cross_entropy(model(x), y, reduction="none")
            loss.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert advisor._line.calm or step == 0
            decision = advisor.step(loss if step == 1 else None if step == 2 else loss.mean())
            assert (decision is None) == (step == 1), "a loss for each sample is an error that is caught"
        assert advisor.errors == 1
        assert advisor.steps == 15
