"""Scores of the bar ``what-if`` on replicas whose law is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lipadvisor.experiments.bars.branches import Outcome, _joined
from lipadvisor.experiments.bars.what_if import _errors, _ratios, _rehearsed, _walks


def _rows(error: float, slope: float, noise: float, replicas: int, runs: int) -> list[dict[str, Any]]:
    """Runs of two branch points each; true mean 0, the first slope the best one."""
    generator = np.random.default_rng(7)
    rows = []
    for run in range(runs):
        for at in (601, 1001):
            level_R = noise * generator.standard_normal(replicas)
            cell = _errors(level_R, error, np.array([slope, 3.0]), 0) | {"rehearsed": 0.5 * error}
            rows.append({"run": f"mlp-{run}-{at}", "10": cell})
    return rows


def test_without_noise_every_figure_is_the_ratio_of_the_errors() -> None:
    found = _ratios(_rows(0.1, 1.0, 1e-9, 16, 5), "10")
    for name in ("error", "sums", "rms", "clean", "single"):
        assert found[name] == pytest.approx(0.1, rel=1e-6)
    assert found["rehearsed"] == pytest.approx(0.05, rel=1e-6)
    assert found["noise"] < 1e-8


def test_the_halves_take_the_noise_of_the_mean_out() -> None:
    found = _ratios(_rows(0.1, 1.0, 0.6, 16, 400), "10")  # the mean's own noise is .15
    assert found["rms"] > 0.16
    assert found["clean"] == pytest.approx(0.1, abs=0.03)
    assert found["noise"] == pytest.approx(0.15, rel=0.1)


def test_near_points_are_followed_to_the_first_horizon_only() -> None:
    walks = _walks("mlp", (10, 50, 200), quick=False)
    assert {at: [walk.horizons for walk in own] for at, own in walks.items()} == {
        601: [(10, 50, 200), (10,)],
        1001: [(10, 50, 200), (10,)],
        401: [(10,)],
        801: [(10,)],
    }
    assert all("lr x 8" not in walk.plans for own in walks.values() for walk in own if walk.suffix)


def test_replicas_of_two_walks_are_joined_where_both_were() -> None:
    far = Outcome({10: np.array([1.0, 2.0]), 50: np.array([3.0, 4.0])}, np.array([0.5, 0.6]))
    near = Outcome({10: np.array([5.0])}, np.array([9.0]))
    both = _joined(far, near)
    np.testing.assert_array_equal(both.level_hR[10], [1.0, 2.0, 5.0])
    np.testing.assert_array_equal(both.level_hR[50], [3.0, 4.0])
    np.testing.assert_array_equal(both.loss_R, [0.5, 0.6])


def test_a_rehearsal_leaves_the_noise_of_its_few_replicas_and_the_forecast_beyond() -> None:
    generator = np.random.default_rng(3)
    noise_R = generator.standard_normal(4000 + 16)
    level_hR = {10: 2.0 + 0.1 * noise_R, 50: np.full(16, 3.0)}
    mean_h = np.linspace(0.0, 4.9, 50)  # says 4 between the tenth step and the fiftieth, where 1 comes
    found = _rehearsed(level_hR, mean_h)
    expected = 0.1 / np.sqrt(4.0) * np.sqrt(2.0 / np.pi)
    assert found[10] == pytest.approx(expected, rel=0.05)
    assert found[50] == pytest.approx(3.0, abs=0.02)
    assert _rehearsed({10: level_hR[10]}, mean_h)[10] == pytest.approx(expected, rel=0.05)
    assert np.isnan(_rehearsed({10: np.ones(8), 50: np.ones(8)}, mean_h)[10])
