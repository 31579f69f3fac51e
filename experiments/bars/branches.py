"""Runs that branch: from one checkpoint, many replicas go on under each of several plans, with batches of their own.

What a plan does is a distribution; one path shows it through its own noise, which at ten steps is as large as the
effect. The replicas' spread is what no forecast could do better than. Many more replicas go to the first horizon than
beyond: there the noise of their mean weighs most, and a step costs the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.func import functional_call, vmap
from torch.nn import functional

from lipadvisor.experiments.bars import BarSettings
from lipadvisor.experiments.bars.networks import NETWORKS
from lipadvisor.experiments.bars.recorded import INTERVAL
from lipadvisor.experiments.bars.trying import Tried, tried
from lipadvisor.experiments.reproduce.images import Images
from lipadvisor.experiments.reproduce.norms import input_shapes, log_norms
from lipadvisor.experiments.reproduce.replicas import Replicas
from lipadvisor.experiments.reproduce.run_log import RunLog
from lipadvisor.experiments.reproduce.training import OptimizerKind, Recipe, Run, train
from lipadvisor.probe import Probe, TrackedLayer
from lipadvisor.terms import Array
from lipadvisor.trajectory import read_json, write_json

__all__ = ["Branch", "Outcome", "Walk", "branch"]

_LOST = 1e100  # a weight as large is on its way to infinity, and its square may be there
_OTHER_SEED = 10**6  # batches of the replicas that stop at the first horizon


@dataclass(frozen=True, slots=True)
class Walk:
    """Replicas that are sent on together.

    Attributes:
        count: how many.
        horizons: steps after the branching at which they are looked at, ascending; they stop at the last.
        plans: names of those they go under.
        suffix: of the files they are kept in; of two walks of a branching at most one has none.
    """

    count: int
    horizons: tuple[int, ...]
    plans: tuple[str, ...]
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where ``R`` replicas came to under one plan."""

    level_hR: dict[int, Array]  # horizon -> network's log-norm of each replica, nats; not finite where it blew up
    loss_R: Array  # on the training set, at the end


@dataclass(frozen=True, slots=True)
class Branch:
    """A measured run at constant lr, and what came of each plan from its last step on.

    Attributes:
        log: of the run.
        lr: its learning rate.
        outcomes: plan -> where the replicas came to.
        tried: plan -> what rehearsals of it found; empty where there are none.
    """

    log: RunLog
    lr: float
    outcomes: dict[str, Outcome]
    tried: dict[str, tuple[Tried, ...]]


def branch(
    settings: BarSettings,
    images: Images,
    network: str,
    optimizer: OptimizerKind,
    steps: int,
    plans: Mapping[str, tuple[float, float]],
    walks: Sequence[Walk],
    trials: Mapping[int, int] | None = None,
) -> Branch:
    """Return the branches of one checkpoint, from disk where they are there.

    Args:
        settings: of the bar; everything is kept below ``settings.out / "branches"``.
        images: what to train on.
        network: name in ``NETWORKS``.
        optimizer: of the run.
        steps: before the branching: one more than a multiple of ``INTERVAL``, so that the last step is measured.
        plans: name -> (factor on the learning rate, what decay takes off a weight per step).
        walks: at least one; each of its plans is walked, with batches of its own.
        trials: steps of a rehearsal -> how many of each plan; none where it is empty.
    """
    recipe = Recipe(optimizer, steps, interval=INTERVAL, seed=settings.seed)
    stem = settings.out / "branches" / f"{network}-{optimizer}-{steps}-seed{settings.seed}"
    path = stem.with_suffix(".npz")
    files = {
        (plan, walk): stem.with_name(f"{stem.name}-{_slug(plan)}{walk.suffix}.json")
        for walk in walks
        for plan in walk.plans
    }
    missing = [key for key, file in files.items() if not file.exists()]
    rehearsals = stem.with_name(f"{stem.name}-tried.json")
    untried = bool(trials) and not rehearsals.exists()
    if missing or untried or not path.exists():
        log = RunLog(recipe.identity)

        def on_step(step: int, loss: float, terms: Any) -> None:
            log.add(loss, terms)

        done = train(recipe, images, NETWORKS[network], on_step)
        for plan, walk in missing:
            seed = steps + (_OTHER_SEED if walk.suffix else 0)
            replicas = Replicas(
                done.model, done.optimizer, walk.count, images.train_inputs, images.train_targets, images.classes, seed
            )
            factor, shrink = plans[plan]
            lr = recipe.base_lr * factor
            found = _walked(replicas, done, images, recipe.batch_size, lr, shrink, walk.horizons)
            write_json(files[plan, walk], found)
        if not path.exists():
            log.save(path)
        if untried:
            write_json(rehearsals, tried(done, log, images, recipe.base_lr, recipe.batch_size, plans, trials))
        settings.progress(f"{stem.name}: branched")
    outcomes: dict[str, Outcome] = {}
    for (plan, _), file in files.items():
        own = _outcome(read_json(file))
        outcomes[plan] = _joined(outcomes[plan], own) if plan in outcomes else own
    kept = read_json(rehearsals) if trials else {}
    found = {
        plan: tuple(Tried(int(one["steps"]), one["lost"], bool(one["refused"])) for one in own)
        for plan, own in kept.items()
    }
    return Branch(RunLog.load(path), recipe.base_lr, outcomes, found)


def _walked(
    replicas: Replicas, done: Run, images: Images, batch_size: int, lr: float, shrink: float, horizons: tuple[int, ...]
) -> dict[str, Any]:
    layers = Probe(done.model, done.optimizer).layers
    shapes = input_shapes(done.model, layers, images.train_inputs[:2])
    names = {id(parameter): name for name, parameter in done.model.named_parameters()}
    taken, levels = 0, {}
    for horizon in horizons:
        for _ in range(horizon - taken):
            for layer in layers:
                replicas.weights[names[id(layer.weight)]].mul_(1.0 - shrink)
            replicas.step(batch_size, lr)
        taken = horizon
        levels[str(horizon)] = _levels(replicas, done, layers, shapes).tolist()
    return {"levels": levels, "losses": _losses(replicas, done, images).tolist()}


def _levels(replicas: Replicas, done: Run, layers: tuple[TrackedLayer, ...], shapes: list[tuple[int, ...]]) -> Array:
    """Return the chain's log-norm of every replica; nan where a weight is not finite, or about to be."""
    total_R = np.zeros(replicas.count)
    for layer, shape in zip(layers, shapes, strict=True):
        kernels_R = replicas.kernels(layer, done.model)
        finite_R = kernels_R.flatten(1).abs().amax(1) < _LOST  # false of what is not a number
        safe_R = torch.where(finite_R.view(-1, *([1] * (kernels_R.ndim - 1))), kernels_R, torch.ones_like(kernels_R))
        total_R += np.where(finite_R.numpy(), log_norms(layer, shape, safe_R), np.nan)
    return total_R


def _losses(replicas: Replicas, done: Run, images: Images) -> Array:
    inputs, targets = images.train_inputs.double(), images.train_targets
    model = done.model.double()

    def loss(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(functional_call(model, weights, (inputs,)), targets)

    with torch.no_grad():
        losses_R = vmap(loss, chunk_size=4)(replicas.weights)
    model.float()
    return np.asarray(losses_R.numpy(), dtype=np.float64)


def _outcome(kept: dict[str, Any]) -> Outcome:
    def numbers(values: list[float | None]) -> Array:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    levels = {int(horizon): numbers(values) for horizon, values in kept["levels"].items()}
    return Outcome(levels, numbers(kept["losses"]))


def _joined(first: Outcome, second: Outcome) -> Outcome:
    """Return all replicas' levels, and the loss of those which went furthest: the first."""
    none_R = np.zeros(0)
    levels = {h: np.concatenate((level_R, second.level_hR.get(h, none_R))) for h, level_R in first.level_hR.items()}
    return Outcome(levels, first.loss_R)


def _slug(plan: str) -> str:
    return plan.replace(" ", "").replace("/", "-over-")
