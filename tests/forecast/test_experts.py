from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from lipadvisor.forecast.experts import POWER_E, POWERS, SMOOTHINGS, Averages, advance_integrals, power_integrals
from lipadvisor.forecast.motion import Interval
from lipadvisor.terms import Array

EXPERTS = len(POWER_E)


def _interval(
    change_S: Array, start_S: Array, advance_S: Array, steps: float, valid_S: np.ndarray | None = None
) -> Interval:
    every_S = np.ones(len(change_S), bool)
    moves_S = every_S if valid_S is None else valid_S
    return Interval(
        whole=valid_S is None,
        steps=steps,
        steps_S=np.full(len(change_S), steps),
        change_S=change_S,
        free_S=change_S,
        start_S=start_S,
        advance_S=advance_S,
        squared_S=advance_S**2,
        own_steps=1.0,
        own_S=change_S,
        valid_S=moves_S,
        moving_S=moves_S,
    )


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.7), (0.01, 3.0), (2.0, 2.0 + 1e-9)])
def test_power_integrals_equal_quadrature(start: float, end: float) -> None:
    got = power_integrals(np.array([start]), np.array([end]))[:, 0]
    # The last case is so short that the integrand is constant: quadrature would lose digits.
    want = [quad(lambda u, p=p: u**-p, start, end)[0] if end - start > 1e-6 else 1e-9 * start**-p for p in POWERS]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_clock_that_stands_still_gives_zero() -> None:
    assert not power_integrals(np.array([0.0, 1.0]), np.array([0.0, 1.0])).any()
    assert not advance_integrals(np.array([1.0]), np.array([0.0])).any()


@pytest.mark.parametrize("whole", [False, True])
def test_experts_equal_a_plain_loop_over_irregular_intervals(whole: bool) -> None:
    generator = np.random.default_rng(0)
    averages = Averages(2)
    tau, history = 0.3, []
    for _ in range(40):
        steps, lr = int(generator.integers(1, 6)), float(generator.uniform(0.01, 0.1))
        change_S = generator.standard_normal(2)
        noise_S = generator.uniform(size=2)
        noise_S[generator.uniform(size=2) < 0.1] = np.nan
        start, end = tau, tau + steps * lr
        valid_S = generator.uniform(size=2) > (-1.0 if whole else 0.2)
        averages.update(
            _interval(change_S, np.full(2, start), np.full(2, end - start), float(steps), None if whole else valid_S),
            noise_S,
        )
        history.append((change_S, start, end, steps, valid_S, noise_S))
        tau = end
    got_AS = averages.values()
    for s in range(2):
        seen = [(change_S[s], start, end, steps) for change_S, start, end, steps, valid_S, _ in history if valid_S[s]]
        for e, p_index in enumerate(POWER_E):
            # A measurement over n steps counts as n equal ones; the mean is weighted by age.
            values = [
                value
                for change, start, end, steps in seen
                for value in [change / quad(lambda u, p=POWERS[p_index]: u**-p, start, end)[0]] * steps
            ]
            assert got_AS[e, s] == pytest.approx(_aged(values, SMOOTHINGS[e % len(SMOOTHINGS)]), rel=1e-6)
        for g, smoothing in enumerate(SMOOTHINGS):
            slopes = [value for change, _, _, steps in seen for value in [change / steps] * steps]
            assert got_AS[EXPERTS + g, s] == pytest.approx(_aged(slopes, smoothing), rel=1e-9)
        noises = [noise_S[s] for *_, valid_S, noise_S in history if valid_S[s] and np.isfinite(noise_S[s])]
        assert got_AS[EXPERTS + len(SMOOTHINGS), s] == pytest.approx(_aged(noises, 0.03), rel=1e-9)


def _aged(values: list[float], smoothing: float) -> float:
    weight = (1 - smoothing) ** np.arange(len(values))[::-1]
    return float(weight @ values / weight.sum())


def test_a_new_offset_rescales_the_averages() -> None:
    one, two = Averages(1), Averages(1)
    one.update(_interval(np.ones(1), np.array([1.0]), np.array([1e-7]), 1.0), np.ones(1))
    two.update(_interval(np.ones(1), np.array([3.0]), np.array([1e-7]), 1.0), np.ones(1))
    one.rescale(np.array([3.0]))
    np.testing.assert_allclose(one.values()[:EXPERTS], two.values()[:EXPERTS], rtol=1e-5)
