"""The observed log-norms beside those that the dynamics predict, integrated from the first measurement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lipadvisor.dynamics.coefficients import Coefficients, coefficients
from lipadvisor.terms import Array, Terms

__all__ = ["Reconstruction"]

_LARGEST = 709.0  # whose exponential is a float


class Reconstruction:
    """Integrates the predicted changes of every measured step, in both forms, from the first measurement on.

    ``finite_step`` sums ``terms.change_L`` (second order along the realised step, decay included). ``paper`` sums the
    increment of [D], ``lr (drift + noise_curvature - diffusion^2 / 2)``, with the decay. A measurement predicts its own
    step. Nothing predicts the steps that were not measured: over them both predictions move with the observed
    norms (where the terms carry those after a step; else by the mean of the two measurements' changes), and the steps
    are counted as *bridged*. So the errors are those of the measured steps, summed. The network's change weighs the
    layers' by the mean of the composition weights at both ends of the step.

    A prediction that could not be measured (not finite) is replaced by that layer's last finite one, and counted.
    All values stand at the last measurement, so that predicted and observed belong to the same weights.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        count = len(self.names)
        self.observed_L: Array = np.full(count, np.nan)
        self.predicted_L: Array = np.full(count, np.nan)  # finite_step, nats
        self.paper_L: Array = np.full(count, np.nan)  # nats
        self.observed = float("nan")
        self.predicted = float("nan")
        self.paper = float("nan")
        self.measured = 0  # steps whose own prediction was integrated
        self.bridged = 0  # steps between measurements
        self.replaced = 0  # single changes that were not finite
        self.restarts = 0  # times the steps went back, and the integration began anew
        self.max_error = 0.0  # largest relative error of the network's K so far, finite_step
        self.max_paper_error = 0.0
        self.max_error_L: Array = np.zeros(count)
        self._error_sum = 0.0
        self._errors = 0
        self._step = -1
        self._change_L: Array = np.zeros(count)
        self._paper_change_L: Array = np.zeros(count)
        self._weight_L: Array = np.zeros(count)
        self._after_L: Array = np.full(count, np.nan)  # observed after the last measured step, where known

    def update(self, terms: Terms, rates: Coefficients | None = None) -> None:
        """Take in the next measurement: bring both predictions up to it, and compare.

        Args:
            terms: the measurement.
            rates: of it, in either form; worked out if ``None``.

        Raises:
            ValueError: the layers are not those of the constructor.
        """
        if terms.names != self.names:
            raise ValueError(f"Reconstruction.update(terms) must have the layers {self.names}, got {terms.names}.")
        rates = coefficients(terms, "paper") if rates is None else rates
        change_L = self._finite(terms.change_L, self._change_L)
        paper_L = self._finite(terms.lr_L * rates.paper_rate_L(), self._paper_change_L)
        if terms.step < self._step:  # weights were put back: nothing predicts that
            self.restarts += 1
        if self._step < 0 or terms.step < self._step:
            self.predicted_L, self.paper_L = terms.log_norm_L.copy(), terms.log_norm_L.copy()
            self.predicted = self.paper = terms.network_log_norm
        elif terms.step > self._step:
            self._integrate(terms, change_L, paper_L)
        self.observed_L = terms.log_norm_L.copy()
        self.observed = terms.network_log_norm
        self._step, self._change_L, self._paper_change_L = terms.step, change_L, paper_L
        self._weight_L = terms.composition_L.copy()
        if terms.log_norm_after_L.size > 0:
            self._after_L = terms.log_norm_after_L.copy()
        else:
            self._after_L = np.full(len(self.names), np.nan)
        self._compare()

    def shift(self, log_factor_L: Array) -> None:
        """Account for weights that something else than the optimizer has rescaled, by ``exp(log_factor)`` each.

        Args:
            log_factor_L: nats, shape ``(L,)``; known exactly, so both predictions and the observed move with it.
        """
        for values_L in (self.predicted_L, self.paper_L, self.observed_L, self._after_L):
            values_L += log_factor_L
        network = float(self._weight_L @ log_factor_L)
        self.predicted += network
        self.paper += network
        self.observed += network

    @property
    def error(self) -> float:
        """Relative error of the network's ``K``, ``exp(|dZ|) - 1``, finite-step form; ``nan`` before any update."""
        return _relative(self.predicted - self.observed)

    @property
    def paper_error(self) -> float:
        """Relative error of the network's ``K`` in the paper's form."""
        return _relative(self.paper - self.observed)

    @property
    def mean_error(self) -> float:
        """Mean over the measurements of :attr:`error`; 0 before the second."""
        return self._error_sum / self._errors if self._errors else 0.0

    @property
    def error_L(self) -> Array:
        """Relative error of each layer's operator norm, finite-step form, shape ``(L,)``."""
        return np.asarray(np.expm1(np.abs(self.predicted_L - self.observed_L)))

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a restart needs: numbers and arrays."""
        values = {name: value for name, value in vars(self).items() if name != "names"}
        return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in values.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            ValueError: a field is missing or unknown.
        """
        wanted = set(vars(self)) - {"names"}
        if set(state) != wanted:
            raise ValueError(f"Reconstruction.load_state_dict(state) must have the keys {sorted(wanted)}.")
        for name in wanted:
            value = state[name]
            is_array = isinstance(getattr(self, name), np.ndarray)
            setattr(self, name, np.array(value, dtype=np.float64) if is_array else value)

    def _finite(self, change_L: Array, last_L: Array) -> Array:
        good_L = np.isfinite(change_L)
        bad = len(good_L) - int(np.count_nonzero(good_L))
        if bad == 0:
            return change_L
        self.replaced += bad
        return np.where(good_L, change_L, last_L)

    def _integrate(self, terms: Terms, change_L: Array, paper_L: Array) -> None:
        gap = terms.step - self._step - 1
        weight_L = self._weight_L + terms.composition_L
        weight_L *= 0.5
        done_L, paper_done_L = self._change_L, self._paper_change_L
        if gap > 0:
            if np.isfinite(self._after_L).all():
                bridge_L = paper_bridge_L = terms.log_norm_L - self._after_L
            else:
                bridge_L, paper_bridge_L = 0.5 * gap * (done_L + change_L), 0.5 * gap * (paper_done_L + paper_L)
            done_L, paper_done_L = done_L + bridge_L, paper_done_L + paper_bridge_L
        self.predicted_L = self.predicted_L + done_L
        self.paper_L = self.paper_L + paper_done_L
        self.predicted += float(weight_L.dot(done_L))
        self.paper += float(weight_L.dot(paper_done_L))
        self.measured += 1
        self.bridged += gap

    def _compare(self) -> None:
        if self.measured == 0:
            return
        error, paper_error = self.error, self.paper_error
        if math.isfinite(error):
            self._error_sum += error
            self._errors += 1
            self.max_error = max(self.max_error, error)
        if math.isfinite(paper_error):
            self.max_paper_error = max(self.max_paper_error, paper_error)
        np.fmax(self.max_error_L, self.error_L, out=self.max_error_L)


def _relative(difference: float) -> float:
    """Return the relative error of a norm whose logarithm is off by ``difference``."""
    size = abs(difference)
    return math.expm1(size) if size < _LARGEST else math.inf if size >= _LARGEST else math.nan
