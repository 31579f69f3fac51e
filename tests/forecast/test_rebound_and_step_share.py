"""What a plan's decay and step size do to the growth, against the laws they come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lipadvisor.dynamics import coefficients
from lipadvisor.forecast import Forecaster
from lipadvisor.forecast.rebound import rebound, steady_share
from lipadvisor.forecast.step_share import StepShare
from lipadvisor.policies import Status
from lipadvisor.terms import Array, Terms

RunOf = Callable[..., list[Terms]]


def believing(power: int, steps: int, series: int = 1) -> Array:
    weight_hPS = np.zeros((steps, 2, series))
    if power > 0:
        weight_hPS[:, power - 1] = 1.0
    return weight_hPS


@pytest.mark.parametrize("power", [1, 2])
def test_growth_that_depends_on_the_norm_takes_back_what_is_predicted(power: int) -> None:
    # dZ = drift(Z) dtau - decay, where without decay the drift is tau^-p: Z = ln tau, or -1 / tau.
    lr, decay, start, steps = 0.01, 2e-4, 5.0, 200
    drift = {1: lambda z: np.exp(-z), 2: lambda z: z * z}[power]
    z = free = np.log(start) if power == 1 else -1.0 / start
    decay *= 1.0 if power == 1 else 0.1  # of the growth that there is
    gap_h = np.zeros(steps)
    for j in range(steps):
        z, free = z + lr * drift(z) - decay, free + lr * drift(free)
        gap_h[j] = z - free
    clock_h = start + lr * np.arange(1, steps + 1)
    got_h = rebound(np.full((steps, 1), -decay), clock_h, believing(power, steps))[:, 0]
    taken_h = decay * np.arange(1, steps + 1)
    np.testing.assert_allclose((taken_h - got_h)[50:], -gap_h[50:], rtol=0.02)
    assert got_h[-1] > 0.1 * taken_h[-1]


def test_growth_that_does_not_fade_and_a_clock_at_rest_give_nothing_back() -> None:
    clock_h = np.array([1.0, 2.0, 4.0])
    decay_hS = np.full((3, 1), -0.1)
    np.testing.assert_allclose(rebound(decay_hS, clock_h, believing(1, 3))[:, 0], [0.0, 0.05, 0.125])
    np.testing.assert_allclose(rebound(decay_hS, clock_h, 0.5 * believing(1, 3))[:, 0], [0.0, 0.025, 0.0625])
    assert not rebound(decay_hS, clock_h, believing(0, 3)).any()
    assert not rebound(decay_hS, np.full(3, 2.0), believing(1, 3)).any()
    assert not rebound(decay_hS, np.zeros(3), believing(1, 3)).any()


def test_knobs_that_stay_have_the_answer_of_a_plan_that_names_them() -> None:
    generator = np.random.default_rng(0)
    horizons = (1, 10, 50, 200)
    for _ in range(20):
        clock, lr, decay = (10.0 ** generator.uniform(low, high) for low, high in ((-2, 2), (-4, 0), (-5, -2)))
        share_HP = steady_share(clock, lr, horizons)
        for place, steps in enumerate(horizons):
            clock_h, plan_hS = clock + lr * np.arange(1, steps + 1), np.full((steps, 1), -decay)
            for power in (1, 2):
                expected = rebound(plan_hS, clock_h, believing(power, steps))[-1, 0]
                assert decay * share_HP[place, power - 1] == pytest.approx(expected, rel=1e-6, abs=1e-13)
    assert not steady_share(0.0, 0.0, horizons).any()


def test_decay_that_goes_on_calls_forth_more_than_the_drift_shows_yet(run_of: RunOf) -> None:
    # dZ = c exp(-Z / c) dtau - decay: the decay is in force for a hundred steps already.
    lr, c, shrink, steps, seen = 0.05, 0.5, 4e-4, 800, 500
    z, drift_T = c * np.log(0.5), []
    for step in range(steps):
        drift_T.append(c * np.exp(-z / c))
        z += lr * drift_T[-1] + (np.log1p(-shrink) if step >= 400 else 0.0)
    wd_T = [0.0] * 400 + [shrink / lr] * (steps - 400)
    drifts = iter(drift_T)
    run = run_of(lambda tau: next(drifts), [lr] * steps, layers=1, weight_decay_T=wd_T)
    forecaster = Forecaster(run[0].names, run[0].composition_L)
    for terms in run[:seen]:
        forecaster.update(terms, coefficients(terms))
    made, truth = forecaster.forecast(200).network.mean[-1], run[seen + 200].network_log_norm
    now = run[seen].network_log_norm
    without = made - float(forecaster._rebound()[-1, -1])
    assert abs(made - truth) < 0.1 * abs(truth - now)
    assert abs(made - truth) < 0.5 * abs(without - truth)


@pytest.mark.parametrize("factor", [0.25, 2.0])
def test_growth_by_finite_steps_goes_with_the_square_of_the_rate(run_of: RunOf, factor: float) -> None:
    # first_L and curvature_L say that three quarters of the growth is the finite-step term's.
    lr, drift, finite = 0.1, 0.1, 0.3
    given: dict[str, Any] = {"first_L": np.full(1, drift), "curvature_L": np.full(1, 2 * finite / lr + drift**2)}
    forecaster = None
    for terms in run_of(lambda tau: drift + finite, [lr] * 600, layers=1, **given):
        forecaster = forecaster or Forecaster(terms.names, terms.composition_L)
        forecaster.update(terms, coefficients(terms))
    assert forecaster is not None
    made = forecaster.forecast(50, {"lr": factor * lr}).network.mean
    truth = 50 * factor * lr * (drift + factor * finite)
    assert made[-1] - 600 * lr * (drift + finite) == pytest.approx(truth, rel=0.05)


def test_the_share_is_none_without_finite_steps_and_never_beyond_one(run_of: RunOf) -> None:
    share = StepShare()
    assert share.share == 0.0
    np.testing.assert_array_equal(share.effective(np.array([[0.1, 0.0]]), np.array([0.2, 0.0])), [[0.1, 0.0]])
    terms = run_of(lambda tau: 0.1, [0.1], layers=1, first_L=np.zeros(1), curvature_L=np.ones(1))[0]
    share.update(coefficients(terms), 5.0)
    assert share.share == 1.0
    np.testing.assert_allclose(share.effective(np.array([[0.05]]), np.array([0.1])), [[0.025]])
    again = StepShare()
    again.load_state_dict(share.state_dict())
    assert again.share == share.share
    share.update(coefficients(run_of(lambda tau: 0.1, [0.1], first_L=np.full(2, np.nan))[0]), 5.0)
    assert share.share == again.share


def test_a_rate_that_rises_at_the_edge_of_stability_is_refused_and_one_that_falls_is_not(run_of: RunOf) -> None:
    lr, drift, finite = 0.1, 0.1, 0.04
    given: dict[str, Any] = {"first_L": np.full(2, drift), "curvature_L": np.full(2, 2 * finite / lr + drift**2)}
    forecaster = None
    for terms in run_of(lambda tau: drift + finite, [lr] * 200, **given):
        forecaster = forecaster or Forecaster(terms.names, terms.composition_L)
        forecaster.update(terms, coefficients(terms))
    assert forecaster is not None
    share = finite / (drift + finite)
    for factor in (0.25, 1.0, 1.5, 2.0, 4.0):
        made = forecaster.forecast(10, {"lr": factor * lr})
        load = factor * share / 0.5 if factor > 1.0 else 0.0
        assert (made.status == Status.UNSTABLE) == (load > 1.0)
        assert any("finite steps" in line for line in made.warnings) == (load > 0.53)
