"""The linearised update map against the optimizers themselves on a quadratic."""

from __future__ import annotations

import numpy as np
import pytest

from lipadvisor.dynamics import expansion_factor, stability_limit


def rate_of_growth(optimizer: str, b: float, lr: float, lam: float, wd: float) -> float:
    """Run the optimizer with frozen preconditioner on ``lam w^2 / 2`` and return its growth factor per step."""
    w, m, share = 1.0, 0.0, 1.0 - b if optimizer == "adamw" else 1.0
    logs = []
    for _ in range(4000):
        m = b * m + share * lam * w
        w = (1.0 - lr * wd) * w - lr * m
        size = np.hypot(w, m)
        w, m = w / size, m / size
        logs.append(np.log(size))
    return float(np.exp(np.mean(logs[2000:])))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("b", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("pull", [-0.3, 0.2, 1.1, 1.9, 2.5, 3.7, 4.1, 30.0])
@pytest.mark.parametrize("wd", [0.0, 0.4])
def test_equals_the_growth_of_the_iteration(optimizer: str, b: float, pull: float, wd: float) -> None:
    lr = 0.1
    expected = rate_of_growth(optimizer, b, lr, pull / lr, wd)
    assert expansion_factor(optimizer, b, lr, pull / lr, wd) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("optimizer", "b", "limit"), [("sgd", 0.0, 2.0), ("sgd", 0.9, 3.8), ("adamw", 0.9, 38.0)])
def test_limits(optimizer: str, b: float, limit: float) -> None:
    assert stability_limit(optimizer, b) == pytest.approx(limit)
    assert expansion_factor(optimizer, b, 1.0, 0.999 * limit) <= 1.0 + 1e-9
    assert expansion_factor(optimizer, b, 1.0, 1.01 * limit) > 1.0


def test_bad_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match="momentum"):
        stability_limit("sgd", 1.0)
