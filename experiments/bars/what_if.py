"""Bar: forecasts under a plan that differs from the past, against what then happened.

Each run is at constant lr until the change; the forecast is made just before it, with the change as its plan. The
slope, smoothed as well as hindsight allows for all plans together, knows no plan.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lipadvisor.dynamics import coefficients
from lipadvisor.experiments.bars import Bar, BarSettings
from lipadvisor.experiments.bars.networks import NETWORKS
from lipadvisor.experiments.bars.recorded import INTERVAL
from lipadvisor.experiments.bars.schedules import Pieces
from lipadvisor.experiments.bars.scoring import HORIZONS, SMOOTHINGS
from lipadvisor.experiments.reproduce.images import load_images
from lipadvisor.experiments.reproduce.run_log import RunLog, kept_run
from lipadvisor.experiments.reproduce.training import OPTIMIZERS, Recipe
from lipadvisor.forecast import Forecaster
from lipadvisor.policies import Status

__all__ = ["PLANS", "run"]

# name -> (factor on the learning rate, what decay takes off a weight per step: that of the nine settings)
PLANS = {"lr / 4": (0.25, 0.0), "decay on": (1.0, 2.5e-4), "lr x 2": (2.0, 0.0), "lr x 4": (4.0, 0.0)}
_LIMIT = {"lr / 4": (0.10, 0.15), "decay on": (0.10, 0.15), "lr x 2": (0.55, 0.55), "lr x 4": (0.55, 0.55)}
_CHANGE_AT = 600
_TRIPPED = 0.5  # nats: a plan destabilised a run whose loss rose by more, over the last steps


def run(settings: BarSettings) -> Bar:
    """Measure the bar."""
    images = load_images("digits")
    networks = ("mlp",) if settings.quick else ("mlp", "residual", "transformer")
    change = 150 if settings.quick else _CHANGE_AT
    rows: list[dict[str, Any]] = []
    for network in networks:
        for optimizer in OPTIMIZERS:
            for plan, (factor, shrink) in PLANS.items():
                recipe = Recipe(
                    optimizer,
                    change + max(HORIZONS) + INTERVAL,
                    interval=INTERVAL,
                    seed=settings.seed,
                    schedule=Pieces(((0, 1.0), (change, factor))),
                    shrink_schedule=Pieces(((0, 0.0), (change, shrink))),
                )
                slug = plan.replace(" ", "").replace("/", "-over-")
                path = settings.out / "runs" / f"{network}-{optimizer}-{slug}-{change}.npz"
                log = kept_run(path, recipe, images, NETWORKS[network], settings.progress, network)
                lr = recipe.base_lr * factor
                rows.append({"run": path.stem, "plan": plan, **_scored(log, change, lr, shrink / lr)})
    return _bar(rows)


def _scored(log: RunLog, change: int, lr: float, weight_decay: float) -> dict[str, Any]:
    """Return errors of the forecast made before step ``change``, and of every slope, at the horizons."""
    forecaster: Forecaster | None = None
    slope_G, mass_G = np.zeros(len(SMOOTHINGS)), np.zeros(len(SMOOTHINGS))
    gain_G = 1.0 - (1.0 - np.array(SMOOTHINGS)) ** INTERVAL
    before = np.nan
    level = {int(step): z for step, z in zip(log.array("step"), log.array("network_log_norm"), strict=True)}
    for terms in log.terms():
        if terms.step >= change:
            break
        forecaster = forecaster or Forecaster(terms.names, terms.composition_L, terms.optimizer, terms.momentum)
        forecaster.update(terms, coefficients(terms))
        now = terms.network_log_norm + float(terms.composition_L @ terms.change_L)
        if np.isfinite(before):
            slope_G += gain_G * ((now - before) / INTERVAL - slope_G)
            mass_G += gain_G * (1.0 - mass_G)
        before = now
    assert forecaster is not None
    start = forecaster.step
    reach = change + max(HORIZONS) - start
    old = int(change - start)  # steps that still have the old knobs
    lr_h = np.full(reach, lr)
    decay_h = np.full(reach, weight_decay)
    lr_h[:old], decay_h[:old] = float(log.columns["lr_L"][0][0]), 0.0
    made = forecaster.forecast(reach, {"lr": lr_h, "weight_decay": decay_h})
    errors, slopes = {}, {}
    for horizon in HORIZONS:
        ahead = change + horizon - start
        outcome = level.get(change + horizon, float("nan"))
        errors[str(horizon)] = float(abs(made.network.mean[ahead - 1] - outcome))
        slopes[str(horizon)] = np.abs(before + slope_G / mass_G * ahead - outcome).tolist()
    tail = np.array(log.loss_T[-50:])
    risen = float(np.mean(tail) - np.mean(log.loss_T[change - 50 : change]))
    return {
        "errors": errors,
        "slopes": slopes,
        "refused": made.status == Status.UNSTABLE,
        "destabilised": not risen <= _TRIPPED,
    }


def _bar(rows: list[dict[str, Any]]) -> Bar:
    checks: list[tuple[str, float, str, bool]] = []
    figures: dict[str, Any] = {"runs": rows}
    lines = [f"{'plan':10} {'runs':>5} {'refused':>8} {'unstable':>9} " + " ".join(f"{h:>7}" for h in HORIZONS)]
    for plan, limits in _LIMIT.items():
        own = [row for row in rows if row["plan"] == plan]
        scored = [row for row in own if not row["refused"] and not row["destabilised"]]
        cells = []
        for horizon in HORIZONS:
            ratio = _ratio(scored, horizon)
            cells.append(f"{ratio:7.3f}")
            limit = limits[horizon == max(HORIZONS)]
            checks.append(
                (f"error over the slope's, {plan}, {horizon} steps", ratio, f"at most {limit}", ratio <= limit)
            )
            figures[f"{plan}, {horizon}"] = ratio
        refused, unstable = sum(row["refused"] for row in own), sum(row["destabilised"] for row in own)
        lines.append(f"{plan:10} {len(own):5d} {refused:8d} {unstable:9d} " + " ".join(cells))
    fallen = [row for row in rows if row["destabilised"]]
    if fallen:
        share = float(np.mean([row["refused"] for row in fallen]))
        checks.append(("share of destabilising plans answered 'unstable'", share, "1", share == 1.0))
    return Bar("what-if", tuple(checks), figures, "\n".join(lines))


def _ratio(rows: list[dict[str, Any]], horizon: int) -> float:
    """Return the summed error over that of the slope whose smoothing does best on these runs."""
    if not rows:
        return float("nan")
    slope = np.sum([row["slopes"][str(horizon)] for row in rows], axis=0).min()
    return float(sum(row["errors"][str(horizon)] for row in rows) / slope)
