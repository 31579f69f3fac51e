"""Noise of other batches: scaled as sampling says, checked by drawing them."""

from __future__ import annotations

import numpy as np
import pytest

from lipadvisor.dynamics import finite_population


@pytest.mark.parametrize(("size", "population"), [(1, 10), (4, 10), (9, 10), (10, 10), (32, 40)])
def test_finite_population_by_drawing(size: int, population: int) -> None:
    generator = np.random.default_rng(size)
    values = generator.normal(size=population)
    draws = np.argsort(generator.random((40_000, population)), axis=1)[:, :size]
    observed = values[draws].mean(1).var()
    predicted = values.var(ddof=1) / size * finite_population(size, population)
    assert observed == pytest.approx(predicted, rel=0.04, abs=1e-12)


@pytest.mark.parametrize(("size", "population"), [(0, 10), (11, 10)])
def test_impossible_sizes_are_refused(size: int, population: int) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        finite_population(size, population)
