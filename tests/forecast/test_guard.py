"""The guard on plans by curvature: right on a quadratic, and careful with what is not a number."""

from __future__ import annotations

import math

import pytest

from lipadvisor.forecast.guard import REFUSE_LOAD, is_refused, stability_load


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
