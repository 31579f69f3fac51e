"""Bar: forecasts under a plan that differs from the past, against what replicas then did under it.

Each run is at constant lr; at a measured step it branches, and under every plan replicas go on with batches of their
own. The forecast is made at the branching, from the one run before it, with the change as its plan.

A what-if asks for the path that a plan leads to be expected: the error is the distance from the replicas' mean. A
single replica's own noise, which at ten steps is as large as the effect, is no fault of the forecast; the errors
against single replicas stand beside, with their floor, that of a forecaster who knows the replicas' mean. The mean of
some replicas is not quite the expected one: that is left in, to the forecast's disadvantage. Beside it stands the root
mean square without it, from the product of the errors against one half of the replicas and against the other: their
noises are independent.

The slope knows no plan. Its smoothing is the best in hindsight for each run and horizon over the run's own windows,
as in the bar ``forecast``. Beside it stands the one that was best for all runs of a plan together: under a rise a
memory of hundreds of steps remembers a growth that happened to be as fast.

Rehearsed forecasts (``lipadvisor.rehearse``) know what a few replicas did in the first steps: here some of those that
stop there, in turns, against the mean of all the others. Their own verdict, that a replica is lost, is counted beside:
how often of plans that went well to the last horizon, and how often of those that destabilised.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lipadvisor.experiments.bars import Bar, BarSettings
from lipadvisor.experiments.bars.branches import Branch, Walk, branch
from lipadvisor.experiments.bars.networks import NETWORKS
from lipadvisor.experiments.bars.recorded import INTERVAL
from lipadvisor.experiments.bars.scoring import HORIZONS, SMOOTHINGS
from lipadvisor.experiments.bars.trying import REPLICAS, TRIALS, Tried, replayed, shares
from lipadvisor.experiments.reproduce.images import load_images
from lipadvisor.experiments.reproduce.run_log import RunLog
from lipadvisor.experiments.reproduce.training import OPTIMIZERS
from lipadvisor.forecast import Forecaster
from lipadvisor.policies import Status
from lipadvisor.terms import Array

__all__ = ["PLANS", "run"]

# name -> (factor on the learning rate, what decay takes off a weight per step: that of the nine settings)
PLANS = {"lr / 4": (0.25, 0.0), "decay on": (1.0, 2.5e-4), "lr x 2": (2.0, 0.0), "lr x 4": (4.0, 0.0)}
PLANS["lr x 8"] = (8.0, 0.0)  # no error is asked for: most of these are to be refused
_LIMIT = {"lr / 4": (0.10, 0.15), "decay on": (0.10, 0.15), "lr x 2": (0.55, 0.55), "lr x 4": (0.55, 0.55)}
_AT = (601, 1001)  # steps before a branching that is followed to every horizon
_NEAR_AT = (401, 801)  # ... and to the first one only: there the replicas' own noise weighs most
_TRIPPED = 0.5  # nats: a plan destabilised a run whose loss, over the replicas, rose by more; or a replica blew up
_FROM = 50  # steps before the first window that the slope is chosen by
_COUNT, _FEW = 16, 8  # replicas that go to every horizon; the few where a step costs most
_NEAR, _NEAR_FEW = 240, 56  # ... and of those that stop at the first one
_SLOW = ("convnet", "transformer")


def run(settings: BarSettings) -> Bar:
    """Measure the bar."""
    images = load_images("digits")
    networks = ("mlp",) if settings.quick else tuple(NETWORKS)
    horizons = HORIZONS[:2] if settings.quick else HORIZONS
    rows: list[dict[str, Any]] = []
    cases: list[tuple[bool, tuple[Tried, ...]]] = []
    for network in networks:
        for optimizer in OPTIMIZERS:
            for at, walks in _walks(network, horizons, settings.quick).items():
                # Where replicas stop early nobody knows which plans were sound.
                trials = {} if at in _NEAR_AT else {10: 1} if settings.quick else TRIALS
                found = branch(settings, images, network, optimizer, at, PLANS, walks, trials)
                scored = _scored(found, at, horizons)
                rows += [{"run": f"{network}-{optimizer}-{at}", **row} for row in scored]
                cases += [(row["destabilised"], found.tried.get(row["plan"], ())) for row in scored]
    return _bar(rows, horizons, shares(cases))


def _walks(network: str, horizons: tuple[int, ...], quick: bool) -> dict[int, tuple[Walk, ...]]:
    """Return the replicas of each branch point, by the steps before it."""
    count, more = (_FEW, _NEAR_FEW) if network in _SLOW else (_COUNT, _NEAR)
    if quick:
        count, more = _FEW, _FEW
    far = Walk(count, horizons, tuple(PLANS))
    near = Walk(more, horizons[:1], tuple(_LIMIT), f"-near{more}")
    if quick:
        return {151: (far, near)}
    return {**dict.fromkeys(_AT, (far, near)), **dict.fromkeys(_NEAR_AT, (near,))}


def _learned(log: RunLog, horizons: tuple[int, ...]) -> tuple[Forecaster, float, Array, dict[int, int]]:
    """Replay a run.

    Returns:
        Its forecaster, the last level, every smoothed slope (nats per step), and for each horizon the index of the
        slope that was best over the run's windows.
    """
    slope_G, mass_G = np.zeros(len(SMOOTHINGS)), np.zeros(len(SMOOTHINGS))
    gain_G = 1.0 - (1.0 - np.array(SMOOTHINGS)) ** INTERVAL
    before = np.nan
    level = {int(step): z for step, z in zip(log.array("step"), log.array("network_log_norm"), strict=True)}
    error_hG = {horizon: np.zeros(len(SMOOTHINGS)) for horizon in horizons}
    for terms in log.terms():
        now = terms.network_log_norm + float(terms.composition_L @ terms.change_L)
        if np.isfinite(before):
            slope_G += gain_G * ((now - before) / INTERVAL - slope_G)
            mass_G += gain_G * (1.0 - mass_G)
        before = now
        for horizon, error_G in error_hG.items():
            if terms.step >= _FROM and terms.step + horizon in level:  # the step itself is taken: one less to go
                error_G += np.abs(level[terms.step + horizon] - now - slope_G / mass_G * (horizon - 1))
    best = {horizon: int(error_G.argmin()) for horizon, error_G in error_hG.items()}
    return replayed(log), before, slope_G / mass_G, best


def _scored(found: Branch, at: int, horizons: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return, for every plan, the errors of forecast and slopes against the replicas and against their mean."""
    forecaster, level, slope_G, best = _learned(found.log, horizons)
    assert forecaster.step == at
    loss = float(np.mean(found.log.loss_T[-50:]))
    rows = []
    for plan, outcome in found.outcomes.items():
        factor, shrink = PLANS[plan]
        lr = found.lr * factor
        made = forecaster.forecast(max(horizons), {"lr": lr, "weight_decay": shrink / lr})
        risen = float(np.mean(outcome.loss_R)) - loss
        row: dict[str, Any] = {"plan": plan, "refused": made.status == Status.UNSTABLE}
        blown = not all(np.isfinite(level_R).all() for level_R in outcome.level_hR.values())
        whole = max(horizons) in outcome.level_hR  # after a few steps a loss that has risen may yet come down
        row["destabilised"] = blown or (whole and not risen <= _TRIPPED)
        tried = _rehearsed(outcome.level_hR, made.network.mean)
        for h, level_R in outcome.level_hR.items():
            row[str(h)] = _errors(level_R, float(made.network.mean[h - 1]), level + slope_G * h, best[h])
            row[str(h)]["rehearsed"] = tried[h]
        rows.append(row)
    return rows


def _rehearsed(level_hR: dict[int, Array], mean_h: Array) -> dict[int, float]:
    """Return the mean error of forecasts that a few replicas rehearsed up to the first horizon, by horizon.

    Args:
        level_hR: horizon -> the replicas' log-norms; at the first one those that stop there come last.
        mean_h: what is forecast without a rehearsal.
    """
    first, last = min(level_hR), max(level_hR)
    all_R = level_hR[first]
    stopping_R = all_R[len(level_hR[last]) if last > first else 0 :]
    groups = len(stopping_R) // REPLICAS
    if groups == 0:  # a plan that no replicas stop under
        return dict.fromkeys(level_hR, float("nan"))
    start_G = stopping_R[: groups * REPLICAS].reshape(groups, REPLICAS).mean(axis=1)
    found = {}
    for h, level_R in level_hR.items():
        if h == first:  # the others' mean
            true_G = (all_R.sum() - REPLICAS * start_G) / (len(all_R) - REPLICAS)
            found[h] = float(np.abs(start_G - true_G).mean())
        else:
            found[h] = float(np.abs(start_G + mean_h[h - 1] - mean_h[first - 1] - level_R.mean()).mean())
    return found


def _errors(level_R: Array, mean: float, slope_G: Array, best: int) -> dict[str, Any]:
    centre, count = float(level_R.mean()), len(level_R)
    # The mean of R replicas is closer to each of them than the true mean is.
    floor = float(np.abs(level_R - centre).mean()) * float(np.sqrt(count / (count - 1)))
    return {
        "error": abs(mean - centre),
        "slope": abs(float(slope_G[best]) - centre),
        "halves": float((mean - level_R[::2].mean()) * (mean - level_R[1::2].mean())),
        "slope_halves": float((slope_G[best] - level_R[::2].mean()) * (slope_G[best] - level_R[1::2].mean())),
        "standard_error": float(level_R.std(ddof=1)) / float(np.sqrt(count)),
        "single": float(np.abs(level_R - mean).mean()),
        "floor": floor,
        "single_slopes": np.abs(level_R[:, None] - slope_G).mean(0).tolist(),
        "best": best,
    }


def _bar(rows: list[dict[str, Any]], horizons: tuple[int, ...], verdicts: list[dict[str, float]]) -> Bar:
    checks: list[tuple[str, float, str, bool]] = []
    rehearsals: list[tuple[str, float, str, bool]] = []
    figures: dict[str, Any] = {"runs": rows, "verdicts of rehearsals": verdicts}
    lines = [
        f"{'plan':10} {'steps':>5} {'runs':>5} {'refused':>8} {'unstable':>9} {'error':>7} {'+-':>6} {'of sums':>8} "
        f"{'noise':>7} {'rms':>7} {'clean':>7} {'single':>7} {'floor':>7} {'one slope a plan':>17} "
        f"{'rehearsed':>9}"
    ]
    for plan in PLANS:
        own = [row for row in rows if row["plan"] == plan]
        scored = [row for row in own if not row["refused"] and not row["destabilised"]]
        for horizon in horizons:
            found = _ratios([row for row in scored if str(horizon) in row], str(horizon))
            there = [row for row in own if str(horizon) in row]
            refused, unstable = sum(row["refused"] for row in there), sum(row["destabilised"] for row in there)
            if plan in _LIMIT:
                limit = _LIMIT[plan][horizon == max(HORIZONS)]
                what = f"error over the slope's, {plan}, {horizon} steps"
                checks.append((what, found["error"], f"at most {limit}", found["error"] <= limit))
                tried = found["rehearsed"]
                rehearsals.append((f"{what}, rehearsed", tried, f"at most {limit}", tried <= limit))
            figures[f"{plan}, {horizon}"] = found
            lines.append(
                f"{plan:10} {horizon:5d} {len(there):5d} {refused:8d} {unstable:9d} {found['error']:7.3f} "
                f"{found['spread']:6.3f} {found['sums']:8.3f} {found['noise']:7.3f} "
                f"{found['rms']:7.3f} {found['clean']:7.3f} {found['single']:7.3f} "
                f"{found['floor']:7.3f} {found['single_one_slope']:17.3f} {found['rehearsed']:9.3f}"
            )
    fallen = [row for row in rows if row["destabilised"]]
    if fallen:
        share = float(np.mean([row["refused"] for row in fallen]))
        checks.append(("share of destabilising plans answered 'unstable'", share, "1", share == 1.0))
        lines += [f"destabilised: {row['run']}, {row['plan']}, refused: {row['refused']}" for row in fallen]
    whole = [row for row in rows if not row["destabilised"] and str(max(horizons)) in row]
    rises = [row["refused"] for row in whole if PLANS[row["plan"]][0] > 1.0]
    figures["healthy rises refused"] = float(np.mean(rises)) if rises else float("nan")
    lines.append(f"of {len(rises)} rises that went well to the end {sum(rises)} were refused")
    for one in verdicts:
        lines.append(
            f"rehearsals of {one['steps']:.0f} steps: {one['false']:.3f} of {one['healthy']:.0f} of healthy plans say "
            f"that a replica is lost, {one['hit']:.3f} of {one['destabilising']:.0f} of destabilising ones; with the "
            f"guard {one['refused']:.3f} of these are answered 'unstable'"
        )
    lines.append("error: of the replicas' mean; all over the best slope's, geometric means over runs but for the sums")
    lines.append("noise: the standard error of the replicas' mean; single: against single replicas")
    lines.append("rms: root mean square over the runs; clean: the same without the noise of the replicas' mean")
    lines.append(f"rehearsed: {REPLICAS} replicas of their own try the first {min(horizons)} steps")
    return Bar("what-if", (*checks, *rehearsals), figures, "\n".join(lines))


def _ratios(rows: list[dict[str, Any]], horizon: str) -> dict[str, float]:
    """Return errors over those of the run's best slope.

    Of each run the errors at its branch points are added up before they are divided, as in the bar ``forecast``: at a
    single point a slope may be right by chance. Then geometric means over the runs, but for ``sums``.

    ``error``, ``noise``, ``sums``, ``rms`` and ``clean`` are against the replicas' mean, ``clean`` without its noise;
    ``single`` and ``floor`` against the replicas, ``single_one_slope`` over the slope whose smoothing does best on all
    these outcomes. ``spread`` is the standard error of ``error``, from the runs' scatter.
    """
    names = ("error", "spread", "sums", "rms", "clean", "noise", "rehearsed", "single", "floor", "single_one_slope")
    if not rows:
        return dict.fromkeys(names, float("nan"))
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        runs.setdefault(row["run"].rsplit("-", 1)[0], []).append(row[horizon])
    slope_R, error_R, noise_R, tried_R, single_R, floor_R = (
        np.array([sum(cell[name] for cell in cells) for cells in runs.values()])
        for name in ("slope", "error", "standard_error", "rehearsed", "single", "floor")
    )
    own_R = np.array([sum(cell["single_slopes"][cell["best"]] for cell in cells) for cells in runs.values()])
    slope_RG = np.array([np.sum([cell["single_slopes"] for cell in cells], axis=0) for cells in runs.values()])
    one_R = slope_RG[:, np.log(slope_RG).mean(0).argmin()]
    ratios = (
        error_R / slope_R,
        noise_R / slope_R,
        tried_R / slope_R,
        single_R / own_R,
        floor_R / own_R,
        single_R / one_R,
    )
    error, *rest = (float(np.exp(np.log(ratio_R).mean())) for ratio_R in ratios)
    scatter = np.log(error_R / slope_R).std(ddof=1) if len(runs) > 1 else float("nan")
    spread = error * float(scatter) / float(np.sqrt(len(runs)))
    rms = _root_mean_square(runs, "error", "slope", 2.0)
    clean = _root_mean_square(runs, "halves", "slope_halves", 1.0)
    return dict(zip(names, (error, spread, float(error_R.sum() / slope_R.sum()), rms, clean, *rest), strict=True))


def _root_mean_square(runs: dict[str, list[dict[str, Any]]], error: str, slope: str, power: float) -> float:
    """Return the root of the mean over runs of summed squares over the slope's; nan where noise is all there is."""
    shares = [sum(c[error] ** power for c in cells) / sum(c[slope] ** power for c in cells) for cells in runs.values()]
    mean = float(np.mean(shares))
    return float(np.sqrt(mean)) if mean >= 0.0 else float("nan")
