"""The early warning over a recorded run: what the trajectory holds is all that it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lipadvisor.forecast.warning import Alarm, DivergenceWarning
from lipadvisor.terms import Array

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["recorded_alarms"]

_HORIZON = 10  # steps, of the forecasts that are judged
_NEAR = (5, 20)  # steps ahead of a measurement at which its forecast can be judged


def recorded_alarms(
    observations: pd.DataFrame, forecasts: pd.DataFrame, warning: DivergenceWarning | None = None
) -> tuple[Alarm, ...]:
    """Say for each observation whether the run was in danger of diverging.

    ``recorded_alarms(advisor.trajectory.observations, advisor.trajectory.forecasts)`` while the training goes on, or
    with the frames of ``load_run(...)``. The first alarm that is ``raised`` begins the lead: on ramps of the learning
    rate a median of some 200 steps before the loss is lost (``lipadvisor bars divergence``). The signs were set on
    runs measured every 5 steps; measured more rarely than every 20, the forecast has no say.

    Args:
        observations: of one trial.
        forecasts: of the same.
        warning: a fresh one with other limits; by default those of the bar.

    Raises:
        ValueError: the frames are of several trials.
    """
    if "trial" in observations and observations["trial"].nunique() > 1:
        raise ValueError("recorded_alarms(observations, forecasts) must be of one trial; see Run.trial(name).")
    warning = DivergenceWarning() if warning is None else warning
    layers = observations[observations["layer"] != "*"]
    moved = (layers["lr"] * layers["update_ratio"]).groupby(layers["step"]).max().to_dict()
    network = observations[observations["layer"] == "*"].sort_values("step")
    judged = forecasts[(forecasts["layer"] == "*") & (forecasts["horizon"] == _HORIZON)]
    bands = dict(zip(judged["step"].tolist(), judged[["mean", "std"]].to_numpy(dtype=np.float64), strict=True))
    step_T = network["step"].to_numpy(dtype=np.int64)
    alarms = []
    for place, (step, log_norm, loss) in enumerate(
        zip(step_T.tolist(), network["log_norm"].tolist(), network["loss"].tolist(), strict=True)
    ):
        if step == 0:  # nothing has been trained
            continue
        ahead = _judged_in(step_T[place:])
        forecast = None
        if ahead is not None and step in bands:
            mean, std = bands[step].tolist()
            share = ahead / _HORIZON
            forecast = (step + ahead, log_norm + share * (mean - log_norm), std * share**0.5)
        given = loss if network["given"].iloc[place] and "loss" in network["given"].iloc[place].split() else None
        alarms.append(warning.update(step, given, log_norm, float(moved[step]), forecast))
    return tuple(alarms)


def _judged_in(step_T: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> int | None:
    """Return in how many steps the observation nearest to the horizon comes; None if there is none near it."""
    ahead_T: Array = step_T[1:].astype(np.float64) - float(step_T[0])
    near_T = ahead_T[(ahead_T >= _NEAR[0]) & (ahead_T <= _NEAR[1])]
    return int(near_T[np.argmin(np.abs(near_T - _HORIZON))]) if len(near_T) else None
