"""The early warning over a recorded run: what the trajectory holds is all that it needs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from lipadvisor.forecast.wanted import wanted_update
from lipadvisor.forecast.warning import Alarm, DivergenceWarning

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["recorded_alarms"]

_HORIZON = 10  # steps, of the forecasts that are judged


def recorded_alarms(
    observations: pd.DataFrame,
    forecasts: pd.DataFrame,
    warning: DivergenceWarning | None = None,
    decisions: pd.DataFrame | None = None,
) -> tuple[Alarm, ...]:
    """Say for each observation whether the run was in danger of diverging.

    An ``Advisor`` does this while it runs, and records it in the column ``alarm``; this is for other limits, and for
    runs recorded without. The losses between the observations are not recorded: where these are far apart, the loss is
    smoothed less than in the run. Measured more rarely than every 20 steps, the forecast has no say.

    Args:
        observations: of one trial, as ``Advisor.trajectory`` or ``load_run(...)`` has them.
        forecasts: of the same.
        warning: a fresh one with other limits; by default those of the bar.
        decisions: of the same, where the policy was in charge: an update as large as it wanted is no sign then.

    Raises:
        ValueError: the frames are of several trials.
    """
    if "trial" in observations and observations["trial"].nunique() > 1:
        raise ValueError("recorded_alarms(observations, forecasts) must be of one trial; see Run.trial(name).")
    warning = DivergenceWarning() if warning is None else warning
    layers = observations[(observations["layer"] != "*") & (observations["composition_weight"] != 0.0)]
    moved = (layers["lr"] * layers["update_ratio"]).groupby(layers["step"]).max().to_dict()
    network = observations[observations["layer"] == "*"].sort_values("step")
    judged = forecasts[(forecasts["layer"] == "*") & (forecasts["horizon"] == _HORIZON)]
    bands = dict(zip(judged["step"].tolist(), judged[["mean", "std"]].to_numpy(dtype=np.float64).tolist(), strict=True))
    wishes = _wishes(decisions)
    alarms: list[Alarm] = []
    wanted: float | None = None
    columns = (network[name].tolist() for name in ("step", "log_norm", "loss", "given"))
    for step, log_norm, loss, given in zip(*columns, strict=True):
        while wishes and wishes[0][0] < step:  # a decision at n is in force from the step after n on
            wanted = wishes.pop(0)[1]
        if step == 0:  # nothing has been trained
            continue
        forecast = (step + _HORIZON, *bands[step]) if step in bands else None
        told = loss if given and "loss" in given.split() else None
        alarms.append(warning.update(step, told, log_norm, float(moved[step]), forecast, wanted))
    return tuple(alarms)


def _wishes(decisions: pd.DataFrame | None) -> list[tuple[int, float | None]]:
    """Return step and wanted update of each decision that was applied, ascending."""
    if decisions is None or decisions.empty:
        return []
    applied = decisions[decisions["mode"] == "takeover"].drop_duplicates("step", keep="last").sort_values("step")
    return [
        (int(step), wanted_update(json.loads(read or "{}").items()))
        for step, read in zip(applied["step"].tolist(), applied["read"].tolist(), strict=True)
    ]
