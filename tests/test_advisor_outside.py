"""What a user's own code does to model and optimizer beside the advisor."""

from __future__ import annotations

import copy
import io
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from training_loop import advised, batches, network, optimizer_of, train

from lipadvisor import Advisor, load_run
from lipadvisor.policies import Decision, Knobs, Observation
from lipadvisor.probe.capture import Capture


@dataclass(frozen=True)
class Steady:
    """Owns the knobs of the first group alone."""

    name: str = "steady"

    def init(self) -> tuple[()]:
        return ()

    def decide(self, observation: Observation, state: tuple[()]) -> tuple[Decision, tuple[()]]:
        return Decision(observation.step, self.name, "steady", (Knobs(0, 0.01, 0.1),)), state


@pytest.mark.parametrize("mode", ["shadow", "cap", "takeover"])
def test_two_groups_of_matrices_that_decay_differently(mode: str) -> None:
    model = network()
    groups = [
        {"params": model[0].parameters()},
        {"params": [*model[3].parameters(), *model[5].parameters()], "lr": 1e-2},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    with advised(model, optimizer, mode=mode, policy=Steady()) as advisor:
        train(model, optimizer, advisor, 12)
        assert advisor.measurements == 12
        seen = advisor.trajectory.observations.query("step == 12 and layer != '*'")
    assert seen.log_norm.notna().all()


def test_knobs_that_a_loaded_state_brings_along_do_not_matter() -> None:
    rates = []
    model = network()
    optimizer = optimizer_of("sgd", model)
    with Advisor(model, optimizer, 10_000, policy="constant", interval=50, on_error="raise") as advisor:
        optimizer.register_step_post_hook(lambda one, *_: rates.append(one.param_groups[0]["lr"]))
        train(model, optimizer, advisor, 103)
        state = copy.deepcopy(optimizer.state_dict())
        state["param_groups"][0].update(lr=0.5, weight_decay=0.3)
        optimizer.load_state_dict(state)
        train(model, optimizer, advisor, 120, start=103)
        assert advisor._applier.foreign_writes == 2, "a learning rate and a decay"
    assert max(rates) < 0.5


def test_after_a_rollback_a_scheduler_still_has_no_say() -> None:
    model = network()
    optimizer = optimizer_of("sgd", model)
    rates = []
    with Advisor(model, optimizer, 10_000, interval=50, on_error="raise", snapshot_every=20) as advisor:
        train(model, optimizer, advisor, 103)
        for step, (x, y) in enumerate(batches(120, start=103)):
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.param_groups[0]["lr"] = 3.0
            optimizer.step()
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            advisor.step(math.nan if step == 2 else loss)
        assert advisor._line._snapshot.restored == 1
    assert max(rates) < 3.0


def test_a_group_that_came_later_is_given_back_and_nothing_recorded_is_lost(tmp_path: Path) -> None:
    model, late = network(), nn.Linear(3, 3)
    optimizer = optimizer_of("adamw", model)
    with Advisor(model, optimizer, 100, interval=1, out=tmp_path, on_error="raise") as advisor:
        train(model, optimizer, advisor, 5)
        optimizer.add_param_group({"params": late.parameters(), "weight_decay": 0.7})
        train(model, optimizer, advisor, 10, start=5)
    assert optimizer.param_groups[1]["weight_decay"] == 0.7
    assert load_run(tmp_path).observations.step.max() == 10


def test_an_error_while_closing_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = optimizer_of("sgd", model)
    advisor = advised(model, optimizer, out=tmp_path)
    train(model, optimizer, advisor, 10)

    def broken() -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(advisor._applier, "close", broken)
    with pytest.raises(RuntimeError, match="broken"):
        advisor.close()
    assert load_run(tmp_path).observations.step.max() == 10


def test_a_resumed_run_can_be_rolled_back() -> None:
    model = network()
    optimizer = optimizer_of("sgd", model)
    first = advised(model, optimizer, 200)
    train(model, optimizer, first, 30)
    state = first.state_dict()
    first.close()
    with advised(model, optimizer, 200) as advisor:
        advisor.load_state_dict(state)
        train(model, optimizer, advisor, 33, start=30)
        with torch.no_grad():
            model[0].weight.fill_(math.nan)
        for x, y in batches(36, start=33):
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            advisor.step(loss)
    assert torch.isfinite(model[0].weight).all()


def test_a_state_of_other_layers_changes_nothing() -> None:
    model, other = network(), nn.Sequential(nn.Linear(8, 3))
    optimizer, other_optimizer = optimizer_of("sgd", model), optimizer_of("sgd", other)
    with advised(model, optimizer) as advisor, advised(other, other_optimizer) as second:
        train(model, optimizer, advisor, 5)
        with pytest.raises(ValueError, match="layers"):
            second.load_state_dict(advisor.state_dict())
        assert second.steps == 0
        with pytest.raises(TypeError, match="state"):
            second.load_state_dict(None)  # type: ignore[arg-type]


def test_copies_of_a_watched_model_are_not_watched() -> None:
    model = network()
    optimizer = optimizer_of("sgd", model)
    with advised(model, optimizer) as advisor:
        twin = copy.deepcopy(model)
        before = [p.clone() for p in twin.parameters()]
        twin(torch.randn(4, 8)).sum().backward()
        assert all(torch.equal(p, q) for p, q in zip(twin.parameters(), before, strict=True)), "not rescaled"
        assert not advisor._line.started
        train(model, optimizer, advisor, 3)  # the next step is to be measured: all hooks are in
        stream = io.BytesIO()
        torch.save(model, stream)
        assert b"lipadvisor" not in stream.getvalue(), "whoever loads it needs no package of ours"
        copy.deepcopy(model)(torch.randn(4, 8)).sum().backward()
        capture = advisor._probe._capture
        assert not capture.fired
        assert not any(capture.calls)
        model(torch.randn(4, 8))
        assert capture.fired, "the watched model's own passes are seen"


def test_an_error_on_the_short_path_does_not_stop_training(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = optimizer_of("sgd", model)
    with Advisor(model, optimizer, 10_000, interval=20) as advisor:
        train(model, optimizer, advisor, 5)

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("broken")

        monkeypatch.setattr(Capture, "attach", broken)
        for x, y in batches(45, start=5):
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            advisor.step(loss)
        assert advisor.errors > 0


@dataclass(frozen=True)
class AlwaysFails:
    name: str = "always_fails"

    def init(self) -> tuple[()]:
        return ()

    def decide(self, observation: Observation, state: tuple[()]) -> tuple[Decision, tuple[()]]:
        if observation.step:
            raise RuntimeError("broken")
        return Decision(0, self.name, "start", (Knobs(0, 1e-6, 0.0),)), state


def test_a_policy_that_never_decides_gives_the_knobs_back_however_rare_decisions_are() -> None:
    model = network()
    optimizer = optimizer_of("sgd", model, lr=0.07)
    with Advisor(model, optimizer, 10_000, policy=AlwaysFails(), interval=20) as advisor:
        for x, y in batches(300):
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            advisor.step(loss)
        assert optimizer.param_groups[0]["lr"] == 0.07


def test_steps_that_nobody_closes_and_steps_beyond_the_horizon_are_told(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    optimizer = optimizer_of("sgd", model)
    with caplog.at_level(logging.WARNING, logger="lipadvisor"), advised(model, optimizer, 20) as advisor:
        train(model, optimizer, advisor, 10)
        train(model, optimizer, None, 12, start=10)
        assert advisor.unclosed_steps == 1
        train(model, optimizer, advisor, 30, start=12)
        assert advisor.unclosed_steps == 2
    told = [record.message for record in caplog.records]
    assert sum("without Advisor.step()" in one for one in told) == 1
    assert sum("beyond total_steps" in one for one in told) == 1


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("lr", [0.01, 0.1, 1e4])
def test_a_run_that_diverges_prints_no_warnings_of_numpy(lr: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with Advisor(model, optimizer, 200, policy="constant", mode="shadow", interval=1, on_error="raise") as advisor:
        for _ in range(200):
            x = torch.randn(16, 8)
            loss = (model(x) - 100.0 * x[:, :1]).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            advisor.step(loss)
        assert not math.isfinite(float(loss.detach()))
        advisor.forecast(20)
        assert "non_finite" in set(advisor.trajectory.observations["status"])
