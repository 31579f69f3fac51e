"""What a plan's decay and step size do to the growth, against the laws they come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lipadvisor.dynamics import coefficients
from lipadvisor.forecast import Forecaster
from lipadvisor.forecast.rebound import rebound
from lipadvisor.forecast.step_share import StepShare
from lipadvisor.policies import Status
from lipadvisor.terms import Terms

RunOf = Callable[..., list[Terms]]


def test_growth_that_depends_on_the_norm_takes_back_what_is_predicted() -> None:
    # dZ = exp(-Z) dtau - decay: without decay Z = ln(tau), so p = 1, and u = tau.
    lr, decay, start, steps = 0.01, 2e-4, 5.0, 200
    z = free = np.log(start)
    gap_h = np.zeros(steps)
    for j in range(steps):
        z, free = z + lr * np.exp(-z) - decay, free + lr * np.exp(-free)
        gap_h[j] = z - free
    clock_h = start + lr * np.arange(1, steps + 1)
    got_h = rebound(np.full((steps, 1), decay), clock_h)[:, 0]
    taken_h = decay * np.arange(1, steps + 1)
    np.testing.assert_allclose((taken_h - got_h)[50:], -gap_h[50:], rtol=0.01)
    assert got_h[-1] > 0.1 * taken_h[-1]


def test_less_decay_than_in_force_slows_growth_and_a_clock_at_rest_gives_nothing_back() -> None:
    clock_h = np.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(rebound(np.array([[0.1], [0.1], [0.1]]), clock_h)[:, 0], [0.0, 0.05, 0.125])
    assert (rebound(np.full((3, 2), -0.1), clock_h)[1:] < 0).all()
    assert not rebound(np.full((3, 2), 0.1), np.full(3, 2.0)).any()
    assert not rebound(np.full((3, 2), 0.1), np.zeros(3)).any()


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
