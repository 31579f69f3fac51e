from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lipadvisor import Advisor, load_run
from lipadvisor.experiments.workloads import WORKLOADS
from lipadvisor.loss import LossWatch
from lipadvisor.policies import Decision, Knobs, Observation, Status, named_policy
from lipadvisor.probe import Probe
from lipadvisor.probe.schedule import Budget
from lipadvisor.report.replay import replayed


def network(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(8, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
        )


def convnet(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.Flatten(), nn.Linear(36, 3)
        )


def batches(steps: int, shape: tuple[int, ...] = (8,), start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(32, *shape, generator=generator)
        thirds = [part.flatten(1).sum(1) for part in x.tensor_split(3, dim=-1)]
        yield x, torch.stack(thirds, 1).argmax(1)


def optimizer_of(kind: str, model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=lr)
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9 if kind == "momentum" else 0.0)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    advisor: Advisor | None,
    steps: int,
    shape: tuple[int, ...] = (8,),
    start: int = 0,
) -> list[float]:
    losses = []
    for x, y in batches(steps, shape, start):
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if advisor is not None:
            assert isinstance(advisor.step(loss), Decision)
        losses.append(loss.item())
    return losses


def advised(
    model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int | None = 60, **more: object
) -> Advisor:
    return Advisor(model, optimizer, total_steps, interval=1, on_error="raise", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adamw"])
@pytest.mark.parametrize("conv", [False, True])
def test_a_plain_loop_trains_is_measured_and_predicted(kind: str, conv: bool) -> None:
    model, shape = (convnet(), (1, 8, 8)) if conv else (network(), (8,))
    optimizer = optimizer_of(kind, model)
    with advised(model, optimizer) as advisor:
        losses = train(model, optimizer, advisor, 60, shape)
        frames = advisor.trajectory
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:5])
    total = frames.observations[frames.observations.layer == "*"]
    assert list(total.step) == list(range(61))
    # the finite-step prediction, integrated from step 0, stays within 1 % of the observed network bound
    assert np.expm1(np.abs(total.predicted - total.log_norm).max()) < 0.01
    assert set(frames.decisions.step) == set(range(61))
    assert frames.decisions.reason.str.len().min() > 0
    assert {"*", "0"} <= set(frames.forecasts.layer)


def test_the_observed_norm_is_that_of_the_weights_after_the_step() -> None:
    model = network()
    optimizer = optimizer_of("sgd", model)
    with advised(model, optimizer) as advisor:
        train(model, optimizer, advisor, 7)
        frame = advisor.trajectory.observations
    for name in ("0", "3", "5"):
        row = frame[(frame.layer == name) & (frame.step == 7)].iloc[0]
        weight = model.get_submodule(name).weight.detach().double()
        assert row.log_norm == pytest.approx(math.log(torch.linalg.matrix_norm(weight, 2).item()), abs=1e-3)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_in_takeover_the_users_knobs_do_not_matter(kind: str) -> None:
    ends = []
    for lr in (1e-4, 10.0):
        model = network()
        optimizer = optimizer_of(kind, model, lr)
        with advised(model, optimizer) as advisor:
            train(model, optimizer, advisor, 20)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)


def test_shadow_leaves_the_training_bitwise_as_it_is() -> None:
    ends, states = [], []
    for with_advisor in (False, True):
        torch.manual_seed(5)
        model = network(dropout=0.2)
        optimizer = optimizer_of("adamw", model, 1e-2)
        advisor = advised(model, optimizer, mode="shadow") if with_advisor else None
        train(model, optimizer, advisor, 20)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        states.append(torch.get_rng_state())
    assert torch.equal(*ends)
    assert torch.equal(*states)


def test_cap_never_exceeds_the_users_rate_and_leaves_it_in_place() -> None:
    model = network()
    optimizer = optimizer_of("sgd", model, 1e-3)
    with advised(model, optimizer, mode="cap") as advisor:
        train(model, optimizer, advisor, 20)
        used = advisor.trajectory.decisions.lr_applied
        assert optimizer.param_groups[0]["lr"] == 1e-3
    assert used.max() <= 1e-3


def test_forecast_has_the_promised_shape_and_answers_what_if() -> None:
    model = network()
    optimizer = optimizer_of("sgd", model)
    with advised(model, optimizer, policy="constant") as advisor:
        train(model, optimizer, advisor, 40)
        forecast = advisor.forecast(50)
        assert set(forecast.layers) == {"0", "3", "5"}
        for series in (forecast.network, *forecast.layers.values()):
            for values in (series.mean, series.std, series.lower, series.upper):
                assert values.shape == (50,)
            assert (series.lower <= series.mean).all()
            assert (series.mean <= series.upper).all()
        assert isinstance(forecast.status, Status)
        decayed = advisor.forecast(50, plan={"weight_decay": 2.0})
        still = advisor.forecast(50, plan={"lr": np.full(50, 1e-9)})
        now = advisor.trajectory.observations.query("layer == '*'").log_norm.iloc[-1]
        assert decayed.network.mean[-1] < forecast.network.mean[-1]
        assert still.network.mean[-1] == pytest.approx(now, abs=0.02)
        for plan in ({"rate": 1.0}, {"lr": -1.0}, {"lr": [0.1, 0.2]}):
            with pytest.raises(ValueError, match=next(iter(plan))):
                advisor.forecast(50, plan=plan)
        with pytest.raises(ValueError, match="horizon"):
            advisor.forecast(0)
        with pytest.raises(TypeError, match="plan"):
            advisor.forecast(5, plan=5)  # type: ignore[arg-type]


def test_a_forecast_before_the_first_step_says_that_it_knows_too_little() -> None:
    model = network()
    with advised(model, optimizer_of("sgd", model)) as advisor:
        assert advisor.forecast(5).status is not Status.OK


def run_with_checkpoint(kind: str, stop: int | None, tmp_path: Path) -> tuple[torch.Tensor, object]:
    model = network()
    optimizer = optimizer_of(kind, model)
    advisor = advised(model, optimizer)
    if stop is not None:
        train(model, optimizer, advisor, stop)
        path = tmp_path / "checkpoint.pt"
        torch.save({"model": model.state_dict(), "opt": optimizer.state_dict(), "advisor": advisor.state_dict()}, path)
        advisor.close()
        kept = torch.load(path, weights_only=True)
        model = network(seed=9)
        optimizer = optimizer_of(kind, model, lr=3.0)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["opt"])
        advisor = advised(model, optimizer)
        advisor.load_state_dict(kept["advisor"])
    train(model, optimizer, advisor, 40, start=stop or 0)
    tail = advisor.trajectory.observations.query("step > 25").drop(columns=["overhead", "measure_s", "step_s"])
    forecast = advisor.forecast(10).network
    advisor.close()
    end = torch.cat([p.detach().flatten() for p in model.parameters()])
    return end, (tail.reset_index(drop=True), forecast)


@pytest.mark.parametrize("kind", ["momentum", "adamw"])
def test_a_resumed_run_equals_the_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    whole, (rows, forecast) = run_with_checkpoint(kind, None, tmp_path)
    resumed, (resumed_rows, resumed_forecast) = run_with_checkpoint(kind, 20, tmp_path)
    assert torch.equal(whole, resumed)
    assert rows.equals(resumed_rows)
    assert np.array_equal(forecast.mean, resumed_forecast.mean)
    assert np.array_equal(forecast.std, resumed_forecast.std)


def test_state_of_another_policy_is_refused() -> None:
    model = network()
    state = advised(model, optimizer_of("sgd", model)).state_dict()
    with pytest.raises(ValueError, match="policy"):
        advised(model, optimizer_of("sgd", model), policy="constant").load_state_dict(state)


def test_the_initialization_is_rescaled_before_the_first_step_and_not_on_resume() -> None:
    model = network()
    with torch.no_grad():
        model[3].weight.mul_(30)
    norm = torch.linalg.matrix_norm(model[3].weight.detach(), 2)
    optimizer = optimizer_of("sgd", model)
    with advised(model, optimizer) as advisor:
        model(next(batches(1))[0])
        rescued = torch.linalg.matrix_norm(model[3].weight.detach(), 2)
        assert rescued < norm / 5
        state = advisor.state_dict()
    other = network()
    with torch.no_grad():
        other[3].weight.mul_(30)
    with advised(other, optimizer_of("sgd", other)) as resumed:
        resumed.load_state_dict(state)
        other(next(batches(1))[0])
    assert torch.linalg.matrix_norm(other[3].weight.detach(), 2) == norm


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_rolled_back_and_training_goes_on(bad: float) -> None:
    model = network()
    optimizer = optimizer_of("adamw", model)
    with advised(model, optimizer, snapshot_every=5) as advisor:
        train(model, optimizer, advisor, 20)
        x, y = next(batches(1))
        loss = nn.functional.cross_entropy(model(x * bad), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        decision = advisor.step(loss)
        assert decision is not None
        assert decision.rollback
        assert all(torch.isfinite(p).all() for p in model.parameters())
        losses = train(model, optimizer, advisor, 60, start=21)
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.9


def test_a_step_that_a_gradient_scaler_skipped_is_not_a_step() -> None:
    model = network()
    optimizer = optimizer_of("sgd", model)
    with advised(model, optimizer) as advisor:
        train(model, optimizer, advisor, 3)
        x, y = next(batches(1))
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.zero_grad()
        assert advisor.step(loss) is None
        assert advisor.steps == 3
        assert advisor.skipped_steps == 1
        train(model, optimizer, advisor, 6, start=3)
        assert advisor.steps == 6


@dataclass(frozen=True)
class Broken:
    name: str = "broken"

    def init(self) -> tuple[()]:
        return ()

    def decide(self, observation: Observation, state: tuple[()]) -> tuple[Decision, tuple[()]]:
        raise RuntimeError("a bug in a user's policy")


def test_an_error_of_the_advisors_own_does_not_stop_training_and_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    optimizer = optimizer_of("sgd", model)
    with Advisor(model, optimizer, 10, policy=Broken()) as advisor, caplog.at_level(logging.ERROR):
        for x, y in batches(5):
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            assert advisor.step(loss) is None
        assert advisor.errors > 0
    assert "a bug in a user's policy" in caplog.text


@dataclass(frozen=True)
class Halving:
    lr: float = 0.1
    name: str = "halving"

    def init(self) -> tuple[()]:
        return ()

    def decide(self, observation: Observation, state: tuple[()]) -> tuple[Decision, tuple[()]]:
        knobs = tuple(Knobs(k.group, lr=self.lr * 0.5 ** (observation.step // 5)) for k in observation.knobs)
        return Decision(observation.step, self.name, "every_5", knobs), state


def test_the_users_own_policy_and_two_parameter_groups() -> None:
    model = network()
    groups = [
        {"params": model[0].parameters()},
        {"params": [*model[3].parameters(), *model[5].parameters()], "lr": 1.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.3)
    with advised(model, optimizer, policy=Halving()) as advisor:
        train(model, optimizer, advisor, 12)
        assert [g["lr"] for g in optimizer.param_groups] == [0.025, 0.025]
        first = advisor.trajectory.decisions.query("group == 0")
    assert list(first.lr_applied) == [0.1 * 0.5 ** (step // 5) for step in range(13)]


def test_a_foreign_write_is_reported() -> None:
    model = network()
    optimizer = optimizer_of("sgd", model)
    with advised(model, optimizer) as advisor:
        train(model, optimizer, advisor, 5)
        optimizer.param_groups[0]["lr"] *= 10
        train(model, optimizer, advisor, 8, start=5)
        refused = advisor.trajectory.decisions.refused
    assert refused.str.contains("foreign_write").sum() == 1


def test_close_leaves_no_hook_behind_and_says_so_when_used_again() -> None:
    model = network()
    optimizer = optimizer_of("sgd", model)
    advisor = advised(model, optimizer)
    train(model, optimizer, advisor, 3)
    advisor.close()
    advisor.close()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    with pytest.raises(RuntimeError, match="close"):
        advisor.step(0.0)


def test_out_stores_what_the_advisor_has_in_memory(tmp_path: Path) -> None:
    model = network()
    optimizer = optimizer_of("sgd", model)
    with advised(model, optimizer, out=tmp_path / "run") as advisor:
        train(model, optimizer, advisor, 12)
        frames = advisor.trajectory
    run = load_run(tmp_path / "run")
    for name in ("observations", "forecasts", "decisions"):
        kept, stored = getattr(frames, name), getattr(run, name)
        assert len(stored) == len(kept) > 0
        for column in ("step", "reason", "log_norm", "mean"):
            if column in kept:
                assert list(stored[column]) == list(kept[column])


def test_an_adaptive_probe_measures_less_often_and_the_knobs_still_move() -> None:
    model = network()
    optimizer = optimizer_of("sgd", model)
    with Advisor(model, optimizer, 300, on_error="raise", max_overhead=0.2) as advisor:
        train(model, optimizer, advisor, 300)
        steps = advisor.trajectory.observations.query("layer == '*'").step
    assert len(steps) < 200
    assert advisor.errors == 0


def model_without_layers() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(8))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"total_steps": 0}, "total_steps"),
        ({"total_steps": 2.5}, "total_steps"),
        ({"mode": "boss"}, "mode"),
        ({"policy": "no_such"}, "no_such"),
        ({"max_overhead": 0.0}, "max_overhead"),
        ({"max_overhead": 2.0}, "max_overhead"),
        ({"max_overhead": "much"}, "max_overhead"),
        ({"seed": "a"}, "seed"),
        ({"out": 3}, "out"),
        ({"out": __file__}, "out"),
        ({"interval": 0}, "interval"),
        ({"snapshot_every": 0}, "snapshot_every"),
        ({"include": ("nothing*",)}, "layer"),
        ({"model": model_without_layers()}, "layer"),
        ({"optimizer": torch.optim.SGD(network(3).parameters(), lr=0.1)}, "optimizer"),
        ({"out": "x", "sink": print}, "out"),
    ],
)
def test_bad_arguments_are_named_before_any_work(change: dict[str, object], text: str, tmp_path: Path) -> None:
    model = change.pop("model", None) or network()
    optimizer = change.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=0.1)  # type: ignore[attr-defined]
    arguments: dict[str, object] = {"total_steps": 10, **change}
    with pytest.raises(ValueError, match=text):
        Advisor(model, optimizer, **arguments)  # type: ignore[arg-type]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())  # type: ignore[attr-defined]


def test_a_directory_that_cannot_be_made_is_named() -> None:
    model = network()
    with pytest.raises(OSError, match=r"Advisor\(out=.*/proc/nope"):
        Advisor(model, optimizer_of("sgd", model), 10, out="/proc/nope/x")


def test_unknown_horizon() -> None:
    model = network()
    optimizer = optimizer_of("adamw", model)
    with advised(model, optimizer, total_steps=None) as advisor:
        losses = train(model, optimizer, advisor, 60)
    assert np.mean(losses[-10:]) < np.mean(losses[:5])


def test_the_checkpoint_is_small_and_loads_without_unpickling() -> None:
    model = network()
    optimizer = optimizer_of("adamw", model)
    with advised(model, optimizer) as advisor:
        train(model, optimizer, advisor, 30)
        file = io.BytesIO()
        torch.save(advisor.state_dict(), file)
    file.seek(0)
    torch.load(file, weights_only=True)
    assert file.tell() < 5_000_000


def test_bfloat16_autocast_does_not_reach_the_advisors_own_arithmetic() -> None:
    model = network()
    optimizer = optimizer_of("adamw", model)
    losses = []
    with advised(model, optimizer) as advisor:
        for x, y in batches(60):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            advisor.step(loss)
            losses.append(loss.item())
        frame = advisor.trajectory.observations.query("layer == '*'")
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert np.isfinite(frame.log_norm).all()


@pytest.mark.parametrize("kind", ["momentum", "adamw"])
def test_in_takeover_a_scheduler_before_the_advisors_step_changes_nothing(kind: str) -> None:
    ends, rates = [], []
    for scheduled in (False, True):
        model = network()
        optimizer = optimizer_of(kind, model)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60, eta_min=3.0)
        with advised(model, optimizer) as advisor:
            for x, y in batches(30):
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                if scheduled:
                    scheduler.step()
                optimizer.zero_grad()
                advisor.step(loss)
            rates.append(advisor.trajectory.observations.query("layer == '*'").lr)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)
    assert rates[0].equals(rates[1])


def test_after_errors_in_a_row_the_user_has_the_knobs_back(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    optimizer = optimizer_of("adamw", model, lr=0.02)
    with Advisor(model, optimizer, 50, policy=FailsLater()) as advisor, caplog.at_level(logging.ERROR):
        for x, y in batches(20):
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            advisor.step(loss)
        assert advisor.errors == 5
        assert optimizer.param_groups[0]["lr"] == 0.02
        assert optimizer.param_groups[0]["weight_decay"] == 0.01
    assert "gives the optimizer's knobs back" in caplog.text


@dataclass(frozen=True)
class FailsLater:
    name: str = "fails_later"

    def init(self) -> tuple[()]:
        return ()

    def decide(self, observation: Observation, state: tuple[()]) -> tuple[Decision, tuple[()]]:
        if observation.step > 3:
            raise RuntimeError("broken")
        return Decision(observation.step, self.name, "tiny", (Knobs(0, 1e-6, 0.0),)), state


@pytest.mark.parametrize(("name", "value"), [("model", 3), ("optimizer", "sgd"), ("policy", None), ("policy", 3)])
def test_what_is_no_model_optimizer_or_policy_is_named(name: str, value: object) -> None:
    model = network()
    arguments: dict[str, object] = {"model": model, "optimizer": optimizer_of("sgd", model), "policy": "lipschitz"}
    arguments[name] = value
    with pytest.raises(TypeError, match=name):
        Advisor(total_steps=10, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-0.1, math.nan])
def test_a_learning_rate_that_is_none_is_an_error(value: float) -> None:
    model = network()
    optimizer = optimizer_of("sgd", model)
    optimizer.param_groups[0]["lr"] = value
    with pytest.raises(ValueError, match="lr of group 0"):
        Advisor(model, optimizer, 10)


def test_the_default_policy_replayed_over_its_own_run_decides_what_was_decided(tmp_path: Path) -> None:
    model = network()
    optimizer = optimizer_of("momentum", model)
    with Advisor(model, optimizer, 60, interval=1, out=tmp_path) as advisor:
        train(model, optimizer, advisor, 60)
    run = load_run(tmp_path)
    first = run.decisions[run.decisions.step == 0]
    assert len(first) == 1
    assert "0" in str(first.init_scale.iloc[0]), "this network's initialization is rescaled"
    frame = replayed(run, named_policy("lipschitz"))
    assert len(frame) == 61
    np.testing.assert_allclose(frame.lr_proposed, frame.lr_recorded, rtol=1e-12)
    np.testing.assert_allclose(frame.weight_decay_proposed, frame.weight_decay_recorded, rtol=1e-12)


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
    assert late == [202, 203], "the steps after the two that were unusual, counted as steps taken"


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
