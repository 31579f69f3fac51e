"""What forecasts were worth: each compared with what came, by the clock and the decay that really came."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr

from lipadvisor.dynamics import squared_response_sums
from lipadvisor.forecast.experts import AVERAGES, POWER_E, POWERS, SMOOTHINGS, advance_integrals
from lipadvisor.terms import Array

__all__ = ["DECAY", "LEVEL", "NOISE", "QUANTILE", "SCALE", "SLOPES", "SQUARED", "START", "TAU", "VALUES"]
__all__ += ["Learned", "Matured", "Outcomes", "Present", "Room", "compared", "noise_growth", "raw_variance"]

# Rows of a record, each for the S series.
LEVEL, TAU, DECAY, SQUARED, START = range(5)  # the first four as in `Motion.state_4S`
_FIRST = 5
VALUES = slice(_FIRST, _FIRST + len(POWER_E))
SLOPES = slice(VALUES.stop, VALUES.stop + len(SMOOTHINGS))
NOISE = SLOPES.stop
_KEPT = NOISE + 1
SCALE, QUANTILE = len(POWER_E), len(POWER_E) + 1

_TWICE_PEAK, _CRPS_OFFSET = 2.0 / math.sqrt(2.0 * math.pi), 1.0 / math.sqrt(math.pi)
_TINY_VARIANCE = 1e-20  # nats^2, keeps a series that never moves from dividing by zero


class Present(NamedTuple):
    """Where the ``S`` series stand after a measurement, and what is known of their drift.

    Rows of the record: ``LEVEL`` (nats), ``TAU`` (clock), ``DECAY`` (sum of ``ln(1 - lr wd)`` so far, nats),
    ``SQUARED`` (sum of ``lr^2`` so far), ``START`` (``tau + tau_c``), ``VALUES`` (experts' averages), ``SLOPES`` (nats
    per step), ``NOISE`` (variance of one step's direction, nats^2 per tau^2).
    """

    step: int
    record_RS: Array

    @classmethod
    def empty(cls, step: int, series: int) -> tuple[Present, Array]:
        """Return one whose record is still to be written, and where the averages go in it, ``(AVERAGES, S)``."""
        rows_RS = np.empty((_FIRST + AVERAGES, series))
        return cls(step, rows_RS[:_KEPT]), rows_RS[_FIRST:]

    @classmethod
    def standing(cls, step: int, state_4S: Array) -> Present:
        """Return one to compare forecasts with, of whose drift nothing is said."""
        record_RS = np.zeros((_KEPT, state_4S.shape[1]))
        record_RS[:START] = state_4S
        return cls(step, record_RS)


class Learned(NamedTuple):
    """What the forecasts of each of ``H`` horizons are made with.

    Rows: weights of the experts (sums over them are 1), ``SCALE`` (factor on the raw standard deviation), ``QUANTILE``
    (of the standardised error, that the 90 % band reaches to).
    """

    rows_HRS: Array

    @classmethod
    def empty(cls, horizons: int, series: int) -> Learned:
        """Return one that is still to be written."""
        return cls(np.empty((horizons, QUANTILE + 1, series)))

    @property
    def weight_HES(self) -> Array:
        """Weights of the experts."""
        return self.rows_HRS[:, :SCALE]

    @property
    def scale_HS(self) -> Array:
        """Factors on the raw standard deviation."""
        return self.rows_HRS[:, SCALE]

    @property
    def quantile_HS(self) -> Array:
        """Of the standardised error, that the 90 % band reaches to."""
        return self.rows_HRS[:, QUANTILE]


class Matured(NamedTuple):
    """A forecast whose outcome is there."""

    place: int  # of its horizon
    made: Present
    learned: Learned
    answer_S: Array  # what the surplus over the trend was expected to become, nats
    now: Present


class Outcomes(NamedTuple):
    """What ``N`` forecasts were worth; where ``good_NS`` is False, values stand that do no harm."""

    good_NS: np.ndarray[Any, np.dtype[np.bool_]]
    whole: bool  # all are good
    error_ENS: Array  # of the experts, absolute, nats
    raw_NS: Array  # uncalibrated standard deviation
    score_CNS: Array  # absolute error, persistence's, CRPS, hits of the band; then the slopes' absolute errors


def raw_variance(squared: Array, noise: Array, growth: Array | float, mean: Array, second: Array) -> Array:
    """Return the uncalibrated variance of the change of a log-norm, nats^2.

    The SDE's, with the optimizer's memory and the contraction of stiff directions that was measured by branching runs,
    plus the spread of the experts::

        mean(lr^2) S_2(h) C (1 + h/10)^(-1/2) + sum_e w_e f_e^2 - f^2

    Args:
        squared: sum of ``lr^2`` over the ``h`` steps.
        noise: ``C``, nats^2 per tau^2.
        growth: ``S_2(h) (1 + h/10)^(-1/2) / h``, see :func:`noise_growth`.
        mean: the combined forecast ``f`` of the change, nats.
        second: weighted mean of the experts' squared forecasts, nats^2.
    """
    variance = squared * noise
    variance *= growth
    spread = mean * mean
    np.subtract(second, spread, out=spread)
    np.maximum(spread, 0.0, out=spread)
    variance += spread
    return np.maximum(variance, _TINY_VARIANCE, out=variance)


def noise_growth(optimizer: str, momentum: float, steps: Array) -> Array:
    """Return ``S_2(h) (1 + h/10)^(-1/2) / h`` for each horizon ``h`` of ``steps``."""
    return np.asarray(squared_response_sums(optimizer, momentum, steps) / (steps * np.sqrt(1.0 + steps / 10.0)))


class Room:
    """Memory that is used again and again: large arrays, asked for anew each time, cost more than what is done in them.

    What was taken last holds until the next time.
    """

    def __init__(self) -> None:
        self._flat: Array = np.empty(0)

    def take(self, columns: int, *rows: int) -> Iterator[Array]:
        """Give uninitialised arrays of ``columns`` columns, with so many rows each."""
        size = columns * sum(rows)
        if len(self._flat) < size:
            self._flat = np.empty(size + size // 4)
        start = 0
        for count in rows:
            yield self._flat[start : start + count * columns].reshape(count, columns)
            start += count * columns


def compared(matured: Sequence[Matured], growth_N: Sequence[float], room: Room) -> Outcomes:
    """Compare forecasts with what came.

    Args:
        matured: at least one.
        growth_N: :func:`noise_growth` over the steps of each.
        room: where the outcomes are kept, until it is used again.
    """
    count, series = len(matured), matured[0].now.record_RS.shape[1]
    made_RM, now_RM, learned_RM, integral_PM, score_CM = room.take(
        count * series, _KEPT, START, QUANTILE + 1, len(POWERS), 4 + len(SMOOTHINGS)
    )
    np.concatenate([one.made.record_RS for one in matured], axis=1, out=made_RM)
    np.concatenate([one.now.record_RS[:START] for one in matured], axis=1, out=now_RM)
    np.concatenate([one.learned.rows_HRS[one.place] for one in matured], axis=1, out=learned_RM)
    weight_EM, std_M, quantile_M = learned_RM[:SCALE], learned_RM[SCALE], learned_RM[QUANTILE]
    growth_N1 = np.array(growth_N)[:, None]
    steps_N1 = np.array([float(one.now.step - one.made.step) for one in matured])[:, None]

    now_RM -= made_RM[:START]
    moved_M, squared_M = now_RM[LEVEL], now_RM[SQUARED]
    free_M = moved_M - now_RM[DECAY]
    free_M -= np.concatenate([one.answer_S for one in matured])
    start_M = made_RM[START]
    start_M += start_M == 0.0  # there is no clock yet, and nothing to foresee
    advance_integrals(start_M, now_RM[TAU], integral_PM)
    forecast_EM = made_RM[VALUES]
    forecast_PGM = forecast_EM.reshape(len(POWERS), len(SMOOTHINGS), -1)
    forecast_PGM *= integral_PM[:, None]
    weight_EM *= forecast_EM
    mean_M = np.add.reduce(weight_EM)
    weight_EM *= forecast_EM
    shape = (count, series)
    noise_M = made_RM[NOISE]
    noise_NS = noise_M.reshape(shape)
    noise_NS *= growth_N1
    raw_M = raw_variance(squared_M, noise_M, 1.0, mean_M, np.add.reduce(weight_EM))
    np.sqrt(raw_M, out=raw_M)
    std_M *= raw_M
    forecast_EM -= free_M
    error_M, slope_GM = np.subtract(free_M, mean_M, out=score_CM[0]), score_CM[4:]
    score_CM[1] = moved_M
    np.multiply(made_RM[SLOPES].reshape(-1, *shape), steps_N1, out=slope_GM.reshape(-1, *shape))
    slope_GM -= moved_M
    # Where the clock stood still there was nothing to foresee, and nothing to learn.
    good_M = squared_M > 0.0
    good_M &= np.isfinite(error_M)
    good_M &= np.isfinite(raw_M)
    whole = np.count_nonzero(good_M) == len(good_M)
    if not whole:
        bad_M = ~good_M
        raw_M[bad_M] = std_M[bad_M] = 1.0
        score_CM[:, bad_M] = forecast_EM[:, bad_M] = 0.0
    np.abs(forecast_EM, out=forecast_EM)
    np.abs(score_CM, out=score_CM)
    z_M = error_M / std_M
    np.less_equal(z_M, quantile_M, out=score_CM[3])
    # CRPS of a Gaussian: Gneiting and Raftery (2007), eq. 21 and below; even in the error.
    crps_M = ndtr(z_M, out=score_CM[2])
    crps_M *= 2.0
    crps_M -= 1.0
    crps_M *= z_M
    z_M *= z_M
    z_M *= -0.5
    np.exp(z_M, out=z_M)
    z_M *= _TWICE_PEAK
    crps_M += z_M
    crps_M -= _CRPS_OFFSET
    crps_M *= std_M
    if not whole:
        score_CM *= good_M
    return Outcomes(
        good_NS=good_M.reshape(shape),
        whole=whole,
        error_ENS=forecast_EM.reshape(-1, *shape),
        raw_NS=raw_M.reshape(shape),
        score_CNS=score_CM.reshape(-1, *shape),
    )
