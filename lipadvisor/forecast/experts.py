"""Twelve guesses of the drift: moving averages of ``x (tau + tau_c)^p``.

The drift per unit of ``tau`` decays like ``tau^-p``: after the first rise ``p`` is near 1, later above it, while the
loss runs out. Each expert has one ``p`` and one smoothing; it carries its average on along the planned ``tau``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lipadvisor.forecast.motion import Mask
from lipadvisor.terms import Array

__all__ = ["POWERS", "POWER_E", "SMOOTHINGS", "Experts", "power_integrals"]

POWERS = (0.0, 1.0, 2.0)
SMOOTHINGS = (0.01, 0.03, 0.1, 0.3)
POWER_E = np.repeat(np.arange(len(POWERS)), len(SMOOTHINGS))  # index of the power of each expert
_SMOOTHING_E = np.tile(np.array(SMOOTHINGS), len(POWERS))


def power_integrals(start_S: Array, end_S: Array) -> Array:
    """Return the integral of ``u^-p`` from ``start`` to ``end`` for ``p`` in 0, 1, 2.

    Args:
        start_S: ``tau + tau_c`` at the start, > 0 wherever ``end`` differs; any shape.
        end_S: the same at the end, >= ``start``; any shape that broadcasts with ``start``.

    Returns:
        Shape ``(3, *broadcast shape)``; 0 where the clock does not move.
    """
    step = end_S - start_S
    safe = np.where(start_S > 0.0, start_S, 1.0)
    share = step / safe
    integrals = np.empty((len(POWERS), *step.shape))
    integrals[0], integrals[1], integrals[2] = step, np.log1p(share), share / (safe + step)
    return integrals


class Experts:
    """Bias-corrected exponential moving averages, one for each expert and series; shapes ``(E, S)``.

    A measurement that spans ``n`` steps counts as ``n`` equal ones.
    """

    def __init__(self, series: int) -> None:
        self._mean_ES: Array = np.zeros((len(POWER_E), series))
        self._mass_ES: Array = np.zeros((len(POWER_E), series))

    def update(self, change_S: Array, start_S: Array, end_S: Array, steps_S: Array, valid_S: Mask) -> None:
        """Take in the changes of the log-norms over the last interval.

        Args:
            change_S: change without the weight decay's share, nats.
            start_S: ``tau + tau_c`` at the interval's start.
            end_S: ``tau + tau_c`` at its end.
            steps_S: number of steps in the interval.
            valid_S: which series to update; for these ``end > start > 0``.
        """
        integral_PS = np.where(valid_S, power_integrals(start_S, end_S), 1.0)
        value_PS = np.where(valid_S, change_S, 0.0) / integral_PS
        gain_ES = np.where(valid_S, 1.0 - (1.0 - _SMOOTHING_E[:, None]) ** steps_S, 0.0)
        self._mean_ES += gain_ES * (value_PS[POWER_E] - self._mean_ES)
        self._mass_ES += gain_ES * (1.0 - self._mass_ES)

    def rescale(self, factor_S: Array) -> None:
        """Account for a new ``tau_c``: multiply the averages by ``factor^p``."""
        factor_PS = np.stack([factor_S**power for power in POWERS])
        self._mean_ES *= factor_PS[POWER_E]

    def values_ES(self) -> Array:
        """Return the present averages, nats per ``tau^(1 - p)``; 0 before the first measurement."""
        return self._mean_ES / np.maximum(self._mass_ES, 1e-300)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages as arrays."""
        return {"mean_ES": self._mean_ES.copy(), "mass_ES": self._mass_ES.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._mean_ES = np.array(state["mean_ES"], dtype=np.float64)
        self._mass_ES = np.array(state["mass_ES"], dtype=np.float64)
