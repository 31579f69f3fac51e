"""Bar: forecasts of the network's log-norm over recorded runs, against the best smoothed slope in hindsight."""

from __future__ import annotations

from typing import Any

import numpy as np

from lipadvisor.experiments.bars import Bar, BarSettings
from lipadvisor.experiments.bars.recorded import recorded_runs
from lipadvisor.experiments.bars.scoring import HORIZONS, RunScore, score_run

__all__ = ["run"]

_MAE = {10: 0.95, 50: 0.80, 200: 0.60}
_CRPS = {10: 0.95, 50: 0.75, 200: 0.55}
_CHANGED = {10: 0.4, 50: 0.3, 200: 0.3}
_COVERAGE = {10: (0.87, 0.93), 50: (0.87, 0.93), 200: (0.84, 0.95)}
_LEAST_COVERAGE = {10: 0.80, 50: 0.80, 200: 0.65}
_CONSTANT, _ANY = 1.05, 1.2


def run(settings: BarSettings) -> Bar:
    """Measure the bar."""
    scored: dict[str, tuple[str, dict[int, RunScore]]] = {}
    for one in recorded_runs(settings):
        scored[one.name] = (one.schedule, score_run(one))
        settings.progress(f"{one.name}: scored")
    checks: list[tuple[str, float, str, bool]] = []
    figures: dict[str, Any] = {}
    table = [
        f"{'steps':>5} {'MAE':>6} {'constant':>8} {'worst run':>9} {'changes':>8} {'of sums':>8} {'no rise':>8} "
        f"{'CRPS':>6} {'coverage':>8} {'least':>6} {'forecasts':>9}"
    ]
    for horizon in HORIZONS:
        found = _pooled(scored, horizon)
        figures[str(horizon)] = found
        table.append(
            f"{horizon:5d} {found['mae']:6.2f} {found['constant']:8.2f} {found['worst']:9.2f} {found['changed']:8.2f} "
            f"{found['changed_of_sums']:8.2f} {found['changed_without_rises']:8.2f} "
            f"{found['crps']:6.2f} {found['coverage']:8.3f} {found['least_coverage']:6.2f} {found['n']:9.0f}"
        )
        checks += _checks(horizon, found)
    table.append(f"ratios to the best slope in hindsight, geometric means over {len(scored)} runs")
    figures["runs"] = {
        name: {str(h): score.ratios() for h, score in scores.items()} for name, (_, scores) in scored.items()
    }
    table += _rows(figures["runs"])
    return Bar("forecast", tuple(checks), figures, "\n".join(table))


def _pooled(scored: dict[str, tuple[str, dict[int, RunScore]]], horizon: int) -> dict[str, float]:
    whole = {name: scores[horizon].ratios() for name, (_, scores) in scored.items() if horizon in scores}
    constant = [whole[name]["mae_ratio"] for name, (schedule, _) in scored.items() if schedule == "constant"]
    hits = np.concatenate([scores[horizon].hit_N for _, scores in scored.values() if horizon in scores])
    across = _across(scored, horizon)
    return {
        "mae": _mean([one["mae_ratio"] for one in whole.values()]),
        "mae_of_sums": sum(one["mae"] for one in whole.values()) / sum(one["mae_slope"] for one in whole.values()),
        "constant": _mean(constant),
        "worst": max(one["mae_ratio"] for one in whole.values()),
        "changed": across["ratio"],
        "changed_of_sums": across["sums"],
        "changed_windows": across["windows"],
        "changed_without_rises": _across(scored, horizon, "rise")["ratio"],
        "crps": _mean([one["crps_ratio"] for one in whole.values()]),
        "coverage": float(hits.mean()),
        "least_coverage": min(one["coverage"] for one in whole.values()),
        "n": float(len(hits)),
    }


def _across(scored: dict[str, tuple[str, dict[int, RunScore]]], horizon: int, leave_out: str = "") -> dict[str, float]:
    """Return errors over those of each run's best slope, in windows across a change of lr or decay.

    ``ratio`` is the geometric mean over the runs, as everywhere here; ``sums`` the ratio of the summed errors, which
    the runs that move most decide.

    Args:
        scored: schedule and scores of each run.
        horizon: steps ahead.
        leave_out: a schedule whose runs do not count.
    """
    found = [
        scores[horizon].ratios(scores[horizon].changed_N)
        for schedule, scores in scored.values()
        if horizon in scores and schedule != leave_out
    ]
    found = [one for one in found if one["n"] > 0]
    if not found:
        return {"ratio": float("nan"), "sums": float("nan"), "windows": 0.0}
    sums = sum(one["n"] * one["mae"] for one in found) / sum(one["n"] * one["mae_slope"] for one in found)
    return {
        "ratio": _mean([one["mae_ratio"] for one in found]),
        "sums": sums,
        "windows": sum(one["n"] for one in found),
    }


def _mean(ratios: list[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios)))) if ratios else float("nan")


def _checks(horizon: int, found: dict[str, float]) -> list[tuple[str, float, str, bool]]:
    low, high = _COVERAGE[horizon]
    upper = [
        ("MAE over the best slope's", "mae", _MAE[horizon]),
        ("the same, constant lr alone", "constant", _CONSTANT),
        ("the same, worst run", "worst", _ANY),
        ("the same, windows across a change", "changed", _CHANGED[horizon]),
        ("CRPS over the best slope's", "crps", _CRPS[horizon]),
    ]
    rows = [(f"{w}, {horizon} steps", found[k], f"at most {limit}", found[k] <= limit) for w, k, limit in upper]
    coverage, least = found["coverage"], found["least_coverage"]
    rows.append((f"coverage of 90 %, {horizon} steps", coverage, f"{low} to {high}", low <= coverage <= high))
    floor = _LEAST_COVERAGE[horizon]
    rows.append((f"coverage of the worst run, {horizon} steps", least, f"at least {floor}", least >= floor))
    return rows


def _rows(runs: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    lines = [f"{'run':28} " + " ".join(f"{f'MAE {h}':>8} {f'cov {h}':>8}" for h in HORIZONS)]
    for name, own in runs.items():
        cells = [own.get(str(h), {}) for h in HORIZONS]
        nan = float("nan")
        line = " ".join(f"{c.get('mae_ratio', nan):8.2f} {c.get('coverage', nan):8.2f}" for c in cells)
        lines.append(f"{name:28} {line}")
    return lines
