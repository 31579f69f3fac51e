"""Greedy and capped baselines, the portfolio, and the guard on attention logits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest

from lipadvisor.policies import (
    AttentionGuard,
    Constant,
    Cosine,
    Decision,
    Greedy,
    Knobs,
    Lipschitz,
    SpectralCap,
    UpdateCap,
    chain,
    laws,
    portfolio,
    replay,
)
from lipadvisor.policies.schedules import NoState

FIRST = laws.random_observations(0, steps=1)[0]
ALL = [
    Greedy(look_every=2, patience=1),
    SpectralCap(largest_step=1e-3),
    chain(Constant(), UpdateCap()),
    portfolio(Lipschitz(), Cosine(), Greedy(), trial_steps=2, drive_steps=5),
    chain(Lipschitz(), AttentionGuard(growth=0.1)),
]


@pytest.mark.parametrize("policy", ALL, ids=lambda policy: policy.name)
def test_it_obeys_the_laws(policy):
    laws.check(policy, seeds=range(2), steps=25)


def greedy_rates(losses, **parameters):
    policy = Greedy(lr=1.0, factor=0.5, patience=2, look_every=5, smoothing=1, **parameters)
    run = [replace(FIRST, step=step, loss=loss) for step, loss in enumerate(losses)]
    return [d.knobs[0].lr for d in replay(policy, run)]


def test_greedy_rises_while_the_loss_falls_and_falls_while_it_rises():
    falling = greedy_rates([0.97**step for step in range(100)])
    rising = greedy_rates([1.03**step for step in range(100)])
    flat = greedy_rates([1.0] * 100)
    assert falling[-1] == pytest.approx(10.0)
    assert sorted(falling) == falling
    assert rising[-1] < 0.01
    assert sorted(rising, reverse=True) == rising
    assert set(flat) == {1.0}


def test_greedy_keeps_its_limits_and_refuses_bad_ones():
    assert min(greedy_rates([1.1**step for step in range(200)], lowest_share=0.1)) == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"Greedy\(factor=\.\.\.\) must be below 1, got 1"):
        Greedy(factor=1.0)


def test_the_cap_holds_the_largest_update_at_its_limit_and_nothing_below_it():
    for observation in laws.random_observations(4, steps=30, layers=5):
        policy = SpectralCap(lr=0.1, largest_step=0.05)
        (free,), (capped,) = replay(Cosine(lr=0.1), [observation]), replay(policy, [observation])
        largest = max(layer.update_ratio for layer in observation.layers)
        wanted = free.knobs[0].lr
        expected = wanted if wanted * largest <= 0.05 else 0.05 / largest
        assert capped.knobs[0].lr == pytest.approx(expected)
        assert capped.reason.endswith("+cap") == (expected < wanted)


@dataclass(frozen=True)
class Named:
    """Sets a learning rate by which the test's loss knows who drives."""

    lr: float
    name: str = "named"

    def init(self):
        return NoState()

    def decide(self, observation, state):
        return Decision(observation.step, self.name, "drive", (Knobs(0, self.lr),)), state


def follow(policy, fall_by_lr, steps=200, trend=0.0):
    """Run a loss whose logarithm falls at the driver's own pace, plus a trend that is common to all."""
    state, log_loss, lr, driven = policy.init(), 0.0, None, []
    for step in range(steps):
        decision, state = policy.decide(replace(FIRST, step=step, total_steps=None, loss=math.exp(log_loss)), state)
        lr = decision.knobs[0].lr
        driven.append(lr)
        log_loss -= fall_by_lr[lr] + trend * max(0.0, 1.0 - step / 60.0)
    return driven


@pytest.mark.parametrize("best", [1.0, 2.0, 3.0])
def test_the_portfolio_lets_the_best_one_drive_also_under_a_trend(best):
    falls = {lr: 0.03 if lr == best else 0.01 for lr in (1.0, 2.0, 3.0)}
    policy = portfolio(Named(1.0), Named(2.0), Named(3.0), trial_steps=10, drive_steps=1000, smoothing=1)
    driven = follow(policy, falls, trend=0.05)
    assert driven[:60:10] == [1.0, 2.0, 3.0, 3.0, 2.0, 1.0]
    assert set(driven[61:]) == {best}


def test_a_member_that_breaks_the_loss_does_not_win():
    policy = portfolio(Named(1.0), Named(2.0), trial_steps=5, drive_steps=50, smoothing=1)
    state = policy.init()
    for step in range(30):
        loss = math.nan if step == 7 else 0.9**step if 5 <= step < 15 else 0.9**15
        decision, state = policy.decide(replace(FIRST, step=step, total_steps=None, loss=loss), state)
    assert decision.knobs[0].lr == 1.0


def test_rounds_repeat_but_not_late_in_the_run():
    policy = portfolio(Named(1.0), Named(2.0), trial_steps=5, drive_steps=10, last_share=0.5)
    run = [replace(FIRST, step=step, total_steps=100, loss=1.0) for step in range(100)]
    trials = [d.step for d in replay(policy, run) if "+trial:" in d.reason]
    assert trials[:20] == list(range(20))
    assert 30 in trials
    assert max(trials) < 80


def attention(step, norms, **changes):
    layers = tuple(
        replace(FIRST.layers[0], name=name, group=0, log_norm=norm, log_gain=0.0) for name, norm in norms.items()
    )
    return replace(FIRST, step=step, layers=layers, measured_step=max(step - 1, 0), **changes)


def test_queries_and_keys_are_shrunk_back_to_the_allowed_growth():
    policy = chain(Constant(), AttentionGuard(growth=2.0))
    quiet = attention(0, {"b.0.q_proj": 0.5, "b.0.k_proj": 0.5, "b.0.v_proj": 9.0, "head": 1.0})
    grown = attention(10, {"b.0.q_proj": 2.5, "b.0.k_proj": 1.5, "b.0.v_proj": 99.0, "head": 1.0})
    first, second, again = replay(policy, [quiet, grown, replace(grown, step=11)])
    assert first.weight_scale == ()
    assert dict(second.weight_scale) == pytest.approx({"b.0.q_proj": math.exp(-0.5), "b.0.k_proj": math.exp(-0.5)})
    assert again.weight_scale == ()  # the same measurement is not obeyed twice
    assert dict(second.read)["logit_growth"] == pytest.approx(3.0)


def test_a_network_without_named_pairs_is_left_alone():
    policy = chain(Constant(), AttentionGuard(growth=0.1))
    run = [attention(step, {"in_proj": 1.0 + step, "out_proj": 1.0 + step}) for step in range(5)]
    assert all(d.weight_scale == () and d.reason == "constant:stable" for d in replay(policy, run))
