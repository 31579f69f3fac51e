"""What a surplus over the trend becomes, on series whose law is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lipadvisor.dynamics import coefficients
from lipadvisor.forecast import Forecaster
from lipadvisor.forecast.displacement import Displacement
from lipadvisor.forecast.motion import Interval
from lipadvisor.terms import Array, Terms

MakeTerms = Callable[..., Terms]
LR = 0.1


def _interval(free: float, own: float, steps: float) -> Interval:
    one = np.ones(1)
    return Interval(
        whole=True,
        steps=steps,
        steps_S=steps * one,
        change_S=free * one,
        free_S=free * one,
        start_S=5.0 * one,
        advance_S=steps * LR * one,
        squared_S=steps * LR**2 * one,
        own_steps=1.0,
        own_S=own * one,
        valid_S=one.astype(bool),
        moving_S=one.astype(bool),
    )


def _path(kind: str, steps: int, seed: int) -> Array:
    """A log-norm with a trend of .02 a step, and beside it a noise that returns, stays, or pushes itself on."""
    generator = np.random.default_rng(seed)
    beside, level, before = 0.0, 0.0, 0.0
    out = [0.0]
    for step in range(1, steps + 1):
        shock = 0.01 * generator.standard_normal()
        if kind == "returns":
            beside = 0.85 * beside + shock
        elif kind == "stays":
            beside += shock
        else:  # each step goes on as the one before did
            before = 0.9 * before + shock
            beside += before
        level = 0.02 * step + beside
        out.append(level)
    return np.array(out)


def _errors(make_terms: MakeTerms, level_T: Array, ahead: int, every: int) -> tuple[float, float, float]:
    """Return mean absolute errors with and without the answer over the second half, and the trust at the end."""
    forecaster, errors = None, []
    for step in range(0, len(level_T) - 1 - ahead, every):
        terms = make_terms(step, level_T[step : step + 1], np.diff(level_T)[step : step + 1], LR)
        forecaster = forecaster or Forecaster(terms.names, terms.composition_L)
        forecaster.update(terms, coefficients(terms))
        if step > len(level_T) // 2:
            mean = float(forecaster.forecast(ahead).network.mean[-1])
            answer = float(forecaster._displacement.answer(np.array(float(ahead)))[-1])
            outcome = level_T[step + 1 + ahead]
            errors.append((abs(outcome - mean), abs(outcome - mean + answer)))
    assert forecaster is not None
    with_it, without = np.mean(errors, axis=0)
    return float(with_it), float(without), forecaster._displacement.trust


@pytest.mark.parametrize("every", [1, 5])
def test_noise_that_returns_is_foreseen(make_terms: MakeTerms, every: int) -> None:
    with_it, without, trust = _errors(make_terms, _path("returns", 3000, 1), 10, every)
    assert with_it < 0.9 * without
    assert trust > 0.5


@pytest.mark.parametrize("kind", ["stays", "goes on"])
def test_where_nothing_returns_nothing_is_promised(make_terms: MakeTerms, kind: str) -> None:
    with_it, without, _ = _errors(make_terms, _path(kind, 3000, 2), 10, 5)
    assert with_it < 1.03 * without


def test_the_surplus_is_what_a_plain_loop_gets() -> None:
    generator = np.random.default_rng(3)
    shock_T, rate = generator.standard_normal(40), np.full(1, 0.7)
    every_step, every_fourth = Displacement(1, 0.9), Displacement(1, 0.9)
    free_T = shock_T + 0.7 * LR
    for free in free_T:
        every_step.update(_interval(free, free, 1.0), rate)
    keep = np.exp(-1.0 / 8.0)
    before = sum(shock * keep**age for age, shock in enumerate(shock_T[-2::-1]))
    np.testing.assert_allclose(every_step._before_S, before)
    np.testing.assert_allclose(every_step._last_S, shock_T[-1])
    # Measured every fourth step the three unseen ones are taken to be alike.
    even_T = np.repeat([0.3, -0.2, 0.5], 4)
    for block in even_T.reshape(3, 4):
        every_fourth.update(_interval(block.sum() + 4 * 0.7 * LR, block[-1] + 0.7 * LR, 4.0), rate)
    before = sum(shock * keep**age for age, shock in enumerate(even_T[-2::-1]))
    np.testing.assert_allclose(every_fourth._before_S, before)


def test_the_answer_follows_the_planned_rate_and_memory_goes_on_first() -> None:
    for momentum, sign in ((0.0, -1.0), (0.9, 1.0)):
        one = Displacement(1, momentum)
        one.update(_interval(1.0, 1.0, 1.0), np.zeros(1))
        one.trust = 1.0
        step_h1 = np.arange(1.0, 201.0)[:, None]
        same_h, quarter_h = one.answer(step_h1)[:, 0], one.answer(step_h1 / 4)[:, 0]
        assert not one.answer(np.zeros((200, 1))).any()
        assert np.sign(same_h[3]) == sign
        assert (np.abs(quarter_h[:10]) < 0.5 * np.abs(same_h[:10])).all()
        if momentum:  # at first what the buffer holds, in the end no more than is taken back
            assert one.answer(np.array(1e-3))[0] == pytest.approx(1e-3 * (0.9 - 2.2 / 12.0), rel=1e-3)
            assert same_h.max() < 0.9 / (1.0 - 0.9)
            assert np.diff(same_h)[-1] < 0.0
        else:
            assert (np.diff(same_h) < 0.0).all()
            assert same_h[-1] > -2.2


def test_what_came_too_late_or_was_never_finite_teaches_nothing(make_terms: MakeTerms) -> None:
    forecaster = None
    for step in range(0, 2000, 40):
        value = np.nan if step % 80 else 0.01 * step
        terms = make_terms(step, np.array([value]), np.array([np.nan]), LR)
        forecaster = forecaster or Forecaster(terms.names, terms.composition_L)
        forecaster.update(terms, coefficients(terms))
    assert forecaster is not None
    assert forecaster._displacement.trust == 0.0
    assert np.isfinite(forecaster.forecast(10).network.mean).all()


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("factor", [0.25, 1.0])
def test_what_goes_on_is_at_first_what_the_buffer_still_holds(momentum: float, factor: float) -> None:
    steps = max(1, int(0.5 / (1.0 - momentum)))  # before half is forgotten
    held = factor * sum(momentum**age for age in range(1, steps + 1))
    _, carried = Displacement(1, momentum).factors(factor * steps)
    assert 0.6 < float(carried) / held < 1.5
