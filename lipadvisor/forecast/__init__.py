"""Forecasts of the log-norms under any plan of learning rates and weight decays, with calibrated bands and scores."""

from lipadvisor.forecast.forecaster import Forecaster
from lipadvisor.forecast.guard import is_refused, stability_load
from lipadvisor.forecast.plan import Standing, spread
from lipadvisor.forecast.recorded import recorded_alarms
from lipadvisor.forecast.rehearsed import rehearsed
from lipadvisor.forecast.result import BandSeries, Forecast, Score
from lipadvisor.forecast.wanted import wanted_update
from lipadvisor.forecast.warning import LEAD_STEPS, Alarm, DivergenceWarning

__all__ = [
    "LEAD_STEPS",
    "Alarm",
    "BandSeries",
    "DivergenceWarning",
    "Forecast",
    "Forecaster",
    "Score",
    "Standing",
    "is_refused",
    "recorded_alarms",
    "rehearsed",
    "spread",
    "stability_load",
    "wanted_update",
]
