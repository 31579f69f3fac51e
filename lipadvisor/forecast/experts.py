"""Twelve guesses of the drift: moving averages of ``x (tau + tau_c)^p``; beside them, slopes and noise.

The drift per unit of ``tau`` decays like ``tau^-p``: after the first rise ``p`` is near 1, later above it, while the
loss runs out. Each expert has one ``p`` and one smoothing; it carries its average on along the planned ``tau``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from lipadvisor.forecast.motion import Interval, Mask
from lipadvisor.terms import Array

__all__ = ["AVERAGES", "POWERS", "POWER_E", "SMOOTHINGS", "Averages", "advance_integrals", "power_integrals"]

POWERS = (0.0, 1.0, 2.0)
SMOOTHINGS = (0.01, 0.03, 0.1, 0.3)
POWER_E = np.repeat(np.arange(len(POWERS)), len(SMOOTHINGS))  # index of the power of each expert
_KINDS = len(POWERS) + 2  # what is averaged: x (tau + tau_c)^p for each p, the slope per step, the noise
_SLOPE, _NOISE = len(POWERS), len(POWERS) + 1
AVERAGES = _KINDS * len(SMOOTHINGS)  # rows; the noise has one smoothing, and its row four times
_NOISE_GAIN = 0.03  # per measurement: one batch's estimate is off by half near the end


def power_integrals(start_S: Array, end_S: Array) -> Array:
    """Return the integral of ``u^-p`` from ``start`` to ``end`` for ``p`` in 0, 1, 2.

    Args:
        start_S: ``tau + tau_c`` at the start, > 0 wherever ``end`` differs; any shape.
        end_S: the same at the end, >= ``start``; any shape that broadcasts with ``start``.

    Returns:
        Shape ``(3, *broadcast shape)``; 0 where the clock does not move.
    """
    # Only zeros take the place of a start at zero: there is no clock yet.
    return advance_integrals(start_S + (start_S == 0.0), end_S - start_S)


def advance_integrals(start_S: Array, advance_S: Array, out_PS: Array | None = None) -> Array:
    """Return :func:`power_integrals` from ``start`` to ``start + advance``.

    Args:
        start_S: ``tau + tau_c`` at the start, > 0; broadcasts to the shape of ``advance_S``.
        advance_S: of the clock, >= 0; any shape.
        out_PS: where to write them; a new array if ``None``.
    """
    out_PS = np.empty((len(POWERS), *advance_S.shape)) if out_PS is None else out_PS
    out_PS[0] = advance_S
    share_S = np.divide(advance_S, start_S, out=out_PS[2])
    np.log1p(share_S, out=out_PS[1])
    share_S /= start_S + advance_S
    return out_PS


@lru_cache(maxsize=64)
def _gains(steps: float) -> Array:
    """Return what a measurement over ``steps`` steps counts in each average, ``(kinds, smoothings, 1)``."""
    gain_KG1 = np.repeat(1.0 - (1.0 - np.array([SMOOTHINGS])) ** steps, _KINDS, axis=0)[:, :, None]
    gain_KG1[_NOISE] = _NOISE_GAIN
    gain_KG1.flags.writeable = False
    return gain_KG1


class Averages:
    """Bias-corrected exponential moving averages of each series: experts ``(E, S)``, slopes ``(G, S)``, noise ``(S,)``.

    A measurement that spans ``n`` steps counts as ``n`` equal ones; for the noise, as one.
    """

    def __init__(self, series: int) -> None:
        self._mean_KGS: Array = np.zeros((_KINDS, len(SMOOTHINGS), series))
        # Of one width as long as every series has been seen each time.
        self._mass_KGS: Array = np.zeros((_KINDS, len(SMOOTHINGS), 1))
        self._zeros: Array = np.zeros(_KINDS * series)
        self._all_seen = False  # no mass is zero

    def update(self, interval: Interval, noise_S: Array) -> None:
        """Take in what happened over the last interval.

        Args:
            interval: experts learn where the clock moved, slopes wherever there was a change.
            noise_S: variance of one step's direction, nats^2 per tau^2; left out where it is not finite.
        """
        value_KS = np.empty((_KINDS, len(noise_S)))
        integral_PS, start_S = value_KS[: len(POWERS)], interval.start_S
        advance_integrals(start_S if interval.whole else start_S + (start_S == 0.0), interval.advance_S, integral_PS)
        value_KS[_NOISE] = noise_S
        if interval.whole:
            np.divide(interval.free_S, integral_PS, out=integral_PS)
            np.multiply(interval.change_S, 1.0 / interval.steps, out=value_KS[_SLOPE])
            gain_KGS = _gains(interval.steps)
        else:
            np.divide(
                np.where(interval.moving_S, interval.free_S, 0.0),
                np.where(interval.moving_S, integral_PS, 1.0),
                out=integral_PS,
            )
            np.divide(interval.change_S, np.maximum(interval.steps_S, 1.0), out=value_KS[_SLOPE])
            gain_KGS = 1.0 - (1.0 - np.array(SMOOTHINGS)[:, None]) ** interval.steps_S * np.ones((_KINDS, 1, 1))
            gain_KGS[_NOISE] = _NOISE_GAIN
            gain_KGS[: len(POWERS)] *= interval.moving_S
            gain_KGS[_SLOPE] *= interval.valid_S
            gain_KGS[_NOISE] *= interval.moving_S
        # A product with zeros is zero where all are finite, and not a number elsewhere.
        if value_KS.ravel().dot(self._zeros) != 0.0:
            good_KS = np.isfinite(value_KS)
            value_KS[~good_KS] = 0.0
            gain_KGS = gain_KGS * good_KS[:, None]
            whole = False
        else:
            whole = interval.whole
        move_KGS = value_KS[:, None] - self._mean_KGS
        move_KGS *= gain_KGS
        self._mean_KGS += move_KGS
        self._mass_KGS = self._mass_KGS + gain_KGS * (1.0 - self._mass_KGS)
        self._all_seen = self._all_seen or whole

    def rescale(self, factor_S: Array) -> None:
        """Account for a new ``tau_c``: multiply the experts' averages by ``factor^p``."""
        factor_P1S = np.stack([factor_S**power for power in POWERS])[:, None]
        self._mean_KGS[: len(POWERS)] *= factor_P1S

    def values(self, out_AS: Array | None = None) -> Array:
        """Return the present averages, ``(AVERAGES, S)``; 0 before the first measurement.

        Rows: the experts (nats per ``tau^(1 - p)``), the slopes (nats per step), the noise (nats^2 per tau^2).

        Args:
            out_AS: where to write them; a new array if ``None``.
        """
        out_AS = np.empty((AVERAGES, self._mean_KGS.shape[-1])) if out_AS is None else out_AS
        mass_KGS = self._mass_KGS if self._all_seen else np.maximum(self._mass_KGS, 1e-300)
        np.divide(self._mean_KGS, mass_KGS, out=out_AS.reshape(self._mean_KGS.shape))
        return out_AS

    @property
    def noisy_S(self) -> Mask:
        """Whose noise has been measured."""
        return np.broadcast_to(self._mass_KGS[_NOISE, 0] > 0.0, self._mean_KGS.shape[-1:])

    @property
    def noisy(self) -> bool:
        """Whether everyone's has."""
        return self._all_seen or bool(self.noisy_S.all())

    def state_dict(self) -> dict[str, Any]:
        """Return the averages as arrays."""
        return {"mean_KGS": self._mean_KGS.copy(), "mass_KGS": self._mass_KGS.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._mean_KGS = np.array(state["mean_KGS"], dtype=np.float64)
        self._mass_KGS = np.array(state["mass_KGS"], dtype=np.float64)
        self._all_seen = bool((self._mass_KGS > 0.0).all())
