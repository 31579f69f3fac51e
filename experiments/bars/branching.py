"""Bar: the branching test. From one checkpoint, many replicas go on with independent batches.

The mean and the covariance of the change of each log-norm, as predicted from the checkpoint alone, against the
ensemble: four networks, three optimizers, early, middle and late in training, at 1, 5, 20 and 50 steps. The variance
beyond one step is that of the noise as the later steps respond to it, along full-batch steps from the checkpoint; the
SDE with frozen coefficients stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lipadvisor.dynamics import batches_of, coefficients, ensemble_change
from lipadvisor.experiments.bars import Bar, BarSettings
from lipadvisor.experiments.bars.networks import NETWORKS
from lipadvisor.experiments.reproduce.full_batch import full_batch_terms
from lipadvisor.experiments.reproduce.images import Images, load_images
from lipadvisor.experiments.reproduce.norms import input_shapes, log_norms
from lipadvisor.experiments.reproduce.replicas import Replicas, bound_variances
from lipadvisor.experiments.reproduce.training import OPTIMIZERS, OptimizerKind, Recipe, train
from lipadvisor.probe import Probe
from lipadvisor.terms import Array, Terms
from lipadvisor.trajectory import read_json, write_json

__all__ = ["run"]

BATCH = 64
HORIZONS = (1, 5, 20, 50)
STAGES = {"early": 20, "middle": 200, "late": 1000}  # steps before the checkpoint
_ONE_STEP_REPLICAS = 256  # a single step is cheap, and its mean is small beside its noise
_REPLICAS = 64
_RESPONSE_STRIDE = 3  # of the samples that the curvature along the path is taken from


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    lr: float


def run(settings: BarSettings) -> Bar:
    """Measure the bar; finished checkpoints are kept."""
    images = load_images("digits")
    networks: Iterable[str] = ("mlp",) if settings.quick else NETWORKS
    stages = {"early": 20} if settings.quick else STAGES
    rows: list[dict[str, Any]] = []
    for network in networks:
        for optimizer in OPTIMIZERS:
            for stage, steps in stages.items():
                name = f"{network}-{optimizer}-{stage}"
                path = settings.out / "checkpoints" / f"{name}.json"
                if not path.exists():
                    checkpoint = _trained(network, optimizer, steps, images, settings.seed)
                    write_json(path, {"name": name, "optimizer": optimizer, **_branch(checkpoint, images, settings)})
                    settings.progress(name)
                rows.append(
                    {**read_json(path), "response": _response(path, network, optimizer, steps, images, settings)}
                )
    return _bar(rows)


def _response(
    path: Path, network: str, optimizer: OptimizerKind, steps: int, images: Images, settings: BarSettings
) -> dict[str, float]:
    """Return the variance of Z at every horizon along full-batch steps from the checkpoint; kept."""
    kept = path.parent.with_name("responses") / path.name
    if not kept.exists():
        at = _trained(network, optimizer, steps, images, settings.seed)
        horizons = (1, 3) if settings.quick else HORIZONS
        found = bound_variances(
            at.model,
            at.optimizer,
            images.train_inputs,
            images.train_targets,
            images.classes,
            at.lr,
            BATCH,
            horizons,
            _RESPONSE_STRIDE,
        )
        write_json(kept, {str(horizon): value for horizon, value in found.items()})
        settings.progress(f"{path.stem}: response of the steps after")
    response: dict[str, float] = read_json(kept)
    return response


def _trained(network: str, optimizer: OptimizerKind, steps: int, images: Images, seed: int) -> _Checkpoint:
    recipe = Recipe(optimizer, steps, batch_size=BATCH, seed=seed, level="norms", interval=10**9)
    done = train(recipe, images, NETWORKS[network], lambda step, loss, terms: None)
    return _Checkpoint(done.model, done.optimizer, recipe.base_lr)


def _branch(checkpoint: _Checkpoint, images: Images, settings: BarSettings) -> dict[str, Any]:
    """Return predicted and observed moments of the change at every horizon."""
    model, optimizer, lr = checkpoint.model, checkpoint.optimizer, checkpoint.lr
    samples = len(images.train_targets)
    full = full_batch_terms(model, optimizer, images.train_inputs, images.train_targets, images.classes, lr, BATCH)
    noise = batches_of(full, BATCH, samples)
    start_L = full.log_norm_L
    found: dict[str, Any] = {"lr": lr, "status": list(full.status_L)}
    few, many = (64, 64) if settings.quick else (_REPLICAS, _ONE_STEP_REPLICAS)
    horizons = (1, 3) if settings.quick else HORIZONS
    change_RL, control_RL = _one_step(checkpoint, full, images, many, settings.seed + 1)
    found["1"] = _compared(change_RL, noise, 1, control_RL)
    replicas = _replicas(checkpoint, images, few, settings.seed + 2)
    taken = 0
    for horizon in horizons[1:]:
        for _ in range(horizon - taken):
            replicas.step(BATCH, lr)
        taken = horizon
        found[str(horizon)] = _compared(_norms(replicas, checkpoint, images) - start_L, noise, horizon, None)
    return found


def _replicas(checkpoint: _Checkpoint, images: Images, count: int, seed: int) -> Replicas:
    return Replicas(
        checkpoint.model, checkpoint.optimizer, count, images.train_inputs, images.train_targets, images.classes, seed
    )


def _norms(replicas: Replicas, checkpoint: _Checkpoint, images: Images) -> Array:
    layers = Probe(checkpoint.model, checkpoint.optimizer).layers
    shapes = input_shapes(checkpoint.model, layers, images.train_inputs[:2])
    columns = [
        log_norms(layer, shape, replicas.kernels(layer, checkpoint.model))
        for layer, shape in zip(layers, shapes, strict=True)
    ]
    return np.stack(columns, axis=1)


def _one_step(checkpoint: _Checkpoint, full: Terms, images: Images, count: int, seed: int) -> tuple[Array, Array]:
    """Return the changes (R, L) of one step, and a control variate of mean exactly zero.

    The control is the first-order response to the gradient's own noise, ``-lr n_1 u'(P (g_r - G)) v / s`` with the
    preconditioner of the full gradient: most of the spread over replicas, and nothing of the mean.
    """
    replicas = _replicas(checkpoint, images, count, seed)
    layers = Probe(checkpoint.model, checkpoint.optimizer).layers
    shapes = input_shapes(checkpoint.model, layers, images.train_inputs[:2])
    controls = replicas.noise_responses(checkpoint.model, layers, shapes, BATCH, checkpoint.lr)
    return _norms(replicas, checkpoint, images) - full.log_norm_L, controls


def _compared(change_RL: Array, noise: Terms, steps: int, control_RL: Array | None) -> dict[str, Any]:
    """Return the figures of one horizon."""
    predicted = ensemble_change(noise, steps, single_batch=False)
    paper_L = steps * noise.lr_L * coefficients(noise, "paper").path_rate_L()
    steady_RL = change_RL if control_RL is None else change_RL - control_RL
    replicas = len(change_RL)
    weight_L = noise.composition_L
    network_R = change_RL @ weight_L
    return {
        "replicas": replicas,
        "mean_L": steady_RL.mean(0).tolist(),
        "error_of_mean_L": (steady_RL.std(0, ddof=1) / replicas**0.5).tolist(),
        "predicted_L": predicted.mean_L.tolist(),
        "paper_L": paper_L.tolist(),
        "drift_L": (steps * noise.lr_L * noise.first_L).tolist(),
        "variance": float(network_R.var(ddof=1)),
        "predicted_variance": predicted.variance,
        "independent_variance": predicted.independent_variance,
        "covariance_error": _covariance_error(change_RL, predicted.covariance_LL),
    }


def _covariance_error(change_RL: Array, predicted_LL: Array) -> float:
    """Return the relative Frobenius distance of the observed covariance of the layers from the predicted one."""
    observed_LL = np.cov(change_RL.T)
    return float(np.linalg.norm(observed_LL - predicted_LL) / np.linalg.norm(predicted_LL))


def _pooled(rows: list[dict[str, Any]], horizon: int, kind: str) -> float:
    """Return ``sum |predicted - observed| / sum |observed|`` over checkpoints and layers.

    Each checkpoint's changes are divided by its own total first, so that the late ones count as much as the early.
    """
    errors = []
    for row in rows:
        cell = row[str(horizon)]
        observed_L, predicted_L = np.array(cell["mean_L"]), np.array(cell[kind])
        distance_L = predicted_L if kind == "error_of_mean_L" else np.abs(predicted_L - observed_L)
        errors.append(float(distance_L.sum() / np.abs(observed_L).sum()))
    return float(np.mean(errors))


def _variance(rows: list[dict[str, Any]], horizon: int, kind: str = "response") -> float:
    """Return the pooled ratio of observed to predicted variance of Z: geometric mean over checkpoints."""
    key = str(horizon)
    predicted = [row["response"][key] if kind == "response" else row[key][kind] for row in rows]
    ratios = [row[key]["variance"] / value for row, value in zip(rows, predicted, strict=True)]
    return float(np.exp(np.mean(np.log(ratios))))


def _bar(rows: list[dict[str, Any]]) -> Bar:
    horizons = sorted(int(key) for key in rows[0] if key.isdigit())
    table = [
        f"{'optimizer':10} {'steps':>5} {'checkpoints':>11} {'mean err':>9} {'floor':>7} {'paper':>7} {'drift':>7} "
        f"{'var ratio':>9} {'frozen':>7} {'independent':>11} {'cov err':>8}"
    ]
    figures: dict[str, Any] = {}
    checks = []
    for optimizer in OPTIMIZERS:
        own = [row for row in rows if row["optimizer"] == optimizer]
        for horizon in horizons:
            kinds = {"mean": "predicted_L", "floor": "error_of_mean_L", "paper": "paper_L", "drift": "drift_L"}
            found = {name: _pooled(own, horizon, kind) for name, kind in kinds.items()}
            found["variance_ratio"] = _variance(own, horizon)
            found["frozen_ratio"] = _variance(own, horizon, "predicted_variance")
            found["independent_ratio"] = _variance(own, horizon, "independent_variance")
            found["covariance_error"] = float(np.median([row[str(horizon)]["covariance_error"] for row in own]))
            figures[f"{optimizer} {horizon}"] = found
            table.append(
                f"{optimizer:10} {horizon:5d} {len(own):11d} {found['mean']:9.4f} {found['floor']:7.4f} "
                f"{found['paper']:7.4f} {found['drift']:7.4f} {found['variance_ratio']:9.3f} "
                f"{found['frozen_ratio']:7.3f} {found['independent_ratio']:11.3f} {found['covariance_error']:8.3f}"
            )
            checks += _checks(optimizer, horizon, found)
    # One step ahead there is nothing to respond to: the SDE's own covariance is the prediction.
    pooled = {h: _variance(rows, h, "predicted_variance" if h == 1 else "response") for h in horizons}
    independent = _variance(rows, 1, "independent_variance")
    table.append("pooled variance ratio: " + ", ".join(f"{h} steps {r:.3f}" for h, r in pooled.items()))
    table.append(f"with independent layers, as published, at 1 step: {independent:.3f}")
    for horizon, ratio in pooled.items():
        limit = 0.15 if horizon == 1 else 0.35
        met = abs(ratio - 1.0) <= limit
        checks.append((f"variance of Z at {horizon} steps, pooled, observed / predicted", ratio, f"1 +- {limit}", met))
    return Bar("branching", tuple(checks), {"pooled": figures, "checkpoints": rows}, "\n".join(table))


def _checks(optimizer: str, horizon: int, found: dict[str, float]) -> list[tuple[str, float, str, bool]]:
    if horizon > 1:
        return []
    limit = 0.03 if optimizer == "adamw" else 0.02
    return [(f"mean at 1 step, {optimizer}", found["mean"], f"at most {limit}", found["mean"] <= limit)]
