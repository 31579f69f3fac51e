"""What another policy would have decided over a recorded trial, beside what was decided."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lipadvisor.policies import Policy, replay
from lipadvisor.trajectory import Run, observations_from_frame

__all__ = ["replayed"]


def replayed(run: Run, policy: Policy[Any]) -> pd.DataFrame:
    """Return one row for each recorded observation and parameter group.

    Args:
        run: with the rows of one trial (``Run.trial``).
        policy: folded over the recorded observations, in order.

    Returns:
        Columns ``step, group, lr_recorded, lr_proposed, weight_decay_recorded, weight_decay_proposed, reason``;
        recorded is what was applied; a proposal is nan where the policy held the knob.

    Raises:
        ValueError: the run has no observations, or of several trials.
    """
    if run.observations.empty:
        raise ValueError(f"{run.path} has no recorded observation of this trial.")
    rows = []
    seen = observations_from_frame(run.observations, run.forecasts)
    for observation, decision in zip(seen, replay(policy, seen), strict=True):
        groups = dict.fromkeys(knobs.group for knobs in (*observation.knobs, *decision.knobs))
        for knobs in map(decision.knobs_for, groups or (0,)):
            rows.append(
                {
                    "step": decision.step,
                    "group": knobs.group,
                    "lr_proposed": knobs.lr,
                    "weight_decay_proposed": knobs.weight_decay,
                    "reason": decision.reason,
                }
            )
    proposed = pd.DataFrame(rows).astype({"lr_proposed": float, "weight_decay_proposed": float})
    recorded = run.decisions.rename(
        columns={"lr_applied": "lr_recorded", "weight_decay_applied": "weight_decay_recorded"}
    )[["step", "group", "lr_recorded", "weight_decay_recorded"]].drop_duplicates(["step", "group"], keep="last")
    joined = proposed.merge(recorded, on=["step", "group"], how="left")
    names = ["step", "group", "lr_recorded", "lr_proposed", "weight_decay_recorded", "weight_decay_proposed", "reason"]
    return joined[names].replace({None: np.nan})
