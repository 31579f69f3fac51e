"""Bar: early warning on learning-rate ramps, false alarms on healthy runs, and the plan guard on jumps.

A ramp has diverged at the first step, after its start, whose smoothed loss is no better than guessing. A limit far
above that would count steps long after the run was lost, and miss AdamW, whose steps are bounded: it stays at chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lipadvisor.dynamics import coefficients
from lipadvisor.experiments.bars import Bar, BarSettings
from lipadvisor.experiments.bars.networks import NETWORKS
from lipadvisor.experiments.bars.recorded import INTERVAL, recorded_runs
from lipadvisor.experiments.bars.schedules import Pieces, Ramp
from lipadvisor.experiments.reproduce.images import Images, load_images
from lipadvisor.experiments.reproduce.run_log import RunLog, kept_run
from lipadvisor.experiments.reproduce.sharpness import sharpness
from lipadvisor.experiments.reproduce.training import OPTIMIZERS, OptimizerKind, Recipe, train
from lipadvisor.forecast import DivergenceWarning, Forecaster, is_refused, stability_load
from lipadvisor.loss import LossWatch
from lipadvisor.policies import Status
from lipadvisor.trajectory import read_json, write_json

__all__ = ["run"]

_START, _RATE, _LENGTH = 300, 1.008, 1300  # of a ramp: steps before it, growth a step, steps in all
_SMOOTH = 10  # steps that the loss is averaged over
_JUMPS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_AFTER = 60  # steps after a jump that say whether it was healthy
_HARM = 0.5  # nats: a jump did harm if the loss stands higher than before by more


def run(settings: BarSettings) -> Bar:
    """Measure the bar."""
    images = load_images("digits")
    networks = ("mlp",) if settings.quick else tuple(NETWORKS)
    ramps, jumps = [], []
    for network in networks:
        for optimizer in OPTIMIZERS:
            log = _run(settings, images, network, optimizer, "ramp", _LENGTH, Ramp(_START, _RATE))
            ramps.append({"run": f"{network}-{optimizer}", **_ramp(log, float(np.log(images.classes)))})
            curved = _sharpness(settings, images, network, optimizer)
            for factor in _JUMPS:
                schedule = Pieces(((0, 1.0), (_START, factor)))
                log = _run(settings, images, network, optimizer, f"jump-{factor:g}", _START + _AFTER, schedule)
                jumps.append({"run": f"{network}-{optimizer}", "factor": factor, **_jump(log, factor, curved)})
    healthy = [{"run": one.name, **_alarms(one.log)} for one in recorded_runs(settings)]
    return _bar(ramps, jumps, healthy)


def _run(
    settings: BarSettings,
    images: Images,
    network: str,
    optimizer: OptimizerKind,
    name: str,
    steps: int,
    schedule: Ramp | Pieces,
) -> RunLog:
    recipe = Recipe(optimizer, steps, interval=INTERVAL, seed=settings.seed, schedule=schedule)
    path = settings.out / "runs" / f"{network}-{optimizer}-{name}.npz"
    return kept_run(path, recipe, images, NETWORKS[network], settings.progress, network)


def _alarms(log: RunLog) -> dict[str, Any]:
    """Replay a run through the warning; return the steps at which it was raised after it had not been."""
    warning, watch, told = DivergenceWarning(smoothing=1.0), LossWatch(), 0  # as an advisor has them
    forecaster: Forecaster | None = None
    raised, before, steps = [], False, 0
    for terms in log.terms():
        forecaster = forecaster or Forecaster(terms.names, terms.composition_L, terms.optimizer, terms.momentum)
        forecaster.update(terms, coefficients(terms))
        band = forecaster.forecast(2 * INTERVAL - 1).network
        losses, told = log.loss_T[told : terms.step + 1], terms.step + 1
        for loss in losses:
            watch.unusual(float(loss))
        level = watch.level if np.isfinite(losses).all() else np.nan
        ratio = float(np.max(terms.update_ratio_L * terms.lr_L))
        made = (terms.step + 2 * INTERVAL, float(band.mean[-1]), float(band.std[-1]))
        alarm = warning.update(terms.step, level, terms.network_log_norm, ratio, made)
        if alarm.raised and not before:
            raised.append(terms.step)
        before, steps = alarm.raised, terms.step + INTERVAL
    return {"alarms": raised, "steps": steps}


def _ramp(log: RunLog, chance: float) -> dict[str, Any]:
    found = _alarms(log)
    smooth = np.convolve(log.loss_T[_START:], np.ones(_SMOOTH) / _SMOOTH, mode="valid")
    # A loss that is not a number counts as lost: comparisons with it are false.
    lost = np.flatnonzero(~(smooth < chance))
    diverged = _START + int(lost[0]) + _SMOOTH - 1 if len(lost) else None
    early = [step for step in found["alarms"] if step >= _START and (diverged is None or step < diverged)]
    lead = diverged - early[0] if diverged is not None and early else None
    before = [step for step in found["alarms"] if step < _START]
    return {"diverged": diverged, "lead": lead, "false": len(before), "steps": found["steps"], "late": len(early)}


def _sharpness(settings: BarSettings, images: Images, network: str, optimizer: OptimizerKind) -> float:
    """Return the largest eigenvalue of ``P H`` just before the jump; kept."""
    path = settings.out / "sharpness" / f"{network}-{optimizer}.json"
    if not path.exists():
        recipe = Recipe(optimizer, _START, seed=settings.seed, level="norms", interval=10**9)
        at = train(recipe, images, NETWORKS[network], lambda step, loss, terms: None)
        found = sharpness(at.model, at.optimizer, images.train_inputs, images.train_targets, images.classes)
        write_json(path, {"sharpness": found})
    return float(read_json(path)["sharpness"])


def _jump(log: RunLog, factor: float, curved: float) -> dict[str, Any]:
    """Return whether the guards refused the jump, asked just before it, and whether it did harm."""
    forecaster: Forecaster | None = None
    for terms in log.terms():
        if terms.step >= _START:
            break
        forecaster = forecaster or Forecaster(terms.names, terms.composition_L, terms.optimizer, terms.momentum)
        forecaster.update(terms, coefficients(terms), log.recent_loss(terms.step, INTERVAL))
    assert forecaster is not None
    lr = float(log.columns["lr_L"][0][0]) * factor
    by_update = forecaster.forecast(10, {"lr": lr}).status == Status.UNSTABLE
    load = stability_load(log.constants["optimizer"], log.constants["momentum"], lr, curved)
    after = np.array(log.loss_T[_START + 1 :])
    harm = not (np.mean(after[-20:]) - np.mean(log.loss_T[_START - 50 : _START]) <= _HARM)
    return {"refused": bool(by_update), "by_curvature": bool(is_refused(load)), "load": load, "harm": bool(harm)}


def _bar(ramps: list[dict[str, Any]], jumps: list[dict[str, Any]], healthy: list[dict[str, Any]]) -> Bar:
    diverged = [row for row in ramps if row["diverged"] is not None]
    leads = [row["lead"] for row in diverged if row["lead"] is not None]
    missed = 1.0 - len(leads) / len(diverged) if diverged else float("nan")
    survivors = [row for row in ramps if row["diverged"] is None]
    calm_steps = sum(row["steps"] for row in [*healthy, *survivors]) + _START * len(diverged)
    false = sum(len(row["alarms"]) for row in healthy) + sum(row["false"] for row in ramps)
    false += sum(row["late"] for row in survivors)
    rate = 1000.0 * false / calm_steps
    lead = float(np.median(leads)) if leads else float("nan")
    harmful, harmless = [j for j in jumps if j["harm"]], [j for j in jumps if not j["harm"]]
    caught = float(np.mean([j["refused"] for j in harmful])) if harmful else float("nan")
    refused = float(np.mean([j["refused"] for j in harmless])) if harmless else float("nan")
    checks = (
        ("false alarms in 1,000 healthy steps", rate, "at most 1", rate <= 1.0),
        ("median lead, steps", lead, "at least 80", lead >= 80.0),
        ("share of divergences missed", missed, "at most 0.05", missed <= 0.05),
        ("share of harmful jumps caught by the plan guard", caught, "at least 0.9", caught >= 0.9),
        ("share of healthy jumps refused", refused, "at most 0.1", refused <= 0.1),
    )
    lines = [
        f"{len(ramps)} ramps, {len(diverged)} diverged, {len(survivors)} survived; {calm_steps} healthy steps, "
        f"{false} false alarms",
        f"{len(jumps)} jumps, {len(harmful)} harmful; with the guard by curvature added {_either(harmful):.2f} caught, "
        f"{_either(harmless):.2f} of the healthy refused",
    ]
    lines += [f"{row['run']:22} diverged at {row['diverged']}, lead {row['lead']}" for row in ramps]
    return Bar("divergence", checks, {"ramps": ramps, "jumps": jumps, "healthy": healthy}, "\n".join(lines))


def _either(jumps: list[dict[str, Any]]) -> float:
    return float(np.mean([j["refused"] or j["by_curvature"] for j in jumps])) if jumps else float("nan")
