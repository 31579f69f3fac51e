"""Where a log-norm stands beside its own trend, and how much of that surplus it gives back.

A batch's noise moves the weights along stiff directions too, and the gradient brings them back within some ten steps:
what a log-norm gained beyond its trend of late it loses again. An optimizer with memory first goes on: its buffer
still holds the last direction. Both look alike in all networks that were tried (``docs/science.md``, section 6)::

    answer = trust (-A n / (n + n_0) (d + e) + b n / (1 + q + q^2 / 5) d)        q = (1 - b) n

``e`` is the surplus of the steps before the last one, forgotten by ``exp(-1 / 8)`` a step, ``d`` that of the last one,
``b`` the momentum, ``n`` the steps to come in units of the learning rate in force: ``n = sum_j lr_j / lr``. What the
buffer holds goes on by ``b n`` at first, fades as the buffer forgets, and is taken back in the end: the gradient turns.
Before its noise settles a log-norm runs ahead of its trend instead of going back to it: ``trust`` is what regression
on the outcomes of late says, of all series together, since one's own outcomes are few and noisy. What it shrinks
towards is 0 at first, and the rule as it stands once some sixty answers were judged and speak for half of it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from lipadvisor.forecast.motion import Interval, Motion
from lipadvisor.terms import Array

__all__ = ["Displacement"]

_KEEP = math.exp(-1.0 / 8.0)  # of the surplus, per step
_KEEP_0 = np.array(_KEEP)  # numpy takes an array of no dimension in half the time of a number
_RETURNED, _HALF_WAY = 2.2, 12.0  # A: above 1, as part of the surplus has gone into the trend; n_0, steps
_TAKEN_BACK = 0.2
_AHEAD, _STRIDE = 10, 5  # steps after which an answer is judged; steps between those that are
_GAIN, _EARLY = 0.03, 5.0  # of what is learned, per judged answer: 5 / (n + 5) at first
_SPREAD = 1.5  # standard deviation over the exponential of the mean logarithm: of a normal, 1.9
_LARGEST = 3.0  # standard deviations: what is beyond counts as that
_PRIOR, _SETTLED = 0.3, 60.0  # of the answers' mean square, in those units; judged answers until the rule is the prior
_MOST_TRUST = 1.3


class Displacement:
    """Surplus over the trend of ``S`` series, nats: of the last step, and of those before it.

    Args:
        series: number of series.
        momentum: coefficient of the first moment, in [0, 1).
    """

    def __init__(self, series: int, momentum: float) -> None:
        self._momentum = momentum
        self._returned, self._carried = self.factors(float(_AHEAD))
        self._last_S: Array = np.zeros(series)
        self._before_S: Array = np.zeros(series)
        self._waiting: deque[Array] = deque()  # rows: step, free level, tau, rate, answer
        self._log_S: Array = np.zeros(series)  # mean of ln |error|
        self._moments_2S: Array = np.zeros((2, series))  # mean of answer times error, of answer squared
        self._judged = 0
        self.trust = 0.0

    def update(self, interval: Interval, rate_S: Array) -> None:
        """Take in what happened since the last measurement; a series that was not seen keeps what it has.

        Args:
            interval: with the change over the measured step itself apart.
            rate_S: growth that was expected, nats per unit of ``tau``, without decay.
        """
        expected_S = rate_S * interval.advance_S
        if interval.whole and interval.steps == interval.own_steps == 1.0:  # nothing unseen
            self._before_S *= _KEEP_0
            self._before_S += self._last_S
            self._last_S = np.subtract(interval.own_S, expected_S, expected_S)
            return
        last_S = interval.own_S - expected_S * (interval.own_steps / np.maximum(interval.steps_S, 1.0))
        unseen_S = np.maximum(interval.steps_S - interval.own_steps, 0.0)
        # The surplus of an unseen stretch is spread evenly over its steps.
        keep_S = _KEEP**unseen_S
        spread_S = (1.0 - keep_S) / ((1.0 - _KEEP) * np.maximum(unseen_S, 1.0))
        before_S = keep_S * (_KEEP * self._before_S + self._last_S)
        before_S += spread_S * (interval.free_S - expected_S - last_S)
        self._before_S = np.where(interval.moving_S, before_S, self._before_S)
        self._last_S = np.where(interval.moving_S, last_S, self._last_S)

    def judge(self, motion: Motion, rate_S: Array) -> None:
        """Learn from the answer of ten steps ago, and keep the present one to be judged.

        Args:
            motion: where the series stand.
            rate_S: growth that is expected next, nats per unit of ``tau``, without decay.
        """
        step = motion.step
        while self._waiting and step - self._waiting[0][0, 0] >= _AHEAD:
            then = self._waiting.popleft()
            if step - then[0, 0] <= 2 * _AHEAD:
                free_S = motion.level_S - motion.decay_S - then[1]
                self._learn(free_S - then[3] * (motion.tau_S - then[2]), then[4])
        if not self._waiting or step - self._waiting[-1][0, 0] >= _STRIDE:
            row_5S = np.empty((5, len(rate_S)))
            row_5S[0], row_5S[2], row_5S[3] = step, motion.tau_S, rate_S
            np.subtract(motion.level_S, motion.decay_S, row_5S[1])
            np.multiply(self._before_S + self._last_S, self._returned, row_5S[4])
            row_5S[4] += self._last_S * self._carried
            self._waiting.append(row_5S)

    def answer(self, progress_hS: Array) -> Array:
        """Return what becomes of the surplus, nats, shape of ``progress_hS``.

        Args:
            progress_hS: steps to come in units of the learning rate in force; 0 where that is 0.
        """
        returned_hS, carried_hS = self.factors(progress_hS)
        answer_hS = returned_hS * (self._before_S + self._last_S)
        answer_hS += carried_hS * self._last_S
        answer_hS *= self.trust
        return np.asarray(answer_hS)

    def factors(self, progress: Array | float) -> tuple[Array | float, Array | float]:
        """Return what an answer is of the whole surplus, and of that of the last step; see :meth:`answer`."""
        forgotten = (1.0 - self._momentum) * progress
        carried = self._momentum * progress / (1.0 + forgotten + _TAKEN_BACK * forgotten * forgotten)
        return -_RETURNED * progress / (progress + _HALF_WAY), carried

    def answer_by(self, factors_H2: Array) -> Array:
        """Return :meth:`answer` by its :meth:`factors`, side by side, nats, shape ``(H, S)``."""
        surplus_2S = np.empty((2, len(self._last_S)))
        np.add(self._before_S, self._last_S, surplus_2S[0])
        surplus_2S[1] = self._last_S
        surplus_2S *= self.trust
        return np.asarray(factors_H2.dot(surplus_2S))

    def shift(self, log_factor_S: Array) -> None:
        """Move what waits along with weights that were rescaled from outside."""
        for then in self._waiting:
            then[1] += log_factor_S

    def forget(self) -> None:
        """Start from the trend (weights were replaced); keep the trust."""
        self._last_S, self._before_S = np.zeros_like(self._last_S), np.zeros_like(self._before_S)
        self._waiting.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return everything learned and waiting, as numbers and arrays."""
        state: dict[str, Any] = {name: getattr(self, name).copy() for name in _ARRAYS}
        waiting = np.array(self._waiting) if self._waiting else np.zeros((0, 5, len(self._last_S)))
        return state | {"judged": self._judged, "trust": self.trust, "waiting": waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        for name in _ARRAYS:
            setattr(self, name, np.array(state[name], dtype=np.float64))
        self._judged = int(state["judged"])
        # Of a state of an earlier version, whose series each had their own.
        self.trust = float(state["trust"]) if "trust" in state else float(np.mean(state["trust_S"]))
        self._waiting = deque(np.array(row, dtype=np.float64) for row in state["waiting"])

    def _learn(self, error_S: Array, answer_S: Array) -> None:
        gain = max(_GAIN, _EARLY / (self._judged + _EARLY))
        both_2S = np.empty((2, len(error_S)))
        both_2S[0], both_2S[1] = error_S, answer_S
        flat = both_2S.ravel()
        gain_S: Array = np.array(gain)  # of all series, if all are good
        if not math.isfinite(flat.dot(flat)) or np.count_nonzero(error_S) < len(error_S):
            good_S = np.isfinite(error_S) & np.isfinite(answer_S) & (error_S != 0.0)
            if not good_S.any():
                return
            gain_S = gain * good_S
            error_S = np.where(good_S, error_S, 1.0)
            both_2S[:] = np.where(good_S, np.stack((error_S, answer_S)), 0.0)
        log_S = np.abs(error_S)
        np.log(log_S, log_S)
        log_S -= self._log_S
        log_S *= gain_S
        self._log_S += log_S
        unit_S = np.exp(self._log_S)
        unit_S *= _SPREAD
        for row_S in both_2S:
            row_S /= unit_S
        np.maximum(both_2S, -_LARGEST, out=both_2S)
        np.minimum(both_2S, _LARGEST, out=both_2S)
        both_2S[0] *= both_2S[1]
        both_2S[1] *= both_2S[1]
        both_2S -= self._moments_2S
        both_2S *= gain_S
        self._moments_2S += both_2S
        self._judged += 1
        product, square = (np.add.reduce(self._moments_2S, axis=1) / len(error_S)).tolist()
        known = min(1.0, self._judged / _SETTLED) * min(1.0, 2.0 * max(0.0, product) / (square + 1e-300))
        self.trust = min(max(0.0, (product + _PRIOR * known) / (square + _PRIOR)), _MOST_TRUST)


_ARRAYS = ("_last_S", "_before_S", "_log_S", "_moments_2S")
