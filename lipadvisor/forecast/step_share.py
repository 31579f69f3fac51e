"""How much of the growth comes from the size of the steps: that part, per unit of ``tau``, rises with the rate.

The drift along the gradient flow is the same per unit of ``tau`` at any learning rate; the finite-step term is of the
order of the rate (``docs/science.md``, section 5). It is a few percent of most runs' growth, and most of it where the
learning rate is at the edge of stability: there a quarter of the rate grows far less than a quarter as fast, and at
twice the rate the norms jump to where a new balance is. No forecast can be made of a rate that rises there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lipadvisor.dynamics import Coefficients
from lipadvisor.terms import Array

__all__ = ["StepShare"]

_GAIN = 0.005  # per step, of the averages
_EDGE = 0.5  # of the growth, at the planned rate


class StepShare:
    """Averages of the network's drift and finite-step term, nats per ``tau``, at the rates in force."""

    def __init__(self) -> None:
        self._drift = 0.0
        self._finite = 0.0

    def update(self, rates: Coefficients, steps: float) -> None:
        """Take in a measurement that stands for ``steps`` steps; what is not finite is left out."""
        if not math.isfinite(rates.drift) or not math.isfinite(rates.finite_step):
            return
        gain = 1.0 - (1.0 - _GAIN) ** steps
        self._drift += gain * (rates.drift - self._drift)
        self._finite += gain * (rates.finite_step - self._finite)

    @property
    def share(self) -> float:
        """The finite-step term over it and the size of the drift, in [0, 1]; 0 where neither was seen."""
        finite = max(self._finite, 0.0)
        total = finite + abs(self._drift)
        return finite / total if total > 0.0 else 0.0

    def effective(self, planned_hS: Array, lr_S: Array) -> Array:
        """Return the advance of the growth's clock in each planned step: ``lr' (1 + share (lr' / lr - 1))``.

        Args:
            planned_hS: learning rates of the plan.
            lr_S: in force; a series whose rate is 0 knows no share.
        """
        known_S = np.where(lr_S > 0.0, lr_S, 1.0)
        change_hS = np.where(lr_S > 0.0, planned_hS / known_S - 1.0, 0.0)
        return np.asarray(planned_hS * (1.0 + self.share * change_hS))

    def load(self, lr_L: Array, planned_L: Array) -> float:
        """Return the share to expect at planned learning rates, over its limit: above 1 is too much.

        Args:
            lr_L: in force.
            planned_L: the largest of the plan.

        Returns:
            0 where no rate rises: at the edge of stability a run goes on as it is.
        """
        rises_L = (planned_L > lr_L) & (lr_L > 0.0)
        return self.share / _EDGE * float(np.max(planned_L / np.where(rises_L, lr_L, np.inf), initial=0.0))

    def state_dict(self) -> dict[str, float]:
        """Return the averages."""
        return {"drift": self._drift, "finite": self._finite}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._drift, self._finite = float(state["drift"]), float(state["finite"])
