"""How well the integrated SDE follows the observed norms, and how often the forecast bands held. No drawing here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["BoundError", "HorizonScore", "Track", "believable", "bound_error", "horizon_scores", "track"]

Array = NDArray[np.float64]
_LARGEST = 1e4  # nats: some layers' logarithms of float32's largest number


@dataclass(frozen=True, slots=True)
class Track:
    """One log-norm over a run, observed and predicted from step 0 (nats; ``T`` measured steps)."""

    layer: str  # "*" is the network
    step_T: Array
    observed_T: Array
    finite_step_T: Array  # nan where there is no prediction
    paper_T: Array
    target_F: Array  # steps that the forecasts below are for, ascending
    lower_F: Array  # of the 90 % band, made ``horizon`` steps earlier
    upper_F: Array
    horizon: int


@dataclass(frozen=True, slots=True)
class BoundError:
    """Relative error of the predicted norm ``K = exp(log_norm)`` over a run."""

    layer: str
    finite_step: float  # largest |K_predicted / K_observed - 1|
    paper: float
    finite_step_mean: float
    paper_mean: float


@dataclass(frozen=True, slots=True)
class HorizonScore:
    """Forecasts at one horizon against what came."""

    horizon: int
    count: int  # forecasts whose target step was reached
    mae: float  # nats
    persistence_mae: float  # nats, of "it stays as it is"
    coverage: float  # share of targets inside the 90 % band
    width: float  # median width of the band, nats


def track(observations: pd.DataFrame, forecasts: pd.DataFrame, layer: str, horizon: int) -> Track:
    """Return observed and predicted log-norm of ``layer`` in the frames of one trial."""
    rows = observations[observations["layer"] == layer].sort_values("step")
    bands = _bands(forecasts, layer, horizon)
    return Track(
        layer=layer,
        step_T=rows["step"].to_numpy(float),
        observed_T=believable(rows["log_norm"].to_numpy(float)),
        finite_step_T=believable(rows["predicted"].to_numpy(float)),
        paper_T=believable(rows["predicted_paper"].to_numpy(float)),
        target_F=bands["target"].to_numpy(float),
        lower_F=bands["lower"].to_numpy(float),
        upper_F=bands["upper"].to_numpy(float),
        horizon=horizon,
    )


def believable(value_T: Array) -> Array:
    """Return log-norms (nats) with nan for what no number can have as its logarithm, in a run that was lost."""
    return np.where(np.abs(value_T) < _LARGEST, value_T, np.nan)


def bound_error(seen: Track) -> BoundError:
    """Return the relative errors of the two predictions of ``K``; nan where nothing was predicted."""
    errors = []
    for predicted_T in (seen.finite_step_T, seen.paper_T):
        error_T = np.abs(np.expm1(np.minimum(predicted_T - seen.observed_T, 700.0)))
        errors.append(error_T[np.isfinite(error_T)])
    largest = [float(error.max()) if len(error) else float("nan") for error in errors]
    mean = [float(error.mean()) if len(error) else float("nan") for error in errors]
    return BoundError(seen.layer, *largest, *mean)


def horizon_scores(observations: pd.DataFrame, forecasts: pd.DataFrame, layer: str = "*") -> tuple[HorizonScore, ...]:
    """Score the recorded forecasts of ``layer`` under the present knobs; frames of one trial.

    What happened at a target step between two measurements is interpolated linearly. Targets after the last
    measurement are left out.
    """
    rows = observations[observations["layer"] == layer].sort_values("step")
    step_T, observed_T = rows["step"].to_numpy(float), rows["log_norm"].to_numpy(float)
    found = forecasts[forecasts["layer"] == layer]
    scores = []
    for horizon in sorted(found["horizon"].unique()):
        bands = _bands(forecasts, layer, int(horizon))
        if len(step_T):
            bands = bands.loc[bands["target"] <= step_T[-1]]
        if bands.empty or not len(step_T):
            continue
        came = np.interp(bands["target"], step_T, observed_T)
        started = np.interp(bands["step"], step_T, observed_T)
        inside = (bands["lower"] <= came) & (came <= bands["upper"])
        scores.append(
            HorizonScore(
                int(horizon),
                len(bands),
                float(np.abs(bands["mean"] - came).mean()),
                float(np.abs(started - came).mean()),
                float(inside.mean()),
                float((bands["upper"] - bands["lower"]).median()),
            )
        )
    return tuple(scores)


def _bands(forecasts: pd.DataFrame, layer: str, horizon: int) -> pd.DataFrame:
    """Return the finite forecasts of one layer at one horizon, with the step they are for in ``target``."""
    chosen = forecasts["layer"].eq(layer) & forecasts["horizon"].eq(horizon) & forecasts["plan"].eq("present")
    bands = forecasts.loc[chosen].sort_values("step")
    finite = np.isfinite(bands[["mean", "lower", "upper"]].to_numpy(float)).all(axis=1)
    kept: pd.DataFrame = bands.loc[finite]
    return kept.assign(target=kept["step"] + horizon)
