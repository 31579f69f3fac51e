"""Noise of other batches: scaled as sampling says, checked by drawing them."""

from __future__ import annotations

import numpy as np
import pytest

from lipadvisor.dynamics import finite_population, integral_form, noise_split, simulate


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


def test_the_split_of_projected_noise_against_the_whole_covariance() -> None:
    generator = np.random.default_rng(3)
    gradients_BP = generator.normal(size=(50, 7)) @ generator.normal(size=(7, 7))
    covector_P = generator.normal(size=7)
    covariance_PP = np.cov(gradients_BP, rowvar=False) / 16
    split = noise_split(covector_P, gradients_BP.var(0, ddof=1), gradients_BP @ covector_P, batch_size=16)
    assert split.variance == pytest.approx(np.diag(covariance_PP) @ covector_P**2, rel=1e-12)
    assert split.total == pytest.approx(covector_P @ covariance_PP @ covector_P, rel=1e-12)
    assert split.covariance == pytest.approx(split.total - split.variance, rel=1e-12)


def test_what_cannot_be_split_is_refused() -> None:
    for arguments, words in (
        ((np.ones(2), np.ones(3), np.ones(4)), "one shape"),
        ((np.ones(2), np.ones(2), np.ones(1)), "2 samples"),
        ((np.ones(2), np.ones(2), np.ones(4), 0), "batch_size"),
    ):
        with pytest.raises(ValueError, match=words):
            noise_split(*arguments)


def test_noise_that_is_none_is_refused() -> None:
    rate_TL, lr_T, generator = np.zeros((1, 2)), np.ones(1), np.random.default_rng(0)
    for noise_LL, words in (([[1.0, 2.0], [2.0, 1.0]], "semidefinite"), ([[np.nan, 0.0], [0.0, 1.0]], "finite")):
        with pytest.raises(ValueError, match=words):
            simulate(np.zeros(2), rate_TL, np.array([noise_LL]), lr_T, 3, generator)
    rounded = np.array([[[1.0, 1.0], [1.0, 1.0 - 1e-9]]])
    assert np.isfinite(simulate(np.zeros(2), rate_TL, rounded, lr_T, 3, generator)).all()
    with pytest.raises(ValueError, match="lr_T"):
        integral_form(0.0, np.ones(2), np.ones(2), np.array([0.1, -0.1]))
