"""Twelve guesses of the drift: moving averages of ``x (tau + tau_c)^p``; beside them, slopes and noise.

The drift per unit of ``tau`` decays like ``tau^-p``: after the first rise ``p`` is near 1, later above it, while the
loss runs out. Each expert has one ``p`` and one smoothing; it carries its average on along the planned ``tau``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from lipadvisor.forecast.motion import Interval, Mask
from lipadvisor.terms import Array

__all__ = ["AVERAGES", "POWERS", "POWER_E", "SMOOTHINGS", "Averages", "advance_integrals", "power_integrals"]

POWERS = (0.0, 1.0, 2.0)
SMOOTHINGS = (0.01, 0.03, 0.1, 0.3)
POWER_E = np.repeat(np.arange(len(POWERS)), len(SMOOTHINGS))  # index of the power of each expert
_KINDS = len(POWERS) + 2  # what is averaged: x (tau + tau_c)^p for each p, the slope per step, the noise
_SLOPE, _NOISE = len(POWERS), len(POWERS) + 1
AVERAGES = _KINDS * len(SMOOTHINGS)  # rows; the noise has one smoothing, and its row four times
_ONE = np.array(1.0)  # numpy takes an array of no dimension in half the time of a number
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
    """Return what a measurement over ``steps`` steps counts in each average, ``(AVERAGES, 1)``."""
    gain_KG = np.repeat(1.0 - (1.0 - np.array([SMOOTHINGS])) ** steps, _KINDS, axis=0)
    gain_KG[_NOISE] = _NOISE_GAIN
    gain_A1 = gain_KG.reshape(AVERAGES, 1)
    gain_A1.flags.writeable = False
    return gain_A1


class Averages:
    """Bias-corrected exponential moving averages of each series: experts ``(E, S)``, slopes ``(G, S)``, noise ``(S,)``.

    A measurement that spans ``n`` steps counts as ``n`` equal ones; for the noise, as one.
    """

    def __init__(self, series: int) -> None:
        # The averages, and below them what was measured last, one row for each kind: one matrix product mixes both.
        self._rows_BS: Array = np.zeros((AVERAGES + _KINDS, series))
        self._next_BS: Array = np.zeros((AVERAGES + _KINDS, series))
        self._mix_AB: Array = np.zeros((AVERAGES, AVERAGES + _KINDS))
        self._keep_A: Array = self._mix_AB.ravel()[:: AVERAGES + _KINDS + 1]  # its diagonal ...
        strides = tuple(8 * n for n in (len(SMOOTHINGS) * (AVERAGES + _KINDS) + 1, AVERAGES + _KINDS))
        shape = (_KINDS, len(SMOOTHINGS))  # ... and the shares of what was measured
        self._share_KG: Array = as_strided(self._mix_AB[:, AVERAGES:], shape, strides)
        # Of one width as long as every series has been seen each time.
        self._mass_AS: Array = np.zeros((AVERAGES, 1))
        self._all_seen = False  # no mass is zero

    def update(self, interval: Interval, noise_S: Array) -> None:
        """Take in what happened over the last interval.

        Args:
            interval: experts learn where the clock moved, slopes wherever there was a change.
            noise_S: variance of one step's direction, nats^2 per tau^2; left out where it is not finite.
        """
        value_KS = self._rows_BS[AVERAGES:]
        integral_PS, start_S = value_KS[: len(POWERS)], interval.start_S
        advance_integrals(start_S if interval.whole else start_S + (start_S == 0.0), interval.advance_S, integral_PS)
        value_KS[_NOISE] = noise_S
        if interval.whole:
            for row_S in integral_PS:
                np.divide(interval.free_S, row_S, row_S)
            np.divide(interval.change_S, interval.steps_S, value_KS[_SLOPE])
            gain_AS = _gains(interval.steps)
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
            gain_AS = gain_KGS.reshape(AVERAGES, -1)
        flat = value_KS.ravel()
        if not math.isfinite(flat.dot(flat)):
            good_KS = np.isfinite(value_KS)
            value_KS[~good_KS] = 0.0
            gain_AS = gain_AS * np.repeat(good_KS, len(SMOOTHINGS), axis=0)
        self._mix(gain_AS)
        if not self._all_seen:
            self._all_seen = bool((self._mass_AS > 0.0).all())

    def _mix(self, gain_AS: Array) -> None:
        """Move the averages towards what was measured: by ``gain / mass``, as they are bias-corrected."""
        move_AS = (_ONE - self._mass_AS) * gain_AS
        self._mass_AS = self._mass_AS + move_AS
        share_AS = gain_AS / (self._mass_AS if self._all_seen else np.maximum(self._mass_AS, 1e-300))
        averages_AS = self._rows_BS[:AVERAGES]
        if share_AS.shape[1] == 1 < averages_AS.shape[1]:
            share_A = share_AS[:, 0]
            np.subtract(_ONE, share_A, self._keep_A)
            self._share_KG[:] = share_A.reshape(self._share_KG.shape)
            np.dot(self._mix_AB, self._rows_BS, self._next_BS[:AVERAGES])
            self._rows_BS, self._next_BS = self._next_BS, self._rows_BS
            return
        move_AS = np.repeat(self._rows_BS[AVERAGES:], len(SMOOTHINGS), axis=0)
        move_AS -= averages_AS
        move_AS *= share_AS
        averages_AS += move_AS

    def rescale(self, factor_S: Array) -> None:
        """Account for a new ``tau_c``: multiply the experts' averages by ``factor^p``."""
        factor_PS = np.stack([factor_S**power for power in POWERS])
        self._rows_BS[: len(POWER_E)] *= factor_PS[POWER_E]

    def values(self, out_AS: Array | None = None) -> Array:
        """Return the present averages, ``(AVERAGES, S)``; 0 before the first measurement.

        Rows: the experts (nats per ``tau^(1 - p)``), the slopes (nats per step), the noise (nats^2 per tau^2).

        Args:
            out_AS: where to write them; a new array if ``None``.
        """
        if out_AS is None:
            return self._rows_BS[:AVERAGES].copy()
        out_AS[:] = self._rows_BS[:AVERAGES]
        return out_AS

    @property
    def noisy_S(self) -> Mask:
        """Whose noise has been measured."""
        return np.broadcast_to(self._mass_AS[-1] > 0.0, self._rows_BS.shape[1:])

    @property
    def noisy(self) -> bool:
        """Whether everyone's has."""
        return self._all_seen or bool(self.noisy_S.all())

    def state_dict(self) -> dict[str, Any]:
        """Return the averages as arrays."""
        return {"value_AS": self._rows_BS[:AVERAGES].copy(), "mass_AS": self._mass_AS.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._rows_BS[:AVERAGES] = state["value_AS"]
        self._mass_AS = np.array(state["mass_AS"], dtype=np.float64)
        self._all_seen = bool((self._mass_AS > 0.0).all())
