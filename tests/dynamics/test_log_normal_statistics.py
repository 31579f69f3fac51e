from __future__ import annotations

import numpy as np
import pytest

from lipadvisor.dynamics import LogNormal, integral_form, simulate


def test_log_normal_moments_equal_monte_carlo() -> None:
    generator = np.random.default_rng(0)
    law = LogNormal(np.array(0.3), np.array(0.25))
    sample = np.exp(0.3 + 0.5 * generator.standard_normal(1_000_000))
    assert float(law.mean()) == pytest.approx(sample.mean(), rel=5e-3)
    assert float(law.var()) == pytest.approx(sample.var(), rel=2e-2)


def test_log_normal_survives_what_floats_do_not() -> None:
    law = LogNormal(np.array([600.0, 0.0, 0.0]), np.array([900.0, 1e-18, 0.0]))
    np.testing.assert_allclose(law.log_mean(), [1050.0, 5e-19, 0.0])
    np.testing.assert_allclose(law.log_var(), [2 * 1050 + 900, np.log(1e-18), -np.inf])
    assert np.isinf(law.mean()[0])
    assert np.isinf(law.var()[0])


def test_simulated_paths_have_the_integral_form_s_moments() -> None:
    generator = np.random.default_rng(1)
    steps, lr_T = 40, np.linspace(0.1, 0.01, 40)
    rate_TL = np.column_stack((np.linspace(1.0, 0.0, steps), np.full(steps, -0.2)))
    noise_LL = np.array([[0.5, 0.3], [0.3, 0.4]])
    path_PTL = simulate(np.zeros(2), rate_TL, np.broadcast_to(noise_LL, (steps, 2, 2)), lr_T, 20_000, generator)
    z_PT = path_PTL.sum(axis=2)
    law = integral_form(0.0, rate_TL.sum(axis=1), np.sqrt(lr_T * noise_LL.sum()), lr_T)
    assert path_PTL.shape == (20_000, steps + 1, 2)
    np.testing.assert_allclose(z_PT.mean(axis=0), law.mean_log, atol=4 * np.sqrt(law.var_log[-1] / 20_000))
    np.testing.assert_allclose(z_PT.var(axis=0)[1:], law.var_log[1:], rtol=0.05)
    np.testing.assert_allclose(np.exp(z_PT[:, -1]).mean(), law.mean()[-1], rtol=0.01)


def test_simulation_repeats_with_its_generator_and_refuses_bad_shapes() -> None:
    noise = np.ones((3, 1, 1))
    first = simulate(np.zeros(1), np.zeros((3, 1)), noise, np.ones(3), 2, np.random.default_rng(5))
    again = simulate(np.zeros(1), np.zeros((3, 1)), noise, np.ones(3), 2, np.random.default_rng(5))
    np.testing.assert_array_equal(first, again)
    with pytest.raises(ValueError, match=r"simulate\(paths=\.\.\.\) must be at least 1, got 0"):
        simulate(np.zeros(1), np.zeros((3, 1)), noise, np.ones(3), 0, np.random.default_rng(5))
    with pytest.raises(ValueError, match="must have shapes"):
        simulate(np.zeros(2), np.zeros((3, 1)), noise, np.ones(3), 1, np.random.default_rng(5))
    with pytest.raises(ValueError, match="must have one length"):
        integral_form(0.0, np.zeros(2), np.zeros(3), np.zeros(3))
