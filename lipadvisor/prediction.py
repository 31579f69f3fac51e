"""The numpy middle of the line: a measurement goes in, rates and bands come out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lipadvisor.dynamics import Coefficients, Reconstruction, coefficients
from lipadvisor.forecast import Forecaster
from lipadvisor.policies import Band
from lipadvisor.terms import Terms

__all__ = ["HORIZONS", "Prediction"]

HORIZONS = (1, 10, 50, 200)  # steps ahead, of the bands that policies see and the trajectory records


class Prediction:
    """What the dynamics make of the measurements of one run.

    Args:
        terms: any measurement of the run, for its layers and optimizer; nothing of its numbers is used.
    """

    def __init__(self, terms: Terms) -> None:
        self.reconstruction = Reconstruction(terms.names)
        self.forecaster = Forecaster(
            terms.names, terms.composition_L, optimizer=terms.optimizer, momentum=terms.momentum, horizons=HORIZONS
        )
        self.measurements = 0

    def update(self, terms: Terms, loss: float | None = None) -> tuple[Coefficients, tuple[Band, ...]]:
        """Take in a measurement; return its rates, and the network's bands under the present knobs."""
        with np.errstate(all="ignore"):  # of a run that diverges: what is not finite is marked, not printed
            rates = coefficients(terms)
            self.reconstruction.update(terms, rates)
            self.forecaster.update(terms, rates, loss)
            self.measurements += 1
            return rates, self.forecaster.bands()

    def shift(self, factors: Mapping[str, float]) -> None:
        """Account for weights that a decision has just rescaled, by the layers' names."""
        log_factor_L = np.log([factors.get(name, 1.0) for name in self.reconstruction.names])
        self.reconstruction.shift(log_factor_L)
        self.forecaster.shift(log_factor_L)

    def state_dict(self) -> dict[str, Any]:
        """Return numbers, lists and numpy arrays that :meth:`load_state_dict` continues from."""
        return {
            "reconstruction": self.reconstruction.state_dict(),
            "forecaster": self.forecaster.state_dict(),
            "measurements": self.measurements,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.reconstruction.load_state_dict(state["reconstruction"])
        self.forecaster.load_state_dict(state["forecaster"])
        self.measurements = int(state["measurements"])
