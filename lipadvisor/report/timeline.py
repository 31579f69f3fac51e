"""The knobs of one trial over its steps, and where the reason of the decision in force changes. No drawing here."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["Change", "Timeline", "timeline"]

_INIT = "init_scale:"  # as the applier begins what it refuses of an initialization

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Change:
    """A step from which on another reason holds."""

    step: int
    reason: str
    source: str
    lr: float
    weight_decay: float
    read: tuple[tuple[str, float], ...]  # what the decision was made from
    refused: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """Knobs of one parameter group; ``D`` recorded decisions.

    Attributes:
        init_scale: factors by which layers were rescaled before step 0.
        init_wished: those that the policy asked for in vain: in a mode that touches nothing, or refused by name.
    """

    policy: str
    mode: str
    step_D: Array
    lr_D: Array
    weight_decay_D: Array
    reason_D: tuple[str, ...]
    changes: tuple[Change, ...]
    warmup_end: int | None
    cooldown_start: int | None
    init_scale: tuple[tuple[str, float], ...]
    init_wished: tuple[tuple[str, float], ...]


def timeline(decisions: pd.DataFrame, group: int = 0) -> Timeline:
    """Return the timeline of parameter group ``group`` in the frame of one trial."""
    rows = decisions[decisions["group"].isin((group, -1))].sort_values("step", kind="stable")
    reasons = tuple(rows["reason"])
    changed = [index for index, reason in enumerate(reasons) if not index or reason != reasons[index - 1]]
    asked = _pairs(rows["init_scale"].iloc[0]) if len(rows) else ()
    refused = _refused(rows["refused"].iloc[0]) if asked else []
    done = [not any(_is_of(name, part) for part in refused) for name, _ in asked]
    return Timeline(
        policy=rows["policy"].iloc[-1] if len(rows) else "",
        mode=rows["mode"].iloc[-1] if len(rows) else "",
        step_D=rows["step"].to_numpy(float),
        lr_D=rows["lr_applied"].to_numpy(float),
        weight_decay_D=rows["weight_decay_applied"].to_numpy(float),
        reason_D=reasons,
        changes=tuple(_change(rows.iloc[index]) for index in changed),
        warmup_end=_first(rows, "warmup_ended"),
        cooldown_start=_first(rows, "cooldown_started"),
        init_scale=tuple(pair for pair, yes in zip(asked, done, strict=True) if yes),
        init_wished=tuple(pair for pair, yes in zip(asked, done, strict=True) if not yes),
    )


def _change(row: pd.Series) -> Change:
    return Change(
        int(row["step"]),
        row["reason"],
        row["source"],
        float(row["lr_applied"]),
        float(row["weight_decay_applied"]),
        _pairs(row["read"]),
        row["refused"],
    )


def _pairs(text: str) -> tuple[tuple[str, float], ...]:
    return tuple((str(name), float(value)) for name, value in json.loads(text or "{}").items() if value is not None)


def _refused(text: str) -> list[str]:
    """Return what was refused of an initialization, of all that was refused of a decision."""
    return [part for part in text.split("; ") if part.startswith(_INIT)]


def _is_of(name: str, part: str) -> bool:
    """Return whether ``part`` refuses a layer's factor: by its name, or those of all, naming none."""
    return repr(name) in part or part.startswith((f"{_INIT} not in", f"{_INIT} only before"))


def _first(rows: pd.DataFrame, flag: str) -> int | None:
    raised = rows.loc[rows[flag].astype(bool), "step"]
    return int(raised.iloc[0]) if len(raised) else None
