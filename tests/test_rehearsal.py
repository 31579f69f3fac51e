"""``rehearse``: what is tried is what then happens, and nothing of it stays."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipadvisor import Advisor, rehearse
from lipadvisor.forecast import rehearsed
from lipadvisor.policies import Status
from lipadvisor.rehearsal import _verdict

Batch = tuple[Tensor, Tensor]


def network(kind: str) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "conv":
            return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
        return nn.Sequential(
            nn.Flatten(), nn.Linear(9, 12), nn.BatchNorm1d(12), nn.Dropout(0.2), nn.Tanh(), nn.Linear(12, 3)
        )


def batches(seed: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(24, 1, 3, 3, generator=generator)
        yield x, x.flatten(1)[:, :3].argmax(1)


def optimizer_of(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, source: Iterator[Batch]) -> Tensor:
    x, y = next(source)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    return loss


def trained(
    kind: str, optimizer_kind: str, mode: str, steps: int = 25, **more: Any
) -> tuple[nn.Module, torch.optim.Optimizer, Advisor, Iterator[Batch]]:
    model = network(kind)
    optimizer, source = optimizer_of(optimizer_kind, model), batches(1)
    advisor = Advisor(model, optimizer, 200, mode=mode, interval=3, on_error="raise", **more)  # type: ignore[arg-type]
    torch.manual_seed(0)
    for _ in range(steps):
        advisor.step(step_of(model, optimizer, source))
    return model, optimizer, advisor, source


def whole_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"], groups, gradients, modes))
    return {"all": state, "random": (torch.get_rng_state(), random.getstate(), np.random.get_state())}


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, (Tensor, np.ndarray)):
        assert (one == other).all()
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


@pytest.mark.parametrize("mode", ["takeover", "cap", "shadow"])
@pytest.mark.parametrize("kind", ["plain", "conv"])
@pytest.mark.parametrize("optimizer_kind", ["momentum", "adamw"])
def test_nothing_of_it_stays(kind: str, optimizer_kind: str, mode: str) -> None:
    model, optimizer, advisor, source = trained(kind, optimizer_kind, mode)
    twin = trained(kind, optimizer_kind, mode)
    before = whole_state(model, optimizer)
    other = batches(7)
    found = rehearse(advisor, lambda: step_of(model, optimizer, other), 20, {"lr": 0.01, "weight_decay": 0.2}, 5, 2)
    assert_same(before, whole_state(model, optimizer))
    assert found.change_RS.shape == (2, len(advisor._probe.layers) + 1)
    assert found.loss_RT.shape == (2, 5)
    assert advisor.steps == 25
    assert advisor.skipped_steps == advisor.unclosed_steps == advisor.errors == 0
    losses = []
    for one, opt, own, feed in ((model, optimizer, advisor, source), twin):
        torch.manual_seed(3)
        losses.append([])
        for _ in range(12):
            loss = step_of(one, opt, feed)
            own.step(loss)
            losses[-1].append(loss.item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("mode", ["takeover", "shadow"])
@pytest.mark.parametrize("optimizer_kind", ["momentum", "adamw"])
def test_what_is_tried_is_what_then_happens(optimizer_kind: str, mode: str) -> None:
    model, optimizer, advisor, _ = trained("conv", optimizer_kind, mode)
    lr, decay = [0.01, 0.02, 0.02, 0.01, 0.01, 0.01, 0.01, 0.01], 0.3
    first, later = batches(11), batches(11)
    plan = {"lr": lr, "weight_decay": decay}
    found = rehearse(advisor, lambda: step_of(model, optimizer, first), 8, plan, 6, 2)
    start = {layer.name: layer.value().double() for layer in advisor._probe.layers}
    owned = mode == "takeover"
    advisor.close()

    def shrink(*_: Any) -> None:  # between gradient and update
        for p in model.parameters():
            if p.ndim >= 2 and owned:
                p.data.mul_(1.0 - optimizer.param_groups[0]["lr"] * decay)

    optimizer.register_step_pre_hook(shrink)
    for step in range(6):
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr[step], 0.0 if owned else decay
        step_of(model, optimizer, later)
    layer = next(one for one in advisor._probe.layers if one.kind == "linear")
    place = advisor._probe.layers.index(layer)
    norms = [torch.linalg.matrix_norm(w, 2).log() for w in (start[layer.name], layer.value().double())]
    assert found.change_RS[0, place] == pytest.approx(float(norms[1] - norms[0]), rel=1e-4, abs=1e-7)
    assert found.change_RS[0, -1] == pytest.approx(found.change_RS[0, :-1].sum())


def test_the_forecast_goes_on_from_where_the_replicas_came() -> None:
    model, optimizer, advisor, _ = trained("plain", "adamw", "takeover", 60)
    other = batches(5)
    found = rehearse(advisor, lambda: step_of(model, optimizer, other), 30, None, 10, 3)
    plain = advisor.forecast(30)
    assert found.forecast.status is plain.status
    assert found.forecast.start_step == 60
    norms = sum(math.log(float(torch.linalg.matrix_norm(one.value().double(), 2))) for one in advisor._probe.layers)
    assert found.forecast.network.mean[9] == pytest.approx(norms + found.change_RS[:, -1].mean(), abs=1e-6)
    np.testing.assert_allclose(np.diff(found.forecast.network.mean)[10:], np.diff(plain.network.mean)[10:])
    for series, was in ((found.forecast[name], plain[name]) for name in ("*", *plain.layers)):
        np.testing.assert_allclose(series.upper - series.lower, was.upper - was.lower)
        assert (series.lower <= series.mean).all()
        assert (series.mean <= series.upper).all()


def test_a_plan_that_breaks_a_replica_is_unstable() -> None:
    model, optimizer, advisor, source = trained("conv", "momentum", "takeover")
    before = whole_state(model, optimizer)

    def unclipped() -> Tensor:
        x, y = next(source)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(100.0 * x), y)
        loss.backward()
        optimizer.step()
        return loss

    found = rehearse(advisor, unclipped, 20, {"lr": 50.0, "weight_decay": 0.0}, 20, 2)
    assert found.forecast.status is Status.UNSTABLE
    assert any("rehearsed" in warning for warning in found.forecast.warnings)
    assert_same(before, whole_state(model, optimizer))


def test_an_error_of_the_users_step_leaves_nothing_either() -> None:
    model, optimizer, advisor, source = trained("plain", "momentum", "takeover")
    before, taken = whole_state(model, optimizer), []

    def fails() -> Tensor:
        taken.append(step_of(model, optimizer, source))
        if len(taken) == 3:
            raise KeyError("out of data")
        return taken[-1]

    with pytest.raises(KeyError, match="out of data"):
        rehearse(advisor, fails, 10, {"lr": 0.2})
    assert_same(before, whole_state(model, optimizer))
    step_of(model, optimizer, source)  # the advisor's own hooks are back
    assert advisor.step(1.0) is not None
    assert advisor.unclosed_steps == 0


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"steps": 0}, "steps"),
        ({"replicas": 1.5}, "replicas"),
        ({"replicas": 1}, "replicas=...\\) must be an integer >= 2, got 1"),
        ({"horizon": 5}, "horizon"),
        ({"plan": {"lr": [0.1, 0.2]}}, "lr"),
        ({"plan": {"momentum": 0.5}}, "momentum"),
        ({"train_step": 3}, "train_step"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_tried(given: dict[str, Any], what: str) -> None:
    model, optimizer, advisor, source = trained("plain", "momentum", "takeover", 5)
    before = whole_state(model, optimizer)
    arguments: dict[str, Any] = {"train_step": lambda: step_of(model, optimizer, source), "horizon": 20} | given
    with pytest.raises(ValueError, match=what):
        rehearse(advisor, **arguments)
    assert_same(before, whole_state(model, optimizer))


def test_it_needs_a_measurement_and_a_length_within_the_forecast() -> None:
    model, source = network("plain"), batches(1)
    optimizer = optimizer_of("momentum", model)
    advisor = Advisor(model, optimizer, 100)
    with pytest.raises(RuntimeError, match="measured"):
        rehearse(advisor, lambda: step_of(model, optimizer, source), 20)
    made = trained("plain", "adamw", "takeover")[2].forecast(5)
    with pytest.raises(ValueError, match="steps"):
        rehearsed(made, {}, 6)


def test_a_step_that_is_none_is_told_by_name_and_leaves_nothing() -> None:
    model, optimizer, advisor, source = trained("plain", "momentum", "takeover")
    before = whole_state(model, optimizer)

    def closes() -> Tensor:
        loss = step_of(model, optimizer, source)
        advisor.step(loss)
        return loss

    tried = {
        "return the loss": lambda: [step_of(model, optimizer, source)],
        "must not call advisor.step": closes,
        "took no step": lambda: 1.0,
    }
    for what, train_step in tried.items():
        with pytest.raises(ValueError, match=what):
            rehearse(advisor, train_step, 20)
        assert_same(before, whole_state(model, optimizer))
    assert (advisor.steps, advisor.skipped_steps, advisor.errors) == (25, 0, 0)
    step_of(model, optimizer, source)
    assert advisor.step(1.0) is not None
    with pytest.raises(TypeError, match="Advisor"):
        rehearse(model, lambda: 1.0, 20)  # type: ignore[arg-type]
    advisor.close()
    with pytest.raises(RuntimeError, match="closed"):
        rehearse(advisor, lambda: step_of(model, optimizer, source), 20)


@pytest.mark.parametrize("steps", [1, 3])
def test_going_on_as_it_is_near_the_start_is_not_unstable(steps: int) -> None:
    model, optimizer, advisor, _ = trained("plain", "adamw", "takeover", steps)
    for seed in range(8):
        other = batches(20 + seed)
        found = rehearse(advisor, lambda other=other: step_of(model, optimizer, other), 20)  # type: ignore[misc]
        assert found.forecast.status is not Status.UNSTABLE, found.loss_RT


def test_what_batches_differ_by_breaks_no_plan_and_a_lost_loss_does() -> None:
    generator = np.random.default_rng(0)
    change_RS = np.zeros((4, 2))
    noisy = [_verdict(change_RS, generator.normal(2.0, 0.3, (4, 10)), 2.1) for _ in range(500)]
    assert sum(one is not None for one in noisy) <= 25
    lost_RT = generator.normal(2.0, 0.3, (4, 10))
    lost_RT[1, -2:] = 5.0
    assert _verdict(change_RS, lost_RT, 2.1) == "1 of 4 replicas end no better than the run began"
    assert _verdict(change_RS, np.linspace(0.1, 3.0, 10)[None], 2.1) is not None
