import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipadvisor.experiments.statistics import bootstrap_interval, interquartile_mean, paired_ratio, summary

values = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12)
positive = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6)


@given(values)
def test_summary_equals_its_slow_twin(numbers: list[float]) -> None:
    got = summary(numbers)
    mean = math.fsum(numbers) / len(numbers)
    assert got.count == len(numbers)
    assert math.isclose(got.mean, mean, rel_tol=1e-9, abs_tol=1e-9)
    assert (got.low, got.high) == (min(numbers), max(numbers))
    if len(numbers) == 1:
        assert math.isnan(got.std)
    else:
        std = math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1))
        assert math.isclose(got.std, std, rel_tol=1e-7, abs_tol=1e-7)


@given(values)
def test_interquartile_mean_equals_its_slow_twin(numbers: list[float]) -> None:
    cut = len(numbers) // 4
    middle = sorted(numbers)[cut : len(numbers) - cut]
    assert math.isclose(interquartile_mean(numbers), math.fsum(middle) / len(middle), rel_tol=1e-9, abs_tol=1e-9)


def test_the_bootstrap_equals_all_resamples_of_three() -> None:
    numbers = (1.0, 2.0, 5.0)
    means = sorted(sum(sample) / 3 for sample in itertools.product(numbers, repeat=3))
    got = bootstrap_interval(numbers, np.random.default_rng(0), resamples=50_000)
    assert got.value == pytest.approx(8 / 3)
    assert (got.lower, got.upper) == (pytest.approx(means[1]), pytest.approx(means[-2]))  # 1 of 27 lies beyond 5 %


@given(positive, st.integers(0, 2**32 - 1))
def test_paired_ratio_is_the_geometric_mean_of_ratios(numbers: list[float], seed: int) -> None:
    other = [1 + 0.5 * math.sin(index) + x for index, x in enumerate(numbers)]
    got = paired_ratio(numbers, other, np.random.default_rng(seed))
    product = math.prod(x / y for x, y in zip(numbers, other, strict=True))
    assert math.isclose(got.value, product ** (1 / len(numbers)), rel_tol=1e-9)
    assert got.lower <= got.value * (1 + 1e-9)
    assert got.upper >= got.value * (1 - 1e-9)
    inverse = paired_ratio(other, numbers, np.random.default_rng(seed))
    assert math.isclose(inverse.value * got.value, 1.0, rel_tol=1e-9)


@pytest.mark.parametrize("call", [lambda g: summary([]), lambda g: paired_ratio([1.0], [1.0, 2.0], g),
                                  lambda g: paired_ratio([1.0], [0.0], g),
                                  lambda g: bootstrap_interval([1.0], g, level=1.0),
                                  lambda g: bootstrap_interval([1.0], g, resamples=0)])  # fmt: skip
def test_bad_input_is_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="must"):
        call(np.random.default_rng(0))
