"""From recorded frames back to the contract's objects, so that another policy can be asked what it would have done."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import Any

import pandas as pd

from lipadvisor.policies.contract import Band, Knobs, Layer, Observation, Status, from_json

__all__ = ["observations_from_frame"]

_LAYER_NUMBERS = (
    *("composition_weight", "log_norm", "gap", "log_gain"),
    *("drift", "diffusion", "noise_curvature", "finite_step", "decay", "update_ratio"),
)
_LATER_NUMBERS = ("frobenius_ratio", "row_ratio")  # runs recorded before there were such columns lack them


def observations_from_frame(
    observations: pd.DataFrame, forecasts: pd.DataFrame | None = None
) -> tuple[Observation, ...]:
    """Rebuild the observations of one trial, ascending in steps, exactly as they were recorded.

    Args:
        observations: The frame ``observations`` of one trial.
        forecasts: Its frame ``forecasts``; the bands are empty without it.

    Raises:
        ValueError: a column is missing, or the frame holds several trials, or a step has no row ``"*"``.
    """
    if "trial" in observations and observations["trial"].nunique() > 1:
        trials = sorted(observations["trial"].unique())
        raise ValueError(f"observations must be of one trial, got {len(trials)}: {trials[:5]}.")
    missing = [name for name in (*_LAYER_NUMBERS, "step", "layer", "knobs", "given") if name not in observations]
    if missing:
        raise ValueError(f"observations must have the column {missing[0]!r}, got {list(observations.columns)}.")
    bands = _bands_by_step(forecasts)
    rows_by_step: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in _records(observations):
        rows_by_step[row["step"]].append(row)
    return tuple(_observation(step, rows_by_step[step], bands.get(step, ())) for step in sorted(rows_by_step))


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    columns = {name: frame[name].tolist() for name in frame.columns}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _bands_by_step(forecasts: pd.DataFrame | None) -> dict[int, tuple[Band, ...]]:
    if forecasts is None or forecasts.empty:
        return {}
    found: dict[int, dict[int, Band]] = defaultdict(dict)
    for row in _records(forecasts[(forecasts["layer"] == "*") & (forecasts["plan"] == "present")]):
        numbers = (row["mean"], row["std"], row["lower"], row["upper"])
        found[row["step"]][row["horizon"]] = Band(row["horizon"], *numbers, Status(row["status"]))
    return {step: tuple(bands[horizon] for horizon in sorted(bands)) for step, bands in found.items()}


def _observation(step: int, rows: list[dict[str, Any]], bands: tuple[Band, ...]) -> Observation:
    networks = [row for row in rows if row["layer"] == "*"]
    if len(networks) != 1:
        raise ValueError(f"observations must have one row '*' for each step, got {len(networks)} for step {step}.")
    whole = networks[0]
    given = whole["given"].split()
    return Observation(
        step=step,
        total_steps=_whole_number(whole["total_steps"]),
        tau=whole["tau"],
        optimizer=whole["optimizer"],
        momentum=whole["momentum"],
        knobs=tuple(from_json(Knobs, item) for item in json.loads(whole["knobs"])),
        network=_layer(whole),
        layers=tuple(_layer(row) for row in rows if row["layer"] != "*"),
        bands=bands,
        loss=whole["loss"] if "loss" in given else None,
        validation_loss=whole["validation_loss"] if "validation_loss" in given else None,
        validation_step=_whole_number(whole["validation_step"]),
        measured_step=whole["measured_step"],
        overhead=whole["overhead"],
        status=Status(whole["step_status"]),
    )


def _layer(row: dict[str, Any]) -> Layer:
    return Layer(
        name=row["layer"],
        kind=row["kind"],
        shape=tuple(int(size) for size in row["shape"].split("x") if size),
        group=row["group"],
        **{name: row[name] for name in _LAYER_NUMBERS},
        status=Status(row["status"]),
        **{name: row.get(name, 0.0) for name in _LATER_NUMBERS},
    )


def _whole_number(value: Any) -> int | None:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    return int(value)
