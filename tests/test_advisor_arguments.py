from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from training_loop import network, optimizer_of

from lipadvisor import Advisor


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


def test_an_optimizer_is_steered_by_one_advisor_at_a_time() -> None:
    model = network()
    optimizer = optimizer_of("sgd", model)
    first = Advisor(model, optimizer, 10)
    hooks = len(optimizer._optimizer_step_pre_hooks)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="no other advisor"):
        Advisor(model, optimizer, 10, mode="cap")
    assert len(optimizer._optimizer_step_pre_hooks) == hooks  # type: ignore[attr-defined]
    Advisor(model, optimizer, 10, mode="shadow").close()  # which steers nothing
    first.close()
    Advisor(model, optimizer, 10).close()


def test_an_advisor_that_could_not_be_made_steers_nothing() -> None:
    model = network()
    optimizer = optimizer_of("sgd", model)
    with pytest.raises(OSError, match="out"):
        Advisor(model, optimizer, 10, out="/proc/nope")
    Advisor(model, optimizer, 10).close()


@pytest.mark.parametrize("value", ["x", b"a", {}, 1 + 2j, None, [], object(), torch.zeros(2)])
def test_a_validation_loss_that_is_no_number_is_told(value: object) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    with Advisor(model, torch.optim.SGD(model.parameters(), lr=0.1)) as advisor:
        with pytest.raises(ValueError, match=r"report_validation\(loss=\.\.\.\) must be a number, got "):
            advisor.report_validation(value)  # type: ignore[arg-type]
        advisor.report_validation(torch.tensor(0.5))  # type: ignore[arg-type]
        advisor.report_validation(float("inf"))
        assert advisor.errors == 0


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize("value", [3, None, 2.5, b"a", {"a": 1}, ["a", 1]])
def test_globs_that_are_none_are_told(argument: str, value: object) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(ValueError, match=rf"{argument}=\.\.\.\) must be globs"):
        Advisor(model, torch.optim.SGD(model.parameters(), lr=0.1), **{argument: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [3, None, b"a", "sharpness", [1], {"sharpness": 1}])
def test_quantities_that_are_no_names_are_told(value: object) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    with (
        Advisor(model, torch.optim.SGD(model.parameters(), lr=0.1)) as advisor,
        pytest.raises(ValueError, match=r"inspect\(quantities=\.\.\.\) must be"),
    ):
        advisor.inspect(lambda: model(torch.ones(2, 4)).sum(), quantities=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("knob", ["lr", "weight_decay"])
def test_a_plan_beyond_any_float_is_told(knob: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    with Advisor(model, torch.optim.SGD(model.parameters(), lr=0.1)) as advisor:
        model(torch.ones(2, 4))
        with pytest.raises(ValueError, match=rf"plan\['{knob}'\] must be a number"):
            advisor.forecast(3, plan={knob: 10**400})
