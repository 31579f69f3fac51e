"""A forecast that knows how the first of its steps went, because they were tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lipadvisor.forecast.result import BandSeries, Forecast
from lipadvisor.policies import Status
from lipadvisor.terms import Array

__all__ = ["rehearsed"]


def rehearsed(made: Forecast, level_S: Mapping[str, float], steps: int, lost: str | None = None) -> Forecast:
    """Return ``made`` moved onto the levels that its first steps led to when they were tried.

    What the trial says of the trend beyond it is little: from there on the forecast's own increments hold. Up to there
    the difference grows evenly. Bands keep their width, which is a single path's.

    Args:
        made: a forecast under the plan that was tried.
        level_S: log-norms after the trial, nats, the mean over those who tried; the network's under ``"*"``.
        steps: of the trial, in [1, ``made.horizon``].
        lost: why the plan is not to be followed, if it is not.

    Raises:
        ValueError: ``steps`` is out of range.
    """
    if not 1 <= steps <= made.horizon:
        raise ValueError(f"rehearsed(steps=...) must be in [1, {made.horizon}], got {steps!r}.")
    ramp_h = np.minimum(np.arange(1.0, made.horizon + 1.0) / steps, 1.0)
    network = _moved(made.network, level_S["*"], steps, ramp_h)
    layers = {name: _moved(series, level_S[name], steps, ramp_h) for name, series in made.layers.items()}
    status, warnings = made.status, made.warnings
    if lost is not None:
        status, warnings = Status.UNSTABLE, (*warnings, f"planned knobs, rehearsed: {lost}")
    return replace(made, network=network, layers=layers, status=status, warnings=warnings)


def _moved(series: BandSeries, level: float, steps: int, ramp_h: Array) -> BandSeries:
    move_h = (level - float(series.mean[steps - 1])) * ramp_h
    return BandSeries(series.mean + move_h, series.std, series.lower + move_h, series.upper + move_h)
