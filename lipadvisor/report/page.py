"""Gathers what a run's page shows and renders it to one file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from lipadvisor.report.figure_comparison import draw_comparison
from lipadvisor.report.figure_curves import draw_curves
from lipadvisor.report.figure_forecast import draw_forecast
from lipadvisor.report.figure_growth import draw_growth
from lipadvisor.report.figure_knobs import draw_knobs
from lipadvisor.report.figure_prediction import draw_prediction
from lipadvisor.report.growth import dangers, growth
from lipadvisor.report.prediction import bound_error, horizon_scores, track
from lipadvisor.report.timeline import timeline
from lipadvisor.trajectory import Run, load_run, read_json, write_text

__all__ = ["COMPARISON_FILE", "REPORT_FILE", "endangered_trials", "write_report"]

COMPARISON_FILE = "comparison.json"
REPORT_FILE = "report.html"
_SHOWN_AT_MOST = 4  # trials with figures of their own, in a run without a comparison
_CHANGES_AT_MOST = 25  # rows of the table of reasons; the figure shows them all
_BAND_HORIZON = 10
_ALARMS_AT_MOST = 10  # stretches in the sentence; the figure shows them all


def write_report(run: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write the report of a run, finished or not, and return its path.

    Args:
        run: the run's directory.
        out: the file to write; ``report.html`` in the run's directory by default.

    Raises:
        FileNotFoundError: ``run`` is not the directory of a run.
        ValueError: a file of the run is damaged; names it.
        OSError: the file cannot be written.
    """
    directory = Path(run)
    read = load_run(directory)
    if not read.trials:
        raise ValueError(f"{directory} holds no trial: nothing has been recorded there yet.")
    comparison = directory / COMPARISON_FILE
    facts = read_json(comparison) if comparison.exists() else {"workloads": []}
    return write_text(directory / REPORT_FILE if out is None else Path(out), _render(read, facts))


def _render(run: Run, comparison: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(number=_number, percent=_percent)
    workloads = [_workload(run, facts) for facts in comparison["workloads"]]
    alone = [] if workloads else [_trial(run, name) for name in run.trials[:_SHOWN_AT_MOST]]
    return environment.get_template("page.html").render(
        title=run.meta["run"].get("title", f"Run {run.path.name}"),
        facts=run.meta["run"],
        trials=len(run.trials),
        rows=len(run.observations),
        lost=sum(facts["lost_batches"] for facts in run.meta["trials"].values()),
        sources=run.decisions["source"].value_counts().to_dict(),
        overhead=_overhead(run),
        endangered=endangered_trials(run),
        workloads=workloads,
        alone=alone,
    )


def endangered_trials(run: Run) -> tuple[str, ...]:
    """Return the trials in which the early warning of divergence was raised."""
    observations = run.observations
    if "alarm" not in observations:
        return ()
    return tuple(sorted(observations.loc[observations["alarm"].fillna("") != "", "trial"].unique()))


def _workload(run: Run, facts: Mapping[str, Any]) -> dict[str, Any]:
    name = facts["name"]
    repeated = [row for row in facts["arms"] if row["test_losses"]]
    shown = facts["shown"] if facts["shown"] in run.meta["trials"] else None
    untuned = [row for row in facts["arms"] if not row["searched"]]
    audit = run.path / f"audit-{name}.html"  # a fragment that the demo leaves, made by lipadvisor.modules
    return {
        **facts,
        "untuned": untuned[0] if untuned else None,
        "comparison_figure": Markup(draw_comparison(repeated, f"{name}-comparison")) if repeated else None,
        "curves_figure": Markup(draw_curves(repeated, f"{name}-curves")) if repeated else None,
        "trial": _trial(run, shown) if shown else None,
        "audit": Markup(audit.read_text(encoding="utf-8")) if audit.exists() else None,
    }


def _trial(run: Run, name: str) -> dict[str, Any]:
    """Return figures and numbers of one trial; without any measured step only its name."""
    one = run.trial(name)
    observations = one.observations
    if observations.empty or one.decisions.empty:
        return {"name": name, "measured": 0}
    layers = [layer for layer in dict.fromkeys(observations["layer"]) if layer != "*"]
    tracks = [track(observations, one.forecasts, layer, _BAND_HORIZON) for layer in ("*", *layers)]
    scores = horizon_scores(observations, one.forecasts)
    knobs = timeline(one.decisions)
    danger, grown = dangers(observations), growth(observations)
    stretches = [(stretch.first, stretch.last) for stretch in danger.stretches]
    network = observations[observations["layer"] == "*"].sort_values("step")
    return {
        "name": name,
        "policy": knobs.policy,
        "measured": len(network),
        "steps": int(network["step"].iloc[-1]),
        "overhead": float(network["overhead"].iloc[-1]),
        "status": network["step_status"].value_counts().to_dict(),
        "errors": [bound_error(seen) for seen in tracks],
        "scores": scores,
        "knobs": knobs,
        "changes": knobs.changes[:_CHANGES_AT_MOST],
        "prediction_figure": Markup(draw_prediction(tracks, f"{name}-prediction", stretches)),
        "danger": danger,
        "dangers_shown": danger.stretches[:_ALARMS_AT_MOST],
        "growth": grown,
        "growth_figure": Markup(draw_growth(grown, f"{name}-growth")) if grown is not None else None,
        "knobs_figure": Markup(draw_knobs(knobs, f"{name}-knobs")),
        "forecast_figure": Markup(draw_forecast(scores, f"{name}-forecast")) if scores else None,
        "band_horizon": _BAND_HORIZON,
    }


def _overhead(run: Run) -> dict[str, float] | None:
    """Return median and largest share of a trial's time that measuring took, over the trials."""
    network = run.observations[run.observations["layer"] == "*"].sort_values("step")
    last = network.groupby("trial")["overhead"].last().to_numpy(float)
    last = last[np.isfinite(last)]
    return {"median": float(np.median(last)), "largest": float(last.max())} if len(last) else None


def _number(value: float | None, digits: int = 3) -> str:
    """Format with ``digits`` significant digits; a dash for what is missing."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{digits - 1}e}" if decimals > 6 or decimals < -4 else f"{value:.{max(decimals, 0)}f}"


def _percent(value: float | None, digits: int = 1) -> str:
    """Format a share as a percentage; a dash for what is missing."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"
