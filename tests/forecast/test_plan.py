from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lipadvisor.forecast import Forecaster, Standing, spread
from lipadvisor.forecast.plan import planned, validated_horizon

_LR_L, _WD_L, _ONES_L = np.array([0.1, 0.2]), np.array([0.0, 0.5]), np.ones(2)


def _plan(plan: Any, horizon: int = 3) -> Any:
    return planned(plan, horizon, Standing(_LR_L, _WD_L, np.zeros(2, bool)), _ONES_L, _LR_L)


def test_without_a_plan_the_present_goes_on() -> None:
    got = _plan(None)
    np.testing.assert_allclose(got.lr_hS, np.tile([0.1, 0.2, 0.15], (3, 1)))
    np.testing.assert_allclose(got.log_decay_hS, np.tile([0.0, np.log(0.9), np.log(0.9)], (3, 1)))
    assert not got.changes.any()


def test_numbers_and_arrays_spread_over_the_layers() -> None:
    got = _plan({"lr": [0.1, 0.4, 0.2], "weight_decay": 0.1})
    np.testing.assert_allclose(got.lr_hS, np.repeat([[0.1], [0.4], [0.2]], 3, axis=1))
    np.testing.assert_allclose(got.log_decay_hS[1], [np.log(0.96), np.log(0.96), 2 * np.log(0.96)])
    np.testing.assert_allclose(got.changes, [np.log(2), np.log(4), np.log(4)])


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"rate": 0.1}, "must have no keys but .* got 'rate'"),
        ([0.1], "must be a dict"),
        ({"lr": -0.1}, r"plan\['lr'\] must be finite and not negative, got -0\.1"),
        ({"weight_decay": [0.1, -2.0, 0.0]}, r"plan\['weight_decay'\] must be finite and not negative, got -2\.0"),
        ({"lr": float("nan")}, r"plan\['lr'\] must be finite and not negative, got nan"),
        ({"lr": float("inf")}, r"plan\['lr'\] must be finite and not negative, got inf"),
        ({"lr": [0.1, 0.2]}, r"plan\['lr'\] must be a number or have length 3, got shape \(2,\)"),
        ({"lr": "fast"}, r"plan\['lr'\] must be a number or an array of numbers, got 'fast'"),
        ({"lr": 2.0, "weight_decay": 0.5}, r"must be below 1, got 1\.0"),
    ],
)
def test_impossible_plans_are_refused(plan: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _plan(plan)


def test_a_decay_of_its_own_goes_on_per_step_and_any_other_as_its_coefficient() -> None:
    standing = Standing(_LR_L, _WD_L, np.array([False, True]))
    got = planned({"lr": [0.4, 20.0, 0.0]}, 3, standing, _ONES_L, _LR_L)
    np.testing.assert_allclose(got.log_decay_hS[:, 1], [np.log(0.9), np.log(0.9), 0.0])
    kept = planned({"lr": [0.4, 1.9, 0.0]}, 3, Standing(_LR_L, _WD_L, np.zeros(2, bool)), _ONES_L, _LR_L)
    np.testing.assert_allclose(kept.log_decay_hS[:, 1], [np.log(0.8), np.log(0.05), 0.0])
    both = planned({"lr": 0.4, "weight_decay": 1.0}, 3, standing, _ONES_L, _LR_L)
    np.testing.assert_allclose(both.log_decay_hS[:, :2], np.log(0.6))
    alone = planned({"weight_decay": 1.0}, 3, standing, _ONES_L, _LR_L)
    np.testing.assert_allclose(alone.log_decay_hS[0, :2], [np.log(0.9), np.log(0.8)])


def test_knobs_of_the_next_step_go_on_and_changes_count_from_those_measured() -> None:
    standing = Standing(np.array([0.2, 0.4]), _WD_L, np.zeros(2, bool))
    got = planned(None, 2, standing, _ONES_L, _LR_L)
    np.testing.assert_allclose(got.lr_hS[0], [0.2, 0.4, 0.3])
    np.testing.assert_allclose(got.changes, np.log(2))


def test_an_error_names_what_was_planned_and_nothing_else() -> None:
    generator = np.random.default_rng(0)
    told = 0
    for _ in range(300):
        lr_G, decay_G = 10.0 ** generator.uniform(-3, 0, 2), 10.0 ** generator.uniform(-3, 3, 2)
        own_G = generator.random(2) < 0.5
        decay_G = np.where(own_G, np.minimum(decay_G, 0.9 / lr_G), decay_G)  # as the applier sees to
        named = [key for key in ("lr", "weight_decay") if generator.random() < 0.6]
        plan = {key: 10.0 ** generator.uniform(-1, 3, 4) for key in named}
        standing, message = Standing(lr_G, decay_G, own_G), ""
        try:
            lr_hG, shrink_hG = spread(plan, 4, standing)
        except ValueError as error:
            message = str(error)
        if not message:
            assert not plan or shrink_hG.max() < 1.0
            assert (lr_hG == (plan["lr"][:, None] if "lr" in plan else lr_G)).all()
            continue
        told += 1
        assert named
        assert all((f"plan['{key}']" in message) == (key in named) for key in ("lr", "weight_decay"))
        assert "weight_decay" in named or not own_G.all(), "its own decay bears any rate"
        rate_hG, coefficient_hG = (np.reshape(plan.get(k, g), (-1, 1)) for k, g in (("lr", 0), ("weight_decay", 0)))
        rate_hG = rate_hG if "lr" in plan else lr_G
        assert np.max(rate_hG * (coefficient_hG if "weight_decay" in plan else decay_G)) >= 1.0
    assert 50 < told < 250


def test_knobs_in_force_must_be_those_of_the_layers() -> None:
    forecaster = Forecaster(("a", "b"), _ONES_L)
    with pytest.raises(ValueError, match=r"standing=\.\.\.\) must be of 2 layers, got 3"):
        forecaster.forecast(3, None, standing=Standing(np.ones(3), np.ones(3), np.zeros(3, bool)))


@pytest.mark.parametrize("horizon", [0, -1, 2.0, "3", True, None])
def test_impossible_horizons_are_refused(horizon: Any) -> None:
    with pytest.raises(ValueError, match=r"forecast\(horizon=\.\.\.\) must be an integer of at least 1, got"):
        validated_horizon(horizon)


def test_numpy_integers_are_horizons() -> None:
    assert validated_horizon(np.int64(4)) == 4
