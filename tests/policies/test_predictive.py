"""The planned budget against a slow twin, and the line that it is part of."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from lipadvisor.policies import Band, Constant, ForecastBudget, Knobs, Predictive, Status, chain, every, laws, replay
from lipadvisor.policies.forecast_budget import largest_rate

FIRST = laws.random_observations(0, steps=1, groups=1)[0]


@pytest.mark.parametrize("policy", [Predictive(), every(Predictive(interval=5), 5)], ids=lambda policy: policy.name)
def test_it_obeys_the_laws(policy):
    laws.check(policy, seeds=range(2), steps=25)


def test_the_rate_is_the_largest_that_fits():
    source = random.Random(0)
    for _ in range(300):
        linear, head = source.gauss(0.0, 10.0), 10.0 ** source.uniform(-3.0, 1.0)
        quadratic = source.choice((0.0, 10.0 ** source.uniform(-3.0, 3.0)))
        rate = largest_rate(linear, quadratic, head)
        if math.isinf(rate):
            assert quadratic == 0.0
            assert linear <= 0.0
        else:
            assert rate * (linear + rate * quadratic) == pytest.approx(head, rel=1e-6)
            assert all(x * (linear + x * quadratic) <= head * (1 + 1e-9) for x in (0.0, rate / 3.0, rate / 1.5))


def grown(step, drift=0.0, diffusion=0.0, finite_step=0.0, bands=(), lr=0.1, total=1000):
    """Return an observation of one healthy layer whose Z stands at its reference."""
    layer = replace(
        FIRST.layers[0], name="a", kind="linear", group=0, composition_weight=1.0, log_gain=math.log(1.2),
        update_ratio=1.0, log_norm=0.0, status=Status.OK,
    )  # fmt: skip
    network = replace(
        FIRST.network, log_norm=0.0, drift=drift, diffusion=diffusion, finite_step=finite_step, decay=0.0,
        status=Status.OK,
    )  # fmt: skip
    return replace(
        FIRST, step=step, total_steps=total, knobs=(Knobs(0, lr, 0.0),), layers=(layer,), network=network,
        measured_step=step - 1, bands=bands,
    )  # fmt: skip


def planned(observation, wish=0.1, **parameters):
    return replay(chain(Constant(lr=wish), ForecastBudget(**parameters)), [observation])[-1]


def test_the_plan_fits_growth_and_spread_into_the_budget_at_the_end_of_the_interval():
    lr, steps, budget = 0.1, 100, 0.35
    head = budget * (0.2 + 0.8 * (500 + steps) / 1000)
    decision = planned(grown(500, drift=0.1, diffusion=0.005, finite_step=0.05, lr=lr), interval=steps, softness=1.0)
    x = decision.knobs[0].lr
    growth = x * steps * 0.1 + x * x * steps * 0.05 / lr + 2.0 * (0.005 / math.sqrt(lr)) * x * math.sqrt(steps)
    assert growth == pytest.approx(head)
    assert decision.reason == "constant:stable+forecast:rates"


def test_what_fits_is_left_alone_and_the_cut_has_a_floor():
    assert planned(grown(500, drift=0.01)).knobs[0].lr == 0.1
    assert planned(grown(500, drift=-5.0)).knobs[0].lr == 0.1
    assert planned(grown(500, drift=1e5)).knobs[0].lr == pytest.approx(0.05 * 0.1)


def test_a_soft_cut_is_the_root_of_the_whole_one():
    seen = grown(500, drift=0.1)
    whole, soft = (planned(seen, softness=power).knobs[0].lr for power in (1.0, 0.5))
    assert soft / 0.1 == pytest.approx(math.sqrt(whole / 0.1))


def test_a_longer_interval_is_planned_more_carefully():
    rates = [planned(grown(100, drift=0.05), interval=steps).knobs[0].lr for steps in (10, 50, 200, 800)]
    assert rates[0] == 0.1
    assert sorted(rates, reverse=True) == rates
    assert rates[3] < rates[1]


def test_calibrated_bands_are_read_and_others_are_not():
    band = Band(100, 2.0, 0.5, 1.2, 2.8)
    seen = grown(500, drift=1e-6, bands=(band,))
    head = 0.35 * (0.2 + 0.8 * 0.6)
    decision = planned(seen, interval=100, deviations=2.0, softness=1.0)
    assert decision.reason.endswith("forecast:bands")
    assert decision.knobs[0].lr == pytest.approx(0.1 * head / 3.0)
    for doubtful in (replace(band, status=Status.UNCALIBRATED), replace(band, mean=math.nan), replace(band, horizon=1)):
        assert planned(replace(seen, bands=(doubtful,)), interval=100).knobs[0].lr == 0.1
