"""The numpy middle of the line: a measurement goes in, rates and bands come out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lipadvisor.dynamics import Coefficients, Reconstruction, coefficients
from lipadvisor.forecast import Alarm, DivergenceWarning, Forecaster
from lipadvisor.policies import Band, Observation
from lipadvisor.terms import Terms

__all__ = ["HORIZONS", "Prediction"]

HORIZONS = (1, 10, 50, 200)  # steps ahead, of the bands that policies see and the trajectory records
_JUDGED = 10  # steps ahead, of the forecasts that the early warning judges


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
        self.warning = DivergenceWarning(smoothing=1.0)  # it is told a loss that is smoothed already
        self.measurements = 0

    def update(self, terms: Terms, loss: float | None = None) -> tuple[Coefficients, tuple[Band, ...]]:
        """Take in a measurement; return its rates, and the network's bands under the present knobs."""
        with np.errstate(all="ignore"):  # of a run that diverges: what is not finite is marked, not printed
            rates = coefficients(terms)
            self.reconstruction.update(terms, rates)
            self.forecaster.update(terms, rates, loss)
            self.measurements += 1
            return rates, self.forecaster.bands()

    def watch(self, terms: Terms, seen: Observation, loss: float | None, wanted: float | None) -> Alarm:
        """Say whether the run is in danger of diverging.

        Args:
            terms: the measurement.
            seen: what became of it.
            loss: training loss, smoothed over some twenty steps; ``None`` where it is not known.
            wanted: relative update that the acting policy holds; ``None`` where it holds none.
        """
        band = next((band for band in seen.bands if band.horizon == _JUDGED), None)
        forecast = None if band is None else (seen.step + _JUDGED, band.mean, band.std)
        moved_L = (terms.lr_L * terms.update_ratio_L)[terms.composition_L != 0.0]
        return self.warning.update(
            seen.step, loss, seen.network.log_norm, float(moved_L.max(initial=0.0)), forecast, wanted
        )

    def shift(self, factors: Mapping[str, float]) -> None:
        """Account for weights that a decision has just rescaled, by the layers' names."""
        log_factor_L = np.log([factors.get(name, 1.0) for name in self.reconstruction.names])
        self.reconstruction.shift(log_factor_L)
        self.forecaster.shift(log_factor_L)
        self.warning.forget_forecasts()

    def state_dict(self) -> dict[str, Any]:
        """Return numbers, lists and numpy arrays that :meth:`load_state_dict` continues from."""
        return {
            "reconstruction": self.reconstruction.state_dict(),
            "forecaster": self.forecaster.state_dict(),
            "warning": self.warning.state_dict(),
            "measurements": self.measurements,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.reconstruction.load_state_dict(state["reconstruction"])
        self.forecaster.load_state_dict(state["forecaster"])
        if "warning" in state:  # not in checkpoints of earlier versions
            self.warning.load_state_dict(state["warning"])
        self.measurements = int(state["measurements"])
