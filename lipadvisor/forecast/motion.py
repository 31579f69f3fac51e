"""Where each series stands, and what it did since the last measurement: levels, clocks, decay.

A series whose norm could not be measured keeps its place and catches up at the next measurement. Measured every step
or now and then: an interval of several steps takes the learning rate to run straight from one measurement to the next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lipadvisor.dynamics import Coefficients
from lipadvisor.terms import Array, Terms

__all__ = ["Interval", "Mask", "Motion"]

Mask = NDArray[np.bool_]

_EARLY_STEPS = 20  # steps whose largest learning rate sets tau_c ...
_OFFSET = 10.0  # ... as this many times it


class Interval(NamedTuple):
    """What happened to the ``S`` series between two measurements; meaningful where ``valid_S``."""

    whole: bool  # all series changed over the same steps, and their clocks moved
    steps: float  # the most of any series
    steps_S: Array
    change_S: Array  # of the log-norm, nats
    free_S: Array  # the same without the weight decay's share
    start_S: Array  # tau + tau_c
    advance_S: Array  # of tau
    squared_S: Array  # sum of lr^2
    own_steps: float  # 1 if the change over the measured step is known apart, else 0
    own_S: Array  # of `free_S`, the part of the measured step itself
    valid_S: Mask  # there is a change
    moving_S: Mask  # and the clock moved


class Motion:
    """Levels and clocks of ``S = L + 1`` series: the layers, then the network."""

    def __init__(self, series: int) -> None:
        self.measured_step = -1  # step of the last measurement
        self.step = 0  # optimizer steps taken at the last known log-norms
        self.lr_S: Array = np.zeros(series)  # in force
        self.log_decay_S: Array = np.zeros(series)  # per step, in force
        self.state_4S: Array = np.zeros((4, series))  # rows: see the properties
        self.state_4S[0] = np.nan
        self._step_S: Array = np.zeros(series)  # see `step_S`
        self.offset_S: Array = np.zeros(series)  # tau_c
        self._whole = False  # every level is known, at one step, and every tau_c is set
        self._knobs: tuple[bytes, bytes, float, float] | None = None  # that `lr_S` and `log_decay_S` were made of
        self._moves_4S: Array | None = None  # of the clocks over one step with them, where all move; no level's
        self._steps_S: Array = np.ones(series)  # of a whole interval
        self._every_S: Mask = np.ones(series, bool)

    @property
    def level_S(self) -> Array:
        """Log-norms, nats."""
        return np.asarray(self.state_4S[0])

    @property
    def tau_S(self) -> Array:
        """Clocks: sums of the learning rates."""
        return np.asarray(self.state_4S[1])

    @property
    def decay_S(self) -> Array:
        """Sums of ``ln(1 - lr wd)``, nats."""
        return np.asarray(self.state_4S[2])

    @property
    def squared_S(self) -> Array:
        """Sums of ``lr^2``."""
        return np.asarray(self.state_4S[3])

    @property
    def step_S(self) -> Array:
        """Steps taken at each level."""
        if self._whole:  # kept as one number
            self._step_S = np.full(len(self._step_S), float(self.step))
        return self._step_S

    @property
    def clock(self) -> float:
        """The network's ``tau + tau_c`` at its last known log-norm."""
        return float(self.tau_S[-1] + self.offset_S[-1])

    def offset_factor(self, terms: Terms, lr: float) -> Array | None:
        """Set ``tau_c``; return the factor by which ``tau + tau_c`` grew, or ``None`` if it did not.

        It is ten times the largest learning rate of the first steps.
        """
        if self._whole and terms.step >= _EARLY_STEPS:
            return None
        offset_S = np.maximum(self.offset_S, _OFFSET * np.append(terms.lr_L, lr))
        if terms.step >= _EARLY_STEPS:
            offset_S = np.where(self.offset_S > 0.0, self.offset_S, offset_S)
        if np.array_equal(offset_S, self.offset_S):
            return None
        before_S = self.tau_S + self.offset_S
        factor_S = np.where(before_S > 0.0, (self.tau_S + offset_S) / np.where(before_S > 0.0, before_S, 1.0), 1.0)
        self.offset_S = offset_S
        return factor_S

    def advance(self, terms: Terms, rates: Coefficients) -> Interval:
        """Move to the measurement and, where the change over its own step is known, past that step.

        Args:
            terms: the measurement.
            rates: of the measurement.
        """
        change_L = _change(terms)
        knobs = (rates.lr_L.tobytes(), rates.decay_L.tobytes(), rates.lr, rates.decay)
        if knobs == self._knobs:
            lr_S, log_decay_S = self.lr_S, self.log_decay_S
        else:
            lr_S, log_decay_S = np.append(rates.lr_L, rates.lr), np.append(rates.decay_L, rates.decay)
            log_decay_S *= lr_S  # per step
            self._knobs, self._moves_4S = knobs, None
        before_S, change_S = np.empty(len(lr_S)), np.empty(len(lr_S))
        before_S[:-1], change_S[:-1] = terms.log_norm_L, change_L
        before_S[-1], change_S[-1] = terms.network_log_norm, terms.composition_L.dot(change_L)
        first = self.measured_step < 0
        if first:
            self.lr_S, self.log_decay_S = lr_S, log_decay_S
            self.tau_S[:], self.squared_S[:] = terms.step * lr_S, terms.step * lr_S**2
        level_S = before_S + change_S
        if self._whole and terms.step > self.measured_step and math.isfinite(level_S.dot(level_S)):
            interval = self._advance_whole(terms.step, level_S, lr_S, log_decay_S, change_S)
            if interval is not None:
                self.measured_step, self.lr_S, self.log_decay_S = terms.step, lr_S, log_decay_S
                return interval
        self._step_S, self._whole = self.step_S, False
        seen_S = np.isfinite(before_S)
        after = bool(np.isfinite(change_S[seen_S]).all())
        fresh_S = seen_S & ~np.isfinite(self.level_S)
        if fresh_S.any():
            self.level_S[fresh_S] = before_S[fresh_S]
            self._step_S = np.where(fresh_S, terms.step, self.step_S)
        level_S = level_S if after else before_S
        step = terms.step + int(after)
        own_S = np.where(seen_S, change_S - log_decay_S, 0.0) if after else np.zeros_like(level_S)
        interval = self._interval(terms.step, step, level_S, lr_S, log_decay_S, seen_S, own_S)
        self._move(step, level_S, interval)
        self.measured_step, self.lr_S, self.log_decay_S = terms.step, lr_S, log_decay_S
        self._look()
        return interval

    def shift(self, log_factor_S: Array) -> None:
        """Move the levels along with weights that were rescaled from outside."""
        self.state_4S[0] += log_factor_S
        self._look()

    def forget_levels(self) -> None:
        """Drop the levels (weights were replaced): the next measurement starts afresh; the clocks go on."""
        self.state_4S[0] = np.nan
        self._step_S, self._whole = self.step_S, False

    def state_dict(self) -> dict[str, Any]:
        """Return the state: numbers and arrays."""
        return {"measured_step": self.measured_step} | {name: getattr(self, name).copy() for name in _ARRAYS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.measured_step = int(state["measured_step"])
        for name in ("lr_S", "log_decay_S", "offset_S"):
            setattr(self, name, np.array(state[name], dtype=np.float64))
        self._step_S = np.array(state["step_S"], dtype=np.float64)
        self.state_4S = np.array([state[name] for name in _ROWS], dtype=np.float64)
        self._whole, self._knobs, self._moves_4S = False, None, None
        self._look()

    def _look(self) -> None:
        """See whether the series stand together."""
        step_S = self.step_S
        self.step = int(step_S.max())
        together = bool((step_S == self.step).all() and np.isfinite(self.level_S).all())
        self._whole = together and self.measured_step >= 0 and bool((self.offset_S > 0.0).all())

    def _advance_whole(
        self, now: int, level_S: Array, lr_S: Array, log_decay_S: Array, own_S: Array
    ) -> Interval | None:
        """Do what :meth:`_interval` and :meth:`_move` do where all series stand together and all are seen.

        Returns ``None``, and moves nothing, where some clock would stand still.
        """
        step, steps, own_decay_S = now + 1, float(now + 1 - self.step), log_decay_S
        moves_4S = self._moves_4S if steps == 1.0 else None
        if moves_4S is None:
            # The middle of the interval's steps, on the way from the last measurement's step to this one's.
            middle = (0.5 * (self.step + now) - self.measured_step) / (now - self.measured_step)
            if middle < 1.0:
                lr_S = self.lr_S + middle * (lr_S - self.lr_S)
                log_decay_S = self.log_decay_S + middle * (log_decay_S - self.log_decay_S)
            if np.count_nonzero(lr_S > 0.0) < len(lr_S):
                return None
            moves_4S = np.zeros((4, len(lr_S)))
            np.multiply(lr_S, steps, moves_4S[1])
            np.multiply(log_decay_S, steps, moves_4S[2])
            np.multiply(moves_4S[1], lr_S, moves_4S[3])
            if steps == 1.0:
                self._moves_4S = moves_4S
        change_S = level_S - self.state_4S[0]
        start_S = self.state_4S[1] + self.offset_S
        self.state_4S = self.state_4S + moves_4S
        self.state_4S[0] = level_S  # without rounding
        self.step = step
        if self._steps_S[0] != steps:
            self._steps_S = np.full(len(level_S), steps)
        own_S -= own_decay_S
        free_S = change_S - moves_4S[2]
        times = (True, steps, self._steps_S, change_S, free_S, start_S, moves_4S[1], moves_4S[3])
        return Interval(*times, 1.0, own_S, self._every_S, self._every_S)

    def _interval(
        self, now: int, step: int, level_S: Array, lr_S: Array, log_decay_S: Array, seen_S: Mask, own_S: Array
    ) -> Interval:
        steps_S = np.where(seen_S, step - self.step_S, 0.0)
        valid_S = steps_S > 0.0
        if now > self.measured_step >= 0:
            middle_S = (0.5 * (self.step_S + step - 1.0) - self.measured_step) / (now - self.measured_step)
            middle_S = np.clip(middle_S, 0.0, 1.0)
            lr_S = self.lr_S + middle_S * (lr_S - self.lr_S)
            log_decay_S = self.log_decay_S + middle_S * (log_decay_S - self.log_decay_S)
        move_S = np.where(valid_S, level_S - self.level_S, 0.0)
        tau_S = self.tau_S + self.offset_S
        advance_S = steps_S * lr_S
        return Interval(
            whole=False,
            steps=float(steps_S.max()),
            steps_S=steps_S,
            change_S=move_S,
            free_S=move_S - steps_S * log_decay_S,
            start_S=tau_S,
            advance_S=advance_S,
            squared_S=advance_S * lr_S,
            own_steps=float(step - now),
            own_S=own_S,
            valid_S=valid_S,
            moving_S=valid_S & (advance_S > 0.0) & (tau_S > 0.0),
        )

    def _move(self, step: int, level_S: Array, interval: Interval) -> None:
        valid_S = interval.valid_S
        self._step_S = np.where(valid_S, step, self.step_S)
        self.level_S[valid_S] = level_S[valid_S]
        taken_S = interval.change_S - interval.free_S
        self.state_4S[1:] += np.where(valid_S, (interval.advance_S, taken_S, interval.squared_S), 0.0)


def _change(terms: Terms) -> Array:
    """Return the change over the measured step: as observed where the norms after it are known, else as predicted."""
    if terms.log_norm_after_L.shape != terms.change_L.shape:
        return terms.change_L
    observed_L = terms.log_norm_after_L - terms.log_norm_L
    if math.isfinite(observed_L.dot(observed_L)):
        return observed_L
    return np.where(np.isfinite(observed_L), observed_L, terms.change_L)


_ROWS = ("level_S", "tau_S", "decay_S", "squared_S")
_ARRAYS = ("lr_S", "log_decay_S", "offset_S", "step_S", *_ROWS)
