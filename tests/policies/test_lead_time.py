"""The lead-time guard: its equation against a slow twin, and what it does to a rate that leads into danger."""

from __future__ import annotations

import math
import random

import pytest

from lipadvisor.policies import Band, Constant, Knobs, Layer, LeadTimeGuard, Observation, Status, chain, replay
from lipadvisor.policies.lead_time import steps_until


def twin(trend, spread, head, most=100_000):
    """Return the first whole step at which the edge has risen by ``head``."""
    return next((n for n in range(1, most) if trend * n + spread * math.sqrt(n) >= head), math.inf)


@pytest.mark.parametrize("seed", range(40))
def test_the_lead_time_is_that_of_a_walk_along_the_edge(seed):
    draw = random.Random(seed)
    trend, spread, head = draw.uniform(-0.02, 0.05), draw.uniform(0.0, 0.3), draw.uniform(0.1, 3.0)
    exact, slow = steps_until(trend, spread, head), twin(trend, spread, head)
    if math.isinf(slow):
        peak = spread * spread / (-4.0 * trend) if trend < 0.0 else math.inf
        assert exact > 90_000 or math.isinf(exact) or peak == pytest.approx(head, rel=0.05)
    else:
        assert slow - 1.0 <= exact <= slow + 1e-9 * slow


def test_it_is_infinite_without_growth_and_nothing_is_known_of_nan():
    assert math.isinf(steps_until(-0.1, 0.01, 1.0))
    assert math.isinf(steps_until(0.0, 0.0, 1.0))
    assert steps_until(math.inf, 0.0, 1.0) == 0.0
    assert math.isnan(steps_until(math.nan, 1.0, 1.0))


def seen(drift=0.0, bands=(), step=100, lr=0.1, level=0.0, total=None, diffusion=0.0):
    network = Layer("*", "network", (), -1, 1.0, level, 0.1, 0.0, drift=drift, diffusion=diffusion)
    layers = (Layer("a", "linear", (8, 8), 0, 1.0, level, 0.1, math.log(1.2), update_ratio=1.0),)
    return Observation(step, total, 0.0, "adamw", 0.9, (Knobs(0, lr, 0.0),), network, layers, bands)


def decided(observation, wished=0.1, **parameters):
    (decision,) = replay(chain(Constant(lr=wished), LeadTimeGuard(**{"interval": 50, **parameters})), [observation])
    return decision


def test_a_rate_is_cut_to_where_danger_is_two_decisions_off():
    # 1.5 nats to go, 0.05 nats a step: 30 steps; two intervals of 50 are wanted
    decision = decided(seen(drift=0.5))
    assert decision.knobs[0].lr == pytest.approx(0.1 * 30.0 / 100.0)
    assert dict(decision.read)["lead_steps"] == pytest.approx(30.0)
    assert decision.reason.endswith("lead_time:rates")
    assert decided(seen(drift=0.5), wished=0.02).knobs[0].lr == pytest.approx(0.02)  # 150 steps off


def test_spread_counts_and_the_end_of_the_run_is_far_enough():
    assert decided(seen(drift=0.1)).knobs[0].lr == 0.1
    assert decided(seen(drift=0.1, diffusion=1.0)).knobs[0].lr < 0.1
    assert decided(seen(drift=0.5, total=120)).knobs[0].lr == 0.1  # danger in 30 steps, the end in 20


def test_calibrated_bands_come_before_rates():
    near = Band(20, 1.0, 0.5, 0.0, 2.0)  # at two deviations it has risen by 2 nats within 20 steps
    decision = decided(seen(bands=(near,)))
    assert dict(decision.read)["lead_steps"] == pytest.approx(20 * 1.5 / 2.0)
    assert decision.reason.endswith("lead_time:bands")
    doubtful = Band(20, 1.0, 0.5, 0.0, 2.0, Status.UNCALIBRATED)
    assert decided(seen(bands=(doubtful,))).knobs[0].lr == 0.1


def test_in_a_run_that_would_blow_up_it_acts_before_the_level_of_danger():
    """Z grows by lr * drift a step; decisions are 50 steps apart."""
    policy = chain(Constant(lr=0.1), LeadTimeGuard(interval=50, lowest=1e-3))

    def run(policy):
        state, level, lr = policy.init(), 0.0, 0.1
        for step in range(1, 1001):
            if step == 1 or step % 50 == 0:
                decision, state = policy.decide(seen(drift=0.2, step=step, lr=lr, level=level), state)
                lr = decision.knobs[0].lr
            level += lr * 0.2
        return level

    assert run(policy) < 1.51  # a floor of a thousandth of the rate stays
    assert run(Constant(lr=0.1)) > 15.0


@pytest.mark.parametrize(
    ("argument", "value"), [("interval", 0), ("decisions", 0.0), ("excess", -1.0), ("lowest", 2.0), ("deviations", -1)]
)
def test_impossible_arguments_are_named(argument, value):
    with pytest.raises(ValueError, match=rf"LeadTimeGuard\({argument}=\.\.\.\) must"):
        LeadTimeGuard(**{argument: value})
