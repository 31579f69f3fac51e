"""The noise of the drift: as a step's samples show it, or else the squared residuals of the drift, averaged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lipadvisor.dynamics import Coefficients
from lipadvisor.forecast.motion import Interval
from lipadvisor.terms import Array

__all__ = ["ResidualNoise", "measured_noise"]

_GAIN = 0.03  # per measurement


def measured_noise(interval: Interval, rates: Coefficients, lr_S: Array) -> Array:
    """Return the variance of a step's direction, nats^2 per tau^2, shape ``(S,)``; not finite where there is none.

    Args:
        interval: up to the step.
        rates: of the step.
        lr_S: in force.
    """
    noise_S = np.empty(len(lr_S))
    noise_S[:-1] = rates.diffusion_L
    noise_S[-1] = rates.diffusion
    noise_S *= noise_S
    square_S = lr_S if rates.own_response == 1.0 else rates.own_response**2 * lr_S
    if interval.whole and interval.steps == 1.0:
        noise_S /= square_S
        return noise_S
    with np.errstate(divide="ignore", invalid="ignore"):  # no rate, no noise
        noise_S /= square_S
    return noise_S


class ResidualNoise:
    """Variance of the changes of ``S`` series about what was expected, nats^2 per squared ``tau``.

    Args:
        series: number of series.
    """

    def __init__(self, series: int) -> None:
        self._residual_S: Array = np.zeros(series)
        self._residual_mass_S: Array = np.zeros(series)

    def update(self, interval: Interval, expected_S: Array) -> None:
        """Take in what happened.

        Args:
            interval: since the last measurement.
            expected_S: growth that was expected over it, without decay, nats.
        """
        residual_S = interval.free_S - expected_S
        residual_S = residual_S**2 / np.where(interval.moving_S, interval.squared_S, 1.0)
        gain_S = _GAIN * interval.moving_S
        self._residual_S += gain_S * (residual_S - self._residual_S)
        self._residual_mass_S += gain_S * (1.0 - self._residual_mass_S)

    @property
    def variance_S(self) -> Array:
        """The average; 0 before anything happened."""
        return self._residual_S / np.maximum(self._residual_mass_S, 1e-300)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages as arrays."""
        return {name: value.copy() for name, value in vars(self).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`, or from a mapping that holds its entries among others."""
        for name in vars(self):
            setattr(self, name, np.array(state[name], dtype=np.float64))
