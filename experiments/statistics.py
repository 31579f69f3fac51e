"""What a handful of repeated runs says: centre, spread, and how sure one may be of a ratio.

Runs of two arms are paired where they share their seed (initialization and order of batches). Resampling is over
seeds, with a generator that the caller owns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["Interval", "Summary", "bootstrap_interval", "interquartile_mean", "paired_ratio", "summary"]

Floats = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Summary:
    """One quantity over repeated runs."""

    count: int
    mean: float
    std: float  # sample standard deviation (n - 1); nan for one run
    interquartile_mean: float
    low: float  # smallest
    high: float  # largest


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with a bootstrap percentile interval."""

    value: float
    lower: float
    upper: float
    level: float  # coverage aimed at, in (0, 1)


def summary(values: Floats) -> Summary:
    """Return centre and spread of ``values``.

    Raises:
        ValueError: there is no value.
    """
    array = _checked(values, "summary(values=...)")
    std = float(array.std(ddof=1)) if len(array) > 1 else float("nan")
    return Summary(
        len(array), float(array.mean()), std, interquartile_mean(array), float(array.min()), float(array.max())
    )


def interquartile_mean(values: Floats) -> float:
    """Return the mean of the middle half of ``values``: a quarter of them, rounded down, is cut at either end.

    With fewer than four values nothing is cut. The centre is robust to a single failed run.

    References:
        Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice, arXiv 2108.13264, sec. 4.
    """
    return float(stats.trim_mean(_checked(values, "interquartile_mean(values=...)"), 0.25))


def bootstrap_interval(
    values: Floats, generator: np.random.Generator, *, level: float = 0.9, resamples: int = 2000
) -> Interval:
    """Return the mean of ``values`` with its bootstrap percentile interval.

    With three runs such an interval is rather too narrow: read it as the range that resampling gives, not as proof.

    Raises:
        ValueError: there is no value, or ``level`` is not in (0, 1), or ``resamples`` is below 1.
    """
    array = _checked(values, "bootstrap_interval(values=...)")
    if not 0 < level < 1:
        raise ValueError(f"bootstrap_interval(level=...) must be in (0, 1), got {level}.")
    if resamples < 1:
        raise ValueError(f"bootstrap_interval(resamples=...) must be >= 1, got {resamples}.")
    means = array[generator.integers(0, len(array), (resamples, len(array)))].mean(axis=1)
    lower, upper = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(array.mean()), float(lower), float(upper), level)


def paired_ratio(
    numerator: Floats, denominator: Floats, generator: np.random.Generator, *, level: float = 0.9
) -> Interval:
    """Return the geometric mean of the ratios run by run, with its bootstrap interval over pairs.

    Args:
        numerator: positive, one value a seed.
        denominator: positive, the same seeds in the same order.
        generator: source of the resampling.
        level: coverage of the interval, in (0, 1).

    Raises:
        ValueError: the lengths differ, a value is not positive, or there is none.
    """
    above = _checked(numerator, "paired_ratio(numerator=...)")
    below = _checked(denominator, "paired_ratio(denominator=...)")
    if len(above) != len(below):
        raise ValueError(f"paired_ratio: both must have the same length, got {len(above)} and {len(below)}.")
    if (above <= 0).any() or (below <= 0).any():
        raise ValueError(f"paired_ratio: every value must be > 0, got {min(above.min(), below.min())}.")
    log_ratio = bootstrap_interval(np.log(above) - np.log(below), generator, level=level)
    return Interval(
        float(np.exp(log_ratio.value)), float(np.exp(log_ratio.lower)), float(np.exp(log_ratio.upper)), level
    )


def _checked(values: Floats, argument: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{argument} must be a non-empty list of numbers, got shape {array.shape}.")
    return array
