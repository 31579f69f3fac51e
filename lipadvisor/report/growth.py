"""Where the growth of one trial's bound came from, and when the early warning was raised. No drawing here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lipadvisor.dynamics import PARTS, attribute_recorded, attributed_growth
from lipadvisor.forecast import LEAD_STEPS
from lipadvisor.report.prediction import believable

__all__ = ["Danger", "Growth", "Stretch", "dangers", "growth"]

Array = NDArray[np.float64]
_LATE_SHARE = 0.25  # of the steps: the second column of the table


@dataclass(frozen=True, slots=True)
class Growth:
    """Parts of the network's growth, nats; ``T`` observations."""

    step_T: Array
    growth_T: Array
    parts_T: dict[str, Array]  # since the first observation
    last: int  # steps of the second table
    rows: tuple[tuple[str, float, float, float, float], ...]  # part, nats, share; the same of the last steps


@dataclass(frozen=True, slots=True)
class Stretch:
    """Observations in a row at which the early warning was raised."""

    first: int  # step
    last: int
    signs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Danger:
    """What the early warning said in one trial."""

    stretches: tuple[Stretch, ...]
    lead: tuple[int, int, int]  # least, median, largest number of steps it came before a loss was lost, on ramps
    recorded: bool  # False in runs recorded before there was one


def growth(observations: pd.DataFrame) -> Growth | None:
    """Return the parts of the growth in the frame of one trial; ``None`` with fewer than two observations."""
    table = attributed_growth(observations) if (observations["layer"] == "*").sum() > 1 else None
    if table is None:
        return None
    steps = table["step"].to_numpy(float)
    last = max(1, round(_LATE_SHARE * (steps[-1] - steps[0])))
    whole, late = attribute_recorded(observations), attribute_recorded(observations, last=last)
    shares = whole.shares(), late.shares()
    rows = [(name, whole.parts[name], shares[0][name], late.parts[name], shares[1][name]) for name in PARTS]
    rows.append(("growth", whole.growth, 1.0, late.growth, 1.0))
    drawn = {name: believable(table[name].to_numpy(float)) for name in ("growth", *PARTS)}
    return Growth(steps, drawn.pop("growth"), drawn, last, tuple(rows))


def dangers(observations: pd.DataFrame) -> Danger:
    """Return the stretches of one trial at which the early warning was raised, in order."""
    network = observations[observations["layer"] == "*"].sort_values("step")
    if "alarm" not in network or network["alarm"].isna().all():
        return Danger((), LEAD_STEPS, False)
    found: list[Stretch] = []
    going = False
    for step, signs in zip(network["step"].tolist(), network["alarm"].fillna("").tolist(), strict=True):
        if signs and going:
            both = dict.fromkeys((*found[-1].signs, *signs.split()))
            found[-1] = Stretch(found[-1].first, int(step), tuple(both))
        elif signs:
            found.append(Stretch(int(step), int(step), tuple(signs.split())))
        going = bool(signs)
    return Danger(tuple(found), LEAD_STEPS, True)
