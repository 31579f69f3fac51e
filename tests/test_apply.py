from __future__ import annotations

import math

import pytest
import torch

from lipadvisor.apply import Applier
from lipadvisor.policies import Decision, Knobs

Optimizer = torch.optim.Optimizer


def decision(lr: float | None = None, weight_decay: float | None = None, step: int = 1, **more: object) -> Decision:
    return Decision(step=step, policy="test", reason="test", knobs=(Knobs(0, lr, weight_decay),), **more)  # type: ignore[arg-type]


def parts(kind: str = "sgd", lr: float = 0.1, weight_decay: float = 0.3) -> tuple[torch.nn.Module, Optimizer]:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    return model, kinds[kind](model.parameters(), lr=lr, weight_decay=weight_decay)


def one_step(model: torch.nn.Module, optimizer: Optimizer, applier: Applier) -> None:
    model(torch.ones(4, 3)).square().mean().backward()
    applier.before_update()
    optimizer.step()
    applier.after_update()
    optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_takeover_does_not_depend_on_the_users_knobs(kind: str) -> None:
    weights = []
    for lr, weight_decay in ((0.1, 0.3), (7.0, 0.0)):
        model, optimizer = parts(kind, lr, weight_decay)
        applier = Applier(optimizer, {"": model.weight}, "takeover")
        applier.apply(decision(0.01, 0.5))
        for _ in range(3):
            one_step(model, optimizer, applier)
        weights.append(model.weight.detach().clone())
    assert torch.equal(*weights)


def test_decoupled_decay_acts_on_matrices_only_and_as_stated() -> None:
    model, optimizer = parts()
    applier = Applier(optimizer, {"": model.weight}, "takeover")
    applier.apply(decision(0.01, 0.5))
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    model(torch.ones(4, 3)).square().mean().backward()
    gradient, bias_gradient = model.weight.grad.clone(), model.bias.grad.clone()
    applier.before_update()
    optimizer.step()
    assert torch.allclose(model.weight, weight * (1 - 0.01 * 0.5) - 0.01 * gradient, atol=1e-7)
    assert torch.allclose(model.bias, bias - 0.01 * bias_gradient, atol=1e-7)
    assert applier.in_force() == ({0: 0.01}, {0: 0.5})


def test_cap_limits_the_step_and_gives_the_users_rate_back() -> None:
    model, optimizer = parts(lr=0.1, weight_decay=0.0)
    applier = Applier(optimizer, {"": model.weight}, "cap")
    applier.apply(decision(0.01, 0.5))
    weight = model.weight.detach().clone()
    model(torch.ones(4, 3)).square().mean().backward()
    gradient = model.weight.grad.clone()
    applier.before_update()
    optimizer.step()
    applier.after_update()
    assert torch.allclose(model.weight, weight - 0.01 * gradient, atol=1e-7)
    assert optimizer.param_groups[0]["lr"] == 0.1
    applier.apply(decision(10.0))
    assert applier.knobs()[0].lr == 0.1


def test_cap_lives_with_a_scheduler() -> None:
    model, optimizer = parts(lr=0.1, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    applier = Applier(optimizer, {"": model.weight}, "cap")
    applier.apply(decision(0.03))
    for expected in (0.1, 0.05, 0.025, 0.0125):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        one_step(model, optimizer, applier)
        scheduler.step()


def test_shadow_touches_nothing() -> None:
    model, optimizer = parts()
    applier = Applier(optimizer, {"": model.weight}, "shadow")
    before = model.weight.detach().clone()
    applied = applier.apply(decision(0.5, 0.5, step=0, init_scale=(("", 3.0),)))
    applier.before_update()
    assert torch.equal(model.weight, before)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
    assert applied.before == applied.after == (Knobs(0, 0.1, 0.3),)


def test_a_foreign_write_is_overwritten_and_counted() -> None:
    model, optimizer = parts()
    applier = Applier(optimizer, {"": model.weight}, "takeover")
    applier.apply(decision(0.01, 0.0))
    optimizer.param_groups[0]["lr"] = 0.1
    one_step(model, optimizer, applier)
    assert applier.foreign_writes == 1
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_tensor_learning_rates_are_filled_in_place() -> None:
    model, _ = parts()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1))
    rate = optimizer.param_groups[0]["lr"]
    applier = Applier(optimizer, {"": model.weight}, "takeover")
    applier.apply(decision(0.01, 0.0))
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (decision(-1.0), "lr -1.0"),
        (decision(math.nan), "lr nan"),
        (decision(0.1, 20.0), "weight_decay 20.0"),
        (Decision(1, "t", "t", knobs=(Knobs(3, 0.1),)), "group 3"),
        (decision(0.1, 0.0, init_scale=(("", 2.0),)), "only before step 0"),
        (decision(0.1, 0.0, weight_scale=(("x", 0.5),)), "no layer 'x'"),
        (decision(0.1, 0.0, weight_scale=(("", -0.5),)), "factor -0.5"),
    ],
)
def test_impossible_answers_are_refused_by_name_and_change_nothing(answer: Decision, text: str) -> None:
    model, optimizer = parts()
    applier = Applier(optimizer, {"": model.weight}, "takeover")
    applier.apply(decision(0.02, 0.0))
    before = model.weight.detach().clone()
    applied = applier.apply(answer)
    assert text in "; ".join(applied.refused)
    assert torch.equal(model.weight, before)
    assert 0 < optimizer.param_groups[0]["lr"] < 1


@pytest.mark.parametrize("weight_decay", [None, 20.0])
def test_a_decay_that_stands_never_turns_the_weights_around(weight_decay: float | None) -> None:
    model, optimizer = parts()
    applier = Applier(optimizer, {"": model.weight}, "takeover")
    applier.apply(decision(1e-5, 100.0))
    applied = applier.apply(decision(0.1, weight_decay))
    lr, decay = applier.in_force()
    assert lr[0] == 0.1
    assert lr[0] * decay[0] == pytest.approx(1e-3)  # the share a step, as it was
    assert any("is kept" in told for told in applied.refused)
    norm = float(model.weight.norm())
    one_step(model, optimizer, applier)
    assert float(model.weight.norm()) < 2.0 * norm


def test_close_puts_the_users_weight_decay_back() -> None:
    model, optimizer = parts("adamw")
    applier = Applier(optimizer, {"": model.weight}, "takeover")
    applier.apply(decision(0.01, 0.5))
    assert optimizer.param_groups[0]["weight_decay"] == 0.0
    applier.close()
    assert optimizer.param_groups[0]["weight_decay"] == 0.3


def test_state_round_trip() -> None:
    model, optimizer = parts()
    applier = Applier(optimizer, {"": model.weight}, "takeover")
    applier.apply(decision(0.01, 0.5))
    other_model, other_optimizer = parts(lr=5.0)
    other = Applier(other_optimizer, {"": other_model.weight}, "takeover")
    other.load_state_dict(applier.state_dict())
    assert other.in_force() == applier.in_force()
    assert other_optimizer.param_groups[0]["lr"] == 0.01


def test_an_unknown_mode_is_an_error() -> None:
    with pytest.raises(ValueError, match="takeover, cap, shadow"):
        Applier(parts()[1], {}, "boss")  # type: ignore[arg-type]
