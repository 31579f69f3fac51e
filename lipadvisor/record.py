"""What the trajectory records beyond the observation: predictions beside the observed, and the layers' forecasts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lipadvisor.dynamics import Coefficients, Reconstruction
from lipadvisor.forecast import Forecast
from lipadvisor.policies import Band
from lipadvisor.terms import Array, Terms

__all__ = ["extra_columns", "initial_columns", "layer_bands"]


def initial_columns(terms: Terms) -> dict[str, list[float]]:
    """Return the trajectory's own columns before step 0, where the predictions start from the observed."""
    start = [*terms.log_norm_L.tolist(), float(terms.network_log_norm)]
    return {"predicted": start, "predicted_paper": start}


def extra_columns(terms: Terms, rates: Coefficients, reconstruction: Reconstruction) -> dict[str, list[float]]:
    """Return the columns that only the trajectory has, each for the layers in order and then the network.

    ``predicted`` and ``predicted_paper`` (nats) are integrated from the first measurement and belong to the same
    weights as the row's ``log_norm``: those after the step, where the terms carry them.
    """
    with np.errstate(all="ignore"):  # of a run that diverges: nan and inf are recorded as they are
        return _extra_columns(terms, rates, reconstruction)


def _extra_columns(terms: Terms, rates: Coefficients, reconstruction: Reconstruction) -> dict[str, list[float]]:
    weight_L = terms.composition_L
    change_L = terms.change_L
    paper_L = terms.lr_L * rates.paper_rate_L()
    if terms.log_norm_after_L.size == 0:
        ahead_L = paper_ahead_L = np.zeros_like(change_L)
    else:
        ahead_L, paper_ahead_L = _known(change_L), _known(paper_L)

    def with_network(values_L: Array, network: float) -> list[float]:
        return [*values_L.tolist(), network]

    def sum_of(values_L: Array) -> float:
        return float(np.add.reduce(weight_L * values_L))

    return {
        "predicted": with_network(reconstruction.predicted_L + ahead_L, reconstruction.predicted + sum_of(ahead_L)),
        "predicted_paper": with_network(
            reconstruction.paper_L + paper_ahead_L, reconstruction.paper + sum_of(paper_ahead_L)
        ),
        "change": with_network(change_L, sum_of(change_L)),
        "curvature": with_network(terms.curvature_L, rates.finite_step),
        "interval": [float(terms.interval)] * (len(terms.names) + 1),
    }


def _known(values_L: Array) -> Array:
    """Return the values, with zeros for what was not measured."""
    return values_L if np.count_nonzero(np.isfinite(values_L)) == len(values_L) else np.nan_to_num(values_L)


def layer_bands(forecast: Forecast, horizons: Sequence[int]) -> dict[str, tuple[Band, ...]]:
    """Return each layer's bands at ``horizons`` (steps ahead, up to ``forecast.horizon``)."""
    return {
        name: tuple(
            Band(
                horizon,
                float(series.mean[horizon - 1]),
                float(series.std[horizon - 1]),
                float(series.lower[horizon - 1]),
                float(series.upper[horizon - 1]),
                forecast.status,
            )
            for horizon in horizons
        )
        for name, series in forecast.layers.items()
    }
