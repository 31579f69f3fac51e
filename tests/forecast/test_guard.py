"""The guards on plans: by curvature right on a quadratic, by the relative update not fooled by one quiet batch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lipadvisor.forecast.guard import REFUSE_LOAD, LossLevel, UpdateRatio, feeds_itself, is_refused, stability_load


@pytest.mark.parametrize(("momentum", "lr"), [(0.0, 0.19), (0.0, 0.21), (0.9, 0.37), (0.9, 0.39)])
def test_a_load_above_one_is_divergence_on_a_quadratic(momentum: float, lr: float) -> None:
    w, m, lam = 1.0, 0.0, 10.0
    for _ in range(2000):
        m = momentum * m + lam * w
        w -= lr * m
        if abs(w) > 1e6:
            break
    assert (abs(w) > 1.0) == (stability_load("sgd", momentum, lr, lam) > 1.0)


def test_limits_of_the_refusal() -> None:
    assert not is_refused(REFUSE_LOAD)
    assert is_refused(REFUSE_LOAD + 1e-9)
    assert is_refused(math.nan)
    assert stability_load("adamw", 0.9, 0.1, -5.0) == 0.0
    with pytest.raises(ValueError, match="lr"):
        stability_load("sgd", 0.0, -1.0, 1.0)


def test_a_rise_is_judged_by_the_average_update_and_what_goes_on_by_the_last() -> None:
    ratio, lr_L = UpdateRatio(2), np.array([0.01, 0.01])
    for step in range(300):
        ratio.update(np.array([2.0 if step % 2 else 4.0, 1.0]), 1.0)
    ratio.update(np.array([0.1, np.nan]), 1.0)  # a quiet batch, and a layer that was not measured
    steady_L, risen_L = ratio.load_L(lr_L, lr_L), ratio.load_L(lr_L, 10.0 * lr_L)
    np.testing.assert_allclose(steady_L, [0.001 / 0.15, 0.01 / 0.15])
    np.testing.assert_allclose(risen_L, [0.3 / 0.20, 0.1 / 0.20], rtol=0.03)
    ratio.update(np.array([30.0, 1.0]), 1.0)  # what the last step does counts at any rate
    assert ratio.load_L(lr_L, lr_L)[0] == pytest.approx(2.0)
    assert ratio.load_L(lr_L, 1.001 * lr_L)[0] >= 2.0


def test_a_measurement_of_many_steps_weighs_as_many() -> None:
    one, many, lr_L = UpdateRatio(1), UpdateRatio(1), np.ones(1)
    for value in (1.0, 3.0):
        many.update(np.array([value]), 5.0)
        for _ in range(5):
            one.update(np.array([value]), 1.0)
    np.testing.assert_allclose(one.load_L(lr_L, 2.0 * lr_L), many.load_L(lr_L, 2.0 * lr_L))


def test_where_the_loss_is_told_a_rise_counts_by_its_root() -> None:
    ratio, level, lr_L = UpdateRatio(1), LossLevel(), np.array([0.01])
    assert level.shrunk is None
    for step in range(1000):
        ratio.update(np.array([1.0]), 1.0)
        level.update(4.0 if step == 0 else 0.04, 1.0)
    assert level.shrunk == pytest.approx(0.1, rel=0.01)
    quiet, told = ratio.load_L(lr_L, 5.0 * lr_L), ratio.load_L(lr_L, 5.0 * lr_L, level.shrunk)
    assert quiet[0] == pytest.approx(0.05 / 0.20)
    assert told[0] == pytest.approx(0.05 / (0.5 * 0.1), rel=0.01)
    np.testing.assert_array_equal(ratio.load_L(lr_L, lr_L, level.shrunk), ratio.load_L(lr_L, lr_L))


def test_a_step_moves_the_network_by_no_more_than_its_layers_together() -> None:
    generator = np.random.default_rng(0)
    ratio, weights = UpdateRatio(3), [generator.standard_normal((5, 4)) for _ in range(3)]
    update = [generator.standard_normal((5, 4)) for _ in weights]
    lr_L, composition_L = np.array([0.01, 0.02, 0.03]), np.array([1.0, 0.5, 1.0])
    size = [np.linalg.norm(u, 2) / np.linalg.norm(w, 2) for u, w in zip(update, weights, strict=True)]
    ratio.update(np.array(size), 1.0)
    moved = sum(
        c * np.log(np.linalg.norm(w + lr * u, 2) / np.linalg.norm(w, 2))
        for c, w, u, lr in zip(composition_L, weights, update, lr_L, strict=True)
    )
    most = 1.15 * ratio.network_load(lr_L, composition_L, 0.0, 1.0)
    assert moved <= most == pytest.approx(float(composition_L @ (np.array(size) * lr_L)))
    assert ratio.network_load(2.0 * lr_L, composition_L, 0.0, 0.5) == pytest.approx(4.0 * most / 1.15)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_of_a_buffer_full_of_noise_one_batch_is_that_part(momentum: float) -> None:
    noise_T, buffer, squared = np.random.default_rng(1).standard_normal(100_000), 0.0, 0.0
    for noise in noise_T:
        buffer = momentum * buffer + noise
        squared += buffer**2
    ratio = UpdateRatio(1)
    ratio.update(np.array([math.sqrt(squared / len(noise_T))]), 1.0)
    assert 1.15 * ratio.network_load(np.ones(1), np.ones(1), momentum, 1.0) == pytest.approx(1.0, rel=0.05)


def test_only_steps_that_grow_with_the_gradient_feed_themselves() -> None:
    assert feeds_itself("sgd", 0.0)
    assert not feeds_itself("sgd", 0.5)
    assert not feeds_itself("adamw", 0.0)


@pytest.mark.parametrize("loss", [None, math.nan, math.inf, 0.0, -1.0])
def test_a_loss_that_says_nothing_is_left_out(loss: float | None) -> None:
    level = LossLevel()
    level.update(loss, 1.0)
    assert level.shrunk is None
    level.update(2.0, 1.0)
    level.update(loss, 1.0)
    assert level.shrunk == pytest.approx(1.0)
    level.update(1e9, 1.0)  # above the first one nothing has shrunk
    assert level.shrunk == 1.0
    again = LossLevel()
    again.load_state_dict(level.state_dict())
    assert again.state_dict() == level.state_dict()
