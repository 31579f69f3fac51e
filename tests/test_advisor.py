from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from training_loop import advised, batches, convnet, network, optimizer_of, train

from lipadvisor import Advisor, load_run
from lipadvisor.policies import Decision, Knobs, Observation, Status, named_policy
from lipadvisor.report.replay import replayed


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


@pytest.mark.parametrize("mode", ["cap", "shadow"])
def test_the_record_says_that_nothing_went_back_where_the_mode_does_not_allow_it(mode: str) -> None:
    model = network()
    optimizer = optimizer_of("sgd", model)
    with advised(model, optimizer, mode=mode) as advisor:
        train(model, optimizer, advisor, 3)
        x, y = next(batches(1))
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        decision = advisor.step(math.nan)
        assert decision is not None
        assert decision.rollback
        (told,) = advisor.trajectory.decisions.query("rollback").refused.unique()
    assert told == f"rollback: not in {mode} mode"


def test_a_call_before_the_first_pass_is_no_step_and_does_no_harm() -> None:
    model = network()
    optimizer = optimizer_of("momentum", model)
    with advised(model, optimizer) as advisor:
        assert advisor.step(1.0) is None
        train(model, optimizer, advisor, 3, (8,))
        assert (advisor.steps, advisor.skipped_steps, advisor.errors) == (3, 1, 0)


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


def test_unknown_horizon() -> None:
    model = network()
    optimizer = optimizer_of("adamw", model)
    with advised(model, optimizer, total_steps=None) as advisor:
        losses = train(model, optimizer, advisor, 60)
    assert np.mean(losses[-10:]) < np.mean(losses[:5])


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
    assert "you have the knobs back" in caplog.text


@dataclass(frozen=True)
class FailsLater:
    name: str = "fails_later"

    def init(self) -> tuple[()]:
        return ()

    def decide(self, observation: Observation, state: tuple[()]) -> tuple[Decision, tuple[()]]:
        if observation.step > 3:
            raise RuntimeError("broken")
        return Decision(observation.step, self.name, "tiny", (Knobs(0, 1e-6, 0.0),)), state


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
