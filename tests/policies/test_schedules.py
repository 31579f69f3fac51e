"""The baselines against torch's schedulers, and their edges."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lipadvisor.policies import (
    POLICIES,
    Constant,
    Cosine,
    Knobs,
    Linear,
    OneCycle,
    Plateau,
    Step,
    WarmupStableDecay,
    laws,
    named_policy,
)

TOTAL = 50


def lrs(policy, total=TOTAL, steps=TOTAL):
    template = laws.random_observations(0, steps=1)[0]
    state, out = policy.init(), []
    for step in range(steps):
        decision, state = policy.decide(replace(template, step=step, total_steps=total), state)
        assert {knobs.group for knobs in decision.knobs} == {0, 1}
        assert len({knobs.lr for knobs in decision.knobs}) == 1
        out.append((decision.knobs[0].lr, decision))
    return out


def twin(make):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    out = []
    for _ in range(TOTAL):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return out


@pytest.mark.parametrize(
    ("policy", "make"),
    [
        (Cosine(lr=0.1), lambda s, o: s.CosineAnnealingLR(o, TOTAL)),
        (Cosine(lr=0.1, final_fraction=0.1), lambda s, o: s.CosineAnnealingLR(o, TOTAL, eta_min=0.01)),
        (Linear(lr=0.1), lambda s, o: s.LinearLR(o, 1.0, 0.0, TOTAL)),
        (Step(lr=0.1, milestones=(0.4, 0.8), gamma=0.2), lambda s, o: s.MultiStepLR(o, [20, 40], 0.2)),
        (Constant(lr=0.1), lambda s, o: s.ConstantLR(o, 1.0)),
        (Constant(lr=0.1, warmup_fraction=0.2), lambda s, o: s.LinearLR(o, 0.1, 1.0, 9)),
    ],
    ids=["cosine", "cosine_final", "linear", "step", "constant", "warmup"],
)
def test_a_schedule_equals_that_of_torch(policy, make):
    assert [lr for lr, _ in lrs(policy)] == pytest.approx(twin(make), rel=1e-9, abs=1e-12)


def test_wsd_rises_stays_and_falls_and_says_so():
    course = lrs(WarmupStableDecay(lr=0.1, warmup_fraction=0.1, decay_fraction=0.4))
    assert [lr for lr, _ in course[:5]] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert all(lr == pytest.approx(0.1) for lr, _ in course[5:31])
    assert course[-1][0] == pytest.approx(0.1 / 20)
    assert [d.warmup_ended for _, d in course].index(True) == 4
    assert [d.cooldown_started for _, d in course].index(True) == 30


def test_one_cycle_goes_up_and_down():
    course = lrs(OneCycle(lr=0.1, warmup_fraction=0.3, start_fraction=0.04))
    assert course[0][0] == pytest.approx(0.004)
    assert max(lr for lr, _ in course) == pytest.approx(0.1) == course[15][0]
    assert course[-1][0] < 0.001
    assert [d.warmup_ended for _, d in course].index(True) == 15


def test_plateau_cuts_where_the_loss_stands_and_only_there():
    template = laws.random_observations(0, steps=1)[0]
    policy = Plateau(lr=0.1, gamma=0.5, patience=10, smoothing=1)
    state, course = policy.init(), []
    for step in range(60):
        loss = 2.0 * 0.9 ** min(step, 30)
        decision, state = policy.decide(replace(template, step=step, loss=loss), state)
        course.append(decision)
    cuts = [decision.step for decision in course if decision.reason == "plateau:cut"]
    assert len(cuts) == 2
    assert 40 <= cuts[0] <= 44
    assert cuts[1] == cuts[0] + 10
    assert course[-1].knobs[0].lr == pytest.approx(0.025)
    assert course[cuts[0]].cooldown_started
    assert not course[cuts[0] - 1].cooldown_started


def test_plateau_prefers_the_validation_loss():
    template = laws.random_observations(0, steps=1)[0]
    policy, state = Plateau(lr=0.1, patience=20), Plateau().init()
    for step in range(0, 100, 5):  # the training loss falls, the validation loss does not
        seen = replace(template, step=step, loss=0.9**step, validation_loss=1.0, validation_step=step)
        decision, state = policy.decide(seen, state)
    assert state.cuts == 4
    assert decision.cooldown_started


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd", "one_cycle", "step"])
def test_without_a_horizon_it_holds_and_says_why(name):
    ((_, decision),) = [(None, d) for d in [_decide_without_horizon(named_policy(name))]]
    assert decision.reason == "hold:no_horizon"
    assert decision.knobs == ()


@pytest.mark.parametrize("name", ["constant", "plateau", "lipschitz"])
def test_these_need_no_horizon(name):
    assert _decide_without_horizon(named_policy(name)).knobs[0].lr > 0.0
    if name != "lipschitz":
        assert _decide_without_horizon(named_policy(name, warmup_fraction=0.1)).reason == "hold:no_horizon"


def _decide_without_horizon(policy):
    template = laws.random_observations(0, steps=1, total_steps=None)[0]
    return policy.decide(template, policy.init())[0]


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd", "one_cycle", "step"])
def test_beyond_the_end_the_rate_stays_at_its_last_value(name):
    course = lrs(named_policy(name), steps=TOTAL + 5)
    assert len({lr for lr, _ in course[TOTAL:]}) == 1
    assert 0.0 < course[-1][0] <= course[TOTAL - 1][0]


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("cosine", {"lr": -1.0}, r"Cosine\(lr=\.\.\.\) must be a finite number > 0, got -1.0"),
        ("constant", {"lr": math.nan}, r"Constant\(lr=\.\.\.\) must be a finite number > 0, got nan"),
        ("linear", {"weight_decay": -0.1}, r"Linear\(weight_decay=\.\.\.\) must be a finite number >= 0, got -0.1"),
        ("wsd", {"warmup_fraction": 1.5}, r"WarmupStableDecay\(warmup_fraction=\.\.\.\) must be in \[0, 1\], got 1.5"),
        ("wsd", {"warmup_fraction": 0.8}, r"decay_fraction=\.\.\.\) must be at most 1 - warmup_fraction"),
        ("step", {"milestones": (0.9, 0.1)}, r"Step\(milestones=\.\.\.\) must ascend"),
        ("plateau", {"patience": 0}, r"Plateau\(patience=\.\.\.\) must be an integer >= 1, got 0"),
        ("lipschitz", {"healthy_gain": 0.15}, r"Lipschitz\(healthy_gain=\.\.\.\) must be in \[low_gain, high_gain\]"),
        ("lipschitz", {"healthy_gain": 9.6}, r"Lipschitz\(healthy_gain=\.\.\.\) must be in \[low_gain, high_gain\]"),
        ("lipschitz", {"relative_step": 0.0}, r"SpectralRate\(relative_step=\.\.\.\) must be a finite number > 0"),
        ("lipschitz", {"low_gain": 2.0}, r"Initialization\(high=\.\.\.\) must be at least low = 2.0, got 1.6"),
        ("cosine", {"rate": 1.0}, r"policy 'cosine' has no parameter 'rate'; it has \['lr', 'weight_decay'"),
        ("step", {"milestones": 0.5}, r"Step\(milestones=...\) must be a tuple, got 0.5"),
        ("lipschitz", {"rise": "fast"}, r"SpectralRate\(rise=\.\.\.\) must be a finite number > 1, got 'fast'"),
        ("cosine", {"lr": 10**400}, r"Cosine\(lr=...\) must be a finite number > 0, got 1000"),
        ("sine", {}, r"must be one of \['constant', .*, got 'sine'"),
    ],
)
def test_bad_parameters_are_named(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        named_policy(name, **parameters)


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_named_policy_has_its_name(name):
    assert named_policy(name).name == name
    assert hash(named_policy(name)) == hash(named_policy(name))


def test_weight_decay_is_passed_on():
    assert lrs(Cosine(lr=0.1, weight_decay=0.3))[0][1].knobs == (Knobs(0, 0.1, 0.3), Knobs(1, 0.1, 0.3))
