from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from lipadvisor.forecast.experts import POWER_E, POWERS, SMOOTHINGS, Experts, power_integrals


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.7), (0.01, 3.0), (2.0, 2.0 + 1e-9)])
def test_power_integrals_equal_quadrature(start: float, end: float) -> None:
    got = power_integrals(np.array([start]), np.array([end]))[:, 0]
    # The last case is so short that the integrand is constant: quadrature would lose digits.
    want = [quad(lambda u, p=p: u**-p, start, end)[0] if end - start > 1e-6 else 1e-9 * start**-p for p in POWERS]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_clock_that_stands_still_gives_zero() -> None:
    assert not power_integrals(np.array([0.0, 1.0]), np.array([0.0, 1.0])).any()


def test_experts_equal_a_plain_loop_over_irregular_intervals() -> None:
    generator = np.random.default_rng(0)
    experts = Experts(2)
    tau, history = 0.3, []
    for _ in range(40):
        steps, lr = int(generator.integers(1, 6)), float(generator.uniform(0.01, 0.1))
        change_S = generator.standard_normal(2)
        start, end = tau, tau + steps * lr
        valid_S = generator.uniform(size=2) > 0.2
        experts.update(change_S, np.full(2, start), np.full(2, end), np.full(2, float(steps)), valid_S)
        history.append((change_S, start, end, steps, valid_S))
        tau = end
    got_ES = experts.values_ES()
    for e, p_index in enumerate(POWER_E):
        power, smoothing = POWERS[p_index], SMOOTHINGS[e % len(SMOOTHINGS)]
        for s in range(2):
            # A measurement over n steps counts as n equal ones; the mean is weighted by age.
            values = []
            for change_S, start, end, steps, valid_S in history:
                if valid_S[s]:
                    values += [change_S[s] / quad(lambda u, p=power: u**-p, start, end)[0]] * steps
            weight = (1 - smoothing) ** np.arange(len(values))[::-1]
            assert got_ES[e, s] == pytest.approx(float(weight @ values / weight.sum()), rel=1e-6)


def test_a_new_offset_rescales_the_averages() -> None:
    one, two = Experts(1), Experts(1)
    args = (np.ones(1), np.ones(1), np.array([True]))
    one.update(args[0], np.array([1.0]), np.array([1.0 + 1e-7]), args[1], args[2])
    two.update(args[0], np.array([3.0]), np.array([3.0 + 1e-7]), args[1], args[2])
    one.rescale(np.array([3.0]))
    np.testing.assert_allclose(one.values_ES(), two.values_ES(), rtol=1e-5)
