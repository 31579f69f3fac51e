from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lipadvisor.forecast.plan import planned, validated_horizon

_LR_L, _WD_L, _ONES_L = np.array([0.1, 0.2]), np.array([0.0, 0.5]), np.ones(2)


def _plan(plan: Any, horizon: int = 3) -> Any:
    return planned(plan, horizon, _LR_L, _WD_L, _ONES_L)


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


@pytest.mark.parametrize("horizon", [0, -1, 2.0, "3", True, None])
def test_impossible_horizons_are_refused(horizon: Any) -> None:
    with pytest.raises(ValueError, match=r"forecast\(horizon=\.\.\.\) must be an integer of at least 1, got"):
        validated_horizon(horizon)


def test_numpy_integers_are_horizons() -> None:
    assert validated_horizon(np.int64(4)) == 4
