"""One horizon's memory: forecasts that wait for their outcome, experts' errors, the band's scale and quantile, scores.

A forecast is scored with the clock and the decay that really came, not with those that were planned: the drift is on
trial, not the guess of the schedule. Forecasts are made at most every ``horizon / 20`` steps: closer ones share their
future and would teach nothing more.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import ndtr

from lipadvisor.dynamics import squared_response_sums
from lipadvisor.forecast.experts import POWER_E, POWERS, SMOOTHINGS, power_integrals
from lipadvisor.forecast.result import Score
from lipadvisor.terms import Array

__all__ = ["HorizonTracker", "Made", "Present", "noise_growth", "raw_variance"]

_GAIN = 0.02  # forgetting of experts' errors and of the band's scale, per scored forecast ...
_EARLY = 10.0  # ... and sooner at first, by 10 / (n + 10): the way off the initial plateau says little of what follows
_PRIOR_SHARE, _PRIOR_SCORES = 0.1, 5.0  # the experts are equal but for the prior until about five are scored
_QUANTILE_GAIN = 0.02  # per step
_QUANTILE_RANGE = (1.2, 3.0)
_QUANTILE_FROM_STEP = 20
_MISS_RATE = 0.1
_PEAK_DECAY = 0.98  # per scored forecast, of the largest error that caps the band
_LOG_FLOOR = 0.01
_LOG_MEAN = -1.03  # E ln(z^2 + .01) of a standard normal
_TWICE_PEAK, _CRPS_OFFSET = 2.0 / math.sqrt(2.0 * math.pi), 1.0 / math.sqrt(math.pi)
_SCORED_AT_ONCE = 32
_TINY_VARIANCE = 1e-20  # nats^2, keeps a series that never moves from dividing by zero


@dataclass(frozen=True, slots=True)
class Present:
    """Where the ``S`` series stand."""

    step: int
    level_S: Array  # nats
    tau_S: Array  # clock
    decay_S: Array  # sum of ln(1 - lr wd) so far, nats
    squared_S: Array  # sum of lr^2 so far


@dataclass(frozen=True, slots=True)
class Made:
    """One forecast that waits. ``P`` powers, ``E`` experts, ``G`` smoothings of the slope."""

    step: int
    level_S: Array
    tau_S: Array
    offset_S: Array  # tau_c
    decay_S: Array
    squared_S: Array
    value_ES: Array  # experts' averages
    first_PS: Array  # weighted sum of the averages, by power
    second_PS: Array  # weighted sum of their squares
    noise_S: Array  # variance of one step's direction, nats^2 per tau^2
    scale_S: Array
    quantile_S: Array
    slope_GS: Array  # nats per step
    answer_S: Array  # what the surplus over the trend was expected to become, nats


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
    return np.asarray(np.maximum(squared * growth * noise + np.maximum(second - mean * mean, 0.0), _TINY_VARIANCE))


def noise_growth(optimizer: str, momentum: float, steps: Array) -> Array:
    """Return ``S_2(h) (1 + h/10)^(-1/2) / h`` for each horizon ``h`` of ``steps``."""
    return np.asarray(squared_response_sums(optimizer, momentum, steps) / (steps * np.sqrt(1.0 + steps / 10.0)))


@lru_cache(maxsize=256)
def _growth(optimizer: str, momentum: float, steps: float) -> float:
    return float(noise_growth(optimizer, momentum, np.asarray(steps)))


class HorizonTracker:
    """Learns, for one horizon and ``S`` series, which experts to trust and how wide the band must be."""

    def __init__(self, horizon: int, prior_E: Array, series: int, optimizer: str, momentum: float) -> None:
        self.horizon = horizon
        self.stride = max(1, horizon // 20)
        self._prior_ES = np.repeat(prior_E[:, None], series, axis=1)
        self._response = (optimizer, momentum)
        self._waiting: deque[Made] = deque()
        self._scored: list[tuple[Array, ...]] = []  # forecasts whose scores are still to be worked out
        self._last_made = -self.stride
        self._error_ES: Array = np.zeros((len(POWER_E), series))
        self._log_S: Array = np.zeros(series)  # of the squared standardised errors
        self.quantile_S: Array = np.full(series, 1.6448536269514722)
        self.dropped = 0  # forecasts whose outcome came too late to be scored
        self.peak_S: Array = np.zeros(series)  # largest absolute error of late, nats
        self.live_scale_S: Array = np.ones(series)  # the scale in use: see `settle`
        self.n_S: Array = np.zeros(series)
        # Sums of: absolute error, persistence's, CRPS, hits of the band; then the slopes'.
        self._sum_4S: Array = np.zeros((4, series))
        self._slope_sum_GS: Array = np.zeros((len(SMOOTHINGS), series))
        self.weight_ES: Array = self._weights()

    @property
    def scale_S(self) -> Array:
        """Factor on the raw standard deviation, from past standardised errors, shape ``(S,)``."""
        return np.asarray(np.exp(0.5 * self._log_S))

    def moments(self, value_ES: Array) -> tuple[Array, Array]:
        """Return the weighted sums, by power, of the experts' averages and of their squares, shapes ``(P, S)``."""
        shape = (len(POWERS), len(SMOOTHINGS), -1)
        weighted_ES = self.weight_ES * value_ES
        first_PS = np.add.reduce(weighted_ES.reshape(shape), axis=1)
        return first_PS, np.add.reduce((weighted_ES * value_ES).reshape(shape), axis=1)

    def rate(self, value_ES: Array, clock_S: Array) -> Array:
        """Return the growth that is expected next, nats per unit of ``tau``, at ``tau + tau_c``."""
        first_PS, _ = self.moments(value_ES)
        safe_S = np.where(clock_S > 0.0, clock_S, np.inf)
        return np.asarray(first_PS[0] + (first_PS[1] + first_PS[2] / safe_S) / safe_S)

    def raw_std(self, integral_PS: Array, squared_S: Array, first_PS: Array, second_PS: Array, noise_S: Array) -> Array:
        """Return the uncalibrated standard deviation at this horizon, nats.

        Args:
            integral_PS: of each power over the steps to come.
            squared_S: sum of ``lr^2`` over them.
            first_PS: see :meth:`moments`.
            second_PS: see :meth:`moments`.
            noise_S: variance of one step's direction, nats^2 per tau^2.
        """
        mean_S = np.add.reduce(first_PS * integral_PS)
        second_S = np.add.reduce(second_PS * integral_PS * integral_PS)
        growth = _growth(*self._response, float(self.horizon))
        return np.asarray(np.sqrt(raw_variance(squared_S, noise_S, growth, mean_S, second_S)))

    def settle(self, raw_S: Array, nearest: HorizonTracker | None) -> None:
        """Set the scale in use: this horizon's own, or that of the nearest one which has been scored.

        The standard deviation is kept below the largest error of late, in proportion to the horizon if it is another's:
        scales learned while nothing moved would otherwise be far too large once something does.

        Args:
            raw_S: raw standard deviation under the knobs in force, nats.
            nearest: the horizon to learn from; ``None`` where there is none yet.
        """
        if nearest is None:
            self.live_scale_S = np.ones_like(raw_S)
            return
        cap_S = nearest.peak_S * max(1.0, self.horizon / nearest.horizon) / raw_S
        self.live_scale_S = np.where(nearest.peak_S > 0.0, np.minimum(nearest.scale_S, cap_S), nearest.scale_S)

    def due(self, step: int) -> bool:
        """Whether a forecast is to be made after ``step`` steps."""
        return step - self._last_made >= self.stride

    def make(self, made: Made) -> None:
        """Queue a forecast."""
        self._waiting.append(made)
        self._last_made = made.step

    def score(self, now: Present) -> bool:
        """Score every forecast whose time has come; return whether there was one."""
        scored = False
        while self._waiting and now.step - self._waiting[0].step >= self.horizon:
            made = self._waiting.popleft()
            if 2 * (now.step - made.step) > 3 * self.horizon:  # measured too sparingly for this horizon
                self.dropped += 1
            else:
                self._score(made, now)
                scored = True
        if scored:
            self.weight_ES = self._weights()
        return scored

    def result(self, series: int) -> Score:
        """Return the scores of one series."""
        self._settle_scores()
        n = float(self.n_S[series])
        mae, persistence, crps, hits = self._sum_4S[:, series] / n if n else np.full(4, np.nan)
        slope_G = self._slope_sum_GS[:, series] / n if n else np.full(len(SMOOTHINGS), np.nan)
        plain = float(slope_G[SMOOTHINGS.index(0.1)])
        return Score(
            self.horizon, int(n), float(mae), float(persistence), plain, float(slope_G.min()), float(crps), float(hits)
        )

    def shift(self, log_factor_S: Array) -> None:
        """Move what waits along with weights that were rescaled from outside."""
        for made in self._waiting:
            made.level_S[:] += log_factor_S

    def forget_waiting(self) -> None:
        """Drop what waits: its future will not come."""
        self._waiting.clear()
        self._last_made = -self.stride

    def state_dict(self) -> dict[str, Any]:
        """Return everything learned and waiting, as numbers and arrays."""
        self._settle_scores()
        state: dict[str, Any] = {name: getattr(self, name) for name in ("horizon", "dropped", "_last_made")}
        state |= {name: getattr(self, name).copy() for name in self._array_names()}
        state["waiting"] = {
            field.name: np.array([getattr(made, field.name) for made in self._waiting]) for field in fields(Made)
        }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            ValueError: it belongs to another horizon or another number of series.
        """
        if state["horizon"] != self.horizon or np.shape(state["n_S"]) != self.n_S.shape:
            found = (state["horizon"], np.shape(state["n_S"])[0])
            raise ValueError(f"state must be of horizon {self.horizon} and {len(self.n_S)} series, got {found}.")
        self.dropped, self._last_made = int(state["dropped"]), int(state["_last_made"])
        self._scored.clear()
        for name in self._array_names():
            setattr(self, name, np.array(state[name], dtype=np.float64))
        columns = state["waiting"]
        self._waiting = deque(
            Made(int(step), *(np.array(columns[field.name][i], dtype=np.float64) for field in fields(Made)[1:]))
            for i, step in enumerate(columns["step"])
        )

    @staticmethod
    def _array_names() -> tuple[str, ...]:
        learned = ("_error_ES", "_log_S", "quantile_S", "weight_ES", "peak_S", "live_scale_S")
        return (*learned, "n_S", "_sum_4S", "_slope_sum_GS")

    def _weights(self) -> Array:
        """Return the experts' weights: past error to the power -8, times the prior; columns sum to 1."""
        share_S = np.maximum(_PRIOR_SHARE, _PRIOR_SCORES / np.maximum(self.n_S, 1.0)) / len(POWER_E)
        error_ES = self._error_ES + share_S * np.add.reduce(self._error_ES)
        error_ES += 1e-300  # an expert without error is the best, not a division by zero
        ratio_ES = np.minimum.reduce(error_ES) / error_ES
        ratio_ES *= ratio_ES  # three squares: the power 8, many times cheaper than pow
        ratio_ES *= ratio_ES
        ratio_ES *= ratio_ES
        ratio_ES *= self._prior_ES
        return np.asarray(ratio_ES / np.add.reduce(ratio_ES))

    def _score(self, made: Made, now: Present) -> None:
        steps = float(now.step - made.step)
        integral_PS = power_integrals(made.tau_S + made.offset_S, now.tau_S + made.offset_S)
        moved_S = now.level_S - made.level_S
        free_S = moved_S - (now.decay_S - made.decay_S) - made.answer_S
        mean_S = np.add.reduce(made.first_PS * integral_PS)
        second_S = np.add.reduce(made.second_PS * integral_PS * integral_PS)
        squared_S = now.squared_S - made.squared_S
        growth = _growth(*self._response, steps)
        raw_S = np.sqrt(raw_variance(squared_S, made.noise_S, growth, mean_S, second_S))
        error_S = free_S - mean_S
        # Where the clock stood still there was nothing to foresee, and nothing to learn.
        good_S = np.isfinite(error_S) & np.isfinite(raw_S) & (squared_S > 0.0)
        if not good_S.all():
            error_S = np.where(good_S, error_S, 0.0)
            free_S, moved_S = np.where(good_S, free_S, 0.0), np.where(good_S, moved_S, 0.0)
            raw_S = np.where(good_S, raw_S, 1.0)
        self._learn(made, now.step, error_S, free_S, raw_S, integral_PS, good_S)
        self.n_S += good_S
        self._keep_score(made, steps, error_S, moved_S, raw_S, good_S)

    def _learn(
        self, made: Made, step: int, error_S: Array, free_S: Array, raw_S: Array, integral_PS: Array, good_S: Array
    ) -> None:
        gain_S = np.maximum(_GAIN, _EARLY / (self.n_S + _EARLY)) * good_S
        error_ES = np.abs(free_S - made.value_ES * np.repeat(integral_PS, len(SMOOTHINGS), axis=0))
        self._error_ES += gain_S * (np.where(good_S, error_ES, 0.0) - self._error_ES)
        absolute_S = np.abs(error_S)
        # The mean of the logarithm: while a run leaves its initial plateau errors are a hundred times what the band
        # says, and a mean of squares would keep it open for the rest of the run.
        log_S = np.log((absolute_S / raw_S) ** 2 + _LOG_FLOOR) - _LOG_MEAN
        self._log_S += gain_S * (log_S - self._log_S)
        self.peak_S = np.where(good_S, np.maximum(absolute_S, _PEAK_DECAY * self.peak_S), self.peak_S)
        if step >= _QUANTILE_FROM_STEP:
            miss_S = absolute_S > made.quantile_S * made.scale_S * raw_S
            move_S = _QUANTILE_GAIN * self.stride * (miss_S - _MISS_RATE) * good_S
            low, high = _QUANTILE_RANGE
            self.quantile_S = np.minimum(np.maximum(self.quantile_S + move_S, low), high)

    def _keep_score(
        self, made: Made, steps: float, error_S: Array, moved_S: Array, raw_S: Array, good_S: Array
    ) -> None:
        """Note what the scores are made of: nothing waits for them, so many are worked out at once."""
        std_S = made.scale_S * raw_S
        self._scored.append((good_S, error_S, moved_S, std_S, made.quantile_S, moved_S - made.slope_GS * steps))
        if len(self._scored) >= _SCORED_AT_ONCE:
            self._settle_scores()

    def _settle_scores(self) -> None:
        if not self._scored:
            return
        columns = [np.stack(column) for column in zip(*self._scored, strict=True)]
        self._scored.clear()
        good_NS, error_NS, moved_NS, std_NS, quantile_NS, slope_NGS = columns
        z_NS = error_NS / std_NS
        # CRPS of a Gaussian: Gneiting and Raftery (2007), eq. 21 and below.
        crps_NS = std_NS * (z_NS * (2.0 * ndtr(z_NS) - 1.0) + _TWICE_PEAK * np.exp(-0.5 * z_NS * z_NS) - _CRPS_OFFSET)
        hit_NS = np.abs(z_NS) <= quantile_NS
        for row, values_NS in enumerate((np.abs(error_NS), np.abs(moved_NS), crps_NS, hit_NS)):
            self._sum_4S[row] += (values_NS * good_NS).sum(axis=0)
        self._slope_sum_GS += (np.abs(slope_NGS) * good_NS[:, None]).sum(axis=0)
