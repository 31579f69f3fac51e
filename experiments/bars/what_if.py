"""Bar: forecasts under a plan that differs from the past, against what replicas then did under it.

Each run is at constant lr; at a measured step it branches, and under every plan replicas go on with batches of their
own. The forecast is made at the branching, from the one run before it, with the change as its plan. The slope,
smoothed as well as hindsight allows for all runs of a plan together, knows no plan. Beside the error stands its floor:
that of a forecaster who knows the replicas' mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from lipadvisor.dynamics import coefficients
from lipadvisor.experiments.bars import Bar, BarSettings
from lipadvisor.experiments.bars.branches import Branch, Outcome, branch
from lipadvisor.experiments.bars.recorded import INTERVAL
from lipadvisor.experiments.bars.scoring import HORIZONS, SMOOTHINGS
from lipadvisor.experiments.reproduce.images import load_images
from lipadvisor.experiments.reproduce.run_log import RunLog
from lipadvisor.experiments.reproduce.training import OPTIMIZERS
from lipadvisor.forecast import Forecaster
from lipadvisor.policies import Status
from lipadvisor.terms import Array

__all__ = ["PLANS", "run"]

# name -> (factor on the learning rate, what decay takes off a weight per step: that of the nine settings)
PLANS = {"lr / 4": (0.25, 0.0), "decay on": (1.0, 2.5e-4), "lr x 2": (2.0, 0.0), "lr x 4": (4.0, 0.0)}
_LIMIT = {"lr / 4": (0.10, 0.15), "decay on": (0.10, 0.15), "lr x 2": (0.55, 0.55), "lr x 4": (0.55, 0.55)}
_AT = (601, 1001)  # steps before the branching
_TRIPPED = 0.5  # nats: a plan destabilised a run whose loss, over the replicas, rose by more; or a replica blew up
_COUNT, _FEW = 16, 8  # replicas; of the Transformer, whose steps cost most


def run(settings: BarSettings) -> Bar:
    """Measure the bar."""
    images = load_images("digits")
    networks = ("mlp",) if settings.quick else ("mlp", "residual", "transformer")
    starts: Iterable[int] = (151,) if settings.quick else _AT
    horizons = HORIZONS[:2] if settings.quick else HORIZONS
    rows: list[dict[str, Any]] = []
    for network in networks:
        for optimizer in OPTIMIZERS:
            for at in starts:
                count = _FEW if network == "transformer" or settings.quick else _COUNT
                found = branch(settings, images, network, optimizer, at, PLANS, horizons, count)
                rows += [{"run": f"{network}-{optimizer}-{at}", **row} for row in _scored(found, at, horizons)]
    return _bar(rows, horizons)


def _learned(log: RunLog) -> tuple[Forecaster, float, Array]:
    """Replay a run; return its forecaster, the last level and every smoothed slope (nats per step)."""
    forecaster: Forecaster | None = None
    slope_G, mass_G = np.zeros(len(SMOOTHINGS)), np.zeros(len(SMOOTHINGS))
    gain_G = 1.0 - (1.0 - np.array(SMOOTHINGS)) ** INTERVAL
    before = np.nan
    for terms in log.terms():
        forecaster = forecaster or Forecaster(terms.names, terms.composition_L, terms.optimizer, terms.momentum)
        forecaster.update(terms, coefficients(terms))
        now = terms.network_log_norm + float(terms.composition_L @ terms.change_L)
        if np.isfinite(before):
            slope_G += gain_G * ((now - before) / INTERVAL - slope_G)
            mass_G += gain_G * (1.0 - mass_G)
        before = now
    assert forecaster is not None
    return forecaster, before, slope_G / mass_G


def _scored(found: Branch, at: int, horizons: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return, for every plan, the mean errors of forecast and slopes over the replicas, and of the replicas' mean."""
    forecaster, level, slope_G = _learned(found.log)
    assert forecaster.step == at
    loss = float(np.mean(found.log.loss_T[-50:]))
    rows = []
    for plan, (factor, shrink) in PLANS.items():
        lr, outcome = found.lr * factor, found.outcomes[plan]
        made = forecaster.forecast(max(horizons), {"lr": lr, "weight_decay": shrink / lr})
        risen = float(np.mean(outcome.loss_R)) - loss
        row: dict[str, Any] = {"plan": plan, "refused": made.status == Status.UNSTABLE}
        row["destabilised"] = not risen <= _TRIPPED or not all(np.isfinite(v).all() for v in outcome.level_hR.values())
        row |= {str(h): _errors(outcome, h, float(made.network.mean[h - 1]), level + slope_G * h) for h in horizons}
        rows.append(row)
    return rows


def _errors(outcome: Outcome, horizon: int, mean: float, slope_G: Array) -> dict[str, Any]:
    level_R = outcome.level_hR[horizon]
    centre = float(level_R.mean())
    # The mean of R replicas is closer to each of them than the true mean is.
    floor = float(np.abs(level_R - centre).mean()) * float(np.sqrt(len(level_R) / (len(level_R) - 1)))
    return {
        "error": float(np.abs(level_R - mean).mean()),
        "floor": floor,
        "slopes": np.abs(level_R[:, None] - slope_G).mean(0).tolist(),
        "mean_error": abs(mean - centre),
        "mean_slopes": np.abs(slope_G - centre).tolist(),
    }


def _bar(rows: list[dict[str, Any]], horizons: tuple[int, ...]) -> Bar:
    checks: list[tuple[str, float, str, bool]] = []
    figures: dict[str, Any] = {"runs": rows}
    lines = [
        f"{'plan':10} {'steps':>5} {'runs':>5} {'refused':>8} {'unstable':>9} {'error':>7} {'floor':>7} "
        f"{'of sums':>8} {'of the mean':>12}"
    ]
    for plan, limits in _LIMIT.items():
        own = [row for row in rows if row["plan"] == plan]
        scored = [row for row in own if not row["refused"] and not row["destabilised"]]
        refused, unstable = sum(row["refused"] for row in own), sum(row["destabilised"] for row in own)
        for horizon in horizons:
            found = _ratios([row[str(horizon)] for row in scored])
            limit = limits[horizon == max(HORIZONS)]
            what = f"error over the slope's, {plan}, {horizon} steps"
            checks.append((what, found["error"], f"at most {limit}", found["error"] <= limit))
            figures[f"{plan}, {horizon}"] = found
            lines.append(
                f"{plan:10} {horizon:5d} {len(own):5d} {refused:8d} {unstable:9d} {found['error']:7.3f} "
                f"{found['floor']:7.3f} {found['sums']:8.3f} {found['mean']:12.3f}"
            )
    fallen = [row for row in rows if row["destabilised"]]
    if fallen:
        share = float(np.mean([row["refused"] for row in fallen]))
        checks.append(("share of destabilising plans answered 'unstable'", share, "1", share == 1.0))
    lines.append(
        "error, floor: geometric means over runs, over the best slope's; of the mean: against the replicas' mean"
    )
    return Bar("what-if", tuple(checks), figures, "\n".join(lines))


def _ratios(cells: list[dict[str, Any]]) -> dict[str, float]:
    """Return errors over those of the slope whose smoothing does best on these runs.

    ``error`` and ``floor`` are geometric means over the runs, ``sums`` and ``mean`` ratios of sums: of all errors, and
    of the distances from the replicas' mean.
    """
    if not cells:
        return dict.fromkeys(("error", "floor", "sums", "mean"), float("nan"))
    slope_RG = np.array([cell["slopes"] for cell in cells])
    slope_R = slope_RG[:, np.log(slope_RG).mean(0).argmin()]
    error_R, floor_R = (np.array([cell[name] for cell in cells]) for name in ("error", "floor"))
    centred = np.array([cell["mean_slopes"] for cell in cells]).sum(0).min()
    return {
        "error": float(np.exp(np.log(error_R / slope_R).mean())),
        "floor": float(np.exp(np.log(floor_R / slope_R).mean())),
        "sums": float(error_R.sum() / slope_RG.sum(0).min()),
        "mean": float(sum(cell["mean_error"] for cell in cells) / centred),
    }
