"""The checks of captured samples, on numbers alone."""

from __future__ import annotations

import numpy as np
import pytest

from lipadvisor.probe.agreement import MIN_PAIRS, Differences, common_factor


def shares(seed: int, factor: float, spread: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums over 32 samples of five layers, their squares, and the gradient: ``factor`` times the sums, wrong by
    ``spread``."""
    random = np.random.default_rng(seed)
    samples = random.normal(0.3, 1.0, (5, 32)) * random.lognormal(0.0, 1.0, (5, 1))
    sums = samples.sum(1)
    return sums, (samples**2).sum(1), factor * sums * (1.0 + spread * random.normal(size=5))


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.96, 1 / 65536])
@pytest.mark.parametrize("seed", range(4))
def test_an_exact_factor_is_found_to_rounding(factor: float, seed: int) -> None:
    found, agreed = common_factor(*shares(seed, factor))
    assert found == pytest.approx(factor, rel=1e-12)
    assert agreed.all()


@pytest.mark.parametrize("seed", range(8))
def test_what_half_precision_leaves_is_no_factor(seed: int) -> None:
    sums, squares, gradient = shares(seed, 1.0, spread=6e-3)
    found, agreed = common_factor(sums, squares, gradient)
    assert found == 1.0
    assert agreed.all()
    found, _ = common_factor(sums, squares, gradient * 0.25)
    assert found == pytest.approx(0.25, rel=1e-2)


@pytest.mark.parametrize("factor", [1.0, 0.5, 1 / 65536])
def test_a_layer_of_rounding_alone_has_no_say_and_no_fault(factor: float) -> None:
    sums, squares, gradient = shares(1, factor)
    for place in (0, 3):
        sums[place], squares[place], gradient[place] = 3e-7, 4e-14, -2e-7 * factor
    found, agreed = common_factor(sums, squares, gradient)
    assert found == pytest.approx(factor, rel=1e-12)
    assert agreed.all()
    gradient[4] *= 3.0  # one that is really off is still seen
    assert common_factor(sums, squares, gradient)[1].tolist() == [True, True, True, True, False]


def test_layers_that_come_later_are_averaged_with_the_others() -> None:
    differences, nan = Differences(), float("nan")
    differences.add(np.array([1.0, nan]), np.array([2.0, nan]))
    assert differences.noise_LL is not None
    assert np.isnan(differences.noise_LL[1, 1])
    for _ in range(MIN_PAIRS):
        differences.add(np.array([1.0, 3.0]), np.array([2.0, 4.0]))
    assert differences.enough
    np.testing.assert_allclose(differences.noise_LL, [[1.0, 3.0], [3.0, 9.0]])
    assert differences.curvature_L is not None
    np.testing.assert_allclose(differences.curvature_L, [2.0, 4.0])
