"""Where each series stands, and what it did since the last measurement: levels, clocks, decay.

A series whose norm could not be measured keeps its place and catches up at the next measurement. Measured every step
or now and then: an interval of several steps takes the learning rate to run straight from one measurement to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipadvisor.dynamics import log_decay
from lipadvisor.terms import Array, Terms

__all__ = ["Interval", "Mask", "Motion"]

Mask = NDArray[np.bool_]

_EARLY_STEPS = 20  # steps whose largest learning rate sets tau_c ...
_OFFSET = 10.0  # ... as this many times it


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened to the ``S`` series between two measurements; meaningful where ``valid_S``."""

    steps_S: Array
    change_S: Array  # of the log-norm, nats
    free_S: Array  # the same without the weight decay's share
    start_S: Array  # tau + tau_c
    end_S: Array
    squared_S: Array  # sum of lr^2
    own_steps: float  # 1 if the change over the measured step is known apart, else 0
    own_S: Array  # of `free_S`, the part of the measured step itself
    valid_S: Mask  # there is a change
    moving_S: Mask  # and the clock moved


class Motion:
    """Levels and clocks of ``S = L + 1`` series: the layers, then the network."""

    def __init__(self, series: int) -> None:
        self.measured_step = -1  # step of the last measurement
        self.lr_S: Array = np.zeros(series)  # in force
        self.log_decay_S: Array = np.zeros(series)  # per step, in force
        self.level_S: Array = np.full(series, np.nan)
        self.step_S: Array = np.zeros(series)  # steps taken at the level
        self.tau_S: Array = np.zeros(series)
        self.offset_S: Array = np.zeros(series)  # tau_c
        self.decay_S: Array = np.zeros(series)  # sum of ln(1 - lr wd)
        self.squared_S: Array = np.zeros(series)  # sum of lr^2

    @property
    def step(self) -> int:
        """Optimizer steps taken at the last known log-norms."""
        return int(self.step_S.max())

    @property
    def clock(self) -> float:
        """The network's ``tau + tau_c`` at its last known log-norm."""
        return float(self.tau_S[-1] + self.offset_S[-1])

    def offset_factor(self, terms: Terms, lr: float) -> Array | None:
        """Set ``tau_c``; return the factor by which ``tau + tau_c`` grew, or ``None`` if it did not.

        It is ten times the largest learning rate of the first steps.
        """
        offset_S = np.maximum(self.offset_S, _OFFSET * np.append(terms.lr_L, lr))
        if terms.step >= _EARLY_STEPS:
            offset_S = np.where(self.offset_S > 0.0, self.offset_S, offset_S)
        if np.array_equal(offset_S, self.offset_S):
            return None
        before_S = self.tau_S + self.offset_S
        factor_S = np.where(before_S > 0.0, (self.tau_S + offset_S) / np.where(before_S > 0.0, before_S, 1.0), 1.0)
        self.offset_S = offset_S
        return factor_S

    def advance(self, terms: Terms, lr: float) -> Interval:
        """Move to the measurement and, where the change over its own step is known, past that step.

        Args:
            terms: the measurement.
            lr: learning rate of the network's clock.
        """
        weight_L = terms.composition_L
        lr_S = np.append(terms.lr_L, lr)
        decay_L = log_decay(terms.lr_L, terms.weight_decay_L)
        log_decay_S = np.append(decay_L, weight_L @ decay_L)
        before_S = np.append(terms.log_norm_L, terms.network_log_norm)
        change_L = _change(terms)
        change_S = np.append(change_L, weight_L @ change_L)
        seen_S = np.isfinite(before_S)
        after = bool(np.isfinite(change_S[seen_S]).all())
        first = self.measured_step < 0
        if first:
            self.lr_S, self.log_decay_S = lr_S, log_decay_S
            self.tau_S, self.squared_S = terms.step * lr_S, terms.step * lr_S**2
        fresh_S = seen_S & ~np.isfinite(self.level_S)
        if fresh_S.any():
            self.level_S = np.where(fresh_S, before_S, self.level_S)
            self.step_S = np.where(fresh_S, terms.step, self.step_S)
        level_S = before_S + change_S if after else before_S
        step = terms.step + int(after)
        own_S = np.where(seen_S, change_S - log_decay_S, 0.0) if after else np.zeros_like(level_S)
        interval = self._interval(terms.step, step, level_S, lr_S, log_decay_S, seen_S, own_S)
        self._move(step, level_S, interval)
        self.measured_step, self.lr_S, self.log_decay_S = terms.step, lr_S, log_decay_S
        return interval

    def shift(self, log_factor_S: Array) -> None:
        """Move the levels along with weights that were rescaled from outside."""
        self.level_S = self.level_S + log_factor_S

    def forget_levels(self) -> None:
        """Drop the levels (weights were replaced): the next measurement starts afresh; the clocks go on."""
        self.level_S = np.full_like(self.level_S, np.nan)

    def state_dict(self) -> dict[str, Any]:
        """Return the state: numbers and arrays."""
        return {name: value if name == "measured_step" else value.copy() for name, value in vars(self).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        for name in vars(self):
            value = state[name]
            setattr(self, name, int(value) if name == "measured_step" else np.array(value, dtype=np.float64))

    def _interval(
        self, now: int, step: int, level_S: Array, lr_S: Array, log_decay_S: Array, seen_S: Mask, own_S: Array
    ) -> Interval:
        steps_S = np.where(seen_S, step - self.step_S, 0.0)
        valid_S = steps_S > 0.0
        if now > self.measured_step >= 0:
            # The middle of the interval's steps, on the way from the last measurement's step to this one's.
            middle_S = (0.5 * (self.step_S + step - 1.0) - self.measured_step) / (now - self.measured_step)
            middle_S = np.clip(middle_S, 0.0, 1.0)
            lr_S = self.lr_S + middle_S * (lr_S - self.lr_S)
            log_decay_S = self.log_decay_S + middle_S * (log_decay_S - self.log_decay_S)
        move_S = np.where(valid_S, level_S - self.level_S, 0.0)
        tau_S = self.tau_S + self.offset_S
        advance_S = steps_S * lr_S
        return Interval(
            steps_S=steps_S,
            change_S=move_S,
            free_S=move_S - steps_S * log_decay_S,
            start_S=tau_S,
            end_S=tau_S + advance_S,
            squared_S=steps_S * lr_S**2,
            own_steps=float(step - now),
            own_S=own_S,
            valid_S=valid_S,
            moving_S=valid_S & (advance_S > 0.0) & (tau_S > 0.0),
        )

    def _move(self, step: int, level_S: Array, interval: Interval) -> None:
        valid_S = interval.valid_S
        self.level_S = np.where(valid_S, level_S, self.level_S)
        self.step_S = np.where(valid_S, step, self.step_S)
        self.tau_S = self.tau_S + np.where(valid_S, interval.end_S - interval.start_S, 0.0)
        self.squared_S = self.squared_S + np.where(valid_S, interval.squared_S, 0.0)
        self.decay_S = self.decay_S + np.where(valid_S, interval.change_S - interval.free_S, 0.0)


def _change(terms: Terms) -> Array:
    """Return the change over the measured step: as observed where the norms after it are known, else as predicted."""
    if terms.log_norm_after_L.shape != terms.change_L.shape:
        return terms.change_L
    observed_L = terms.log_norm_after_L - terms.log_norm_L
    return np.where(np.isfinite(observed_L), observed_L, terms.change_L)
