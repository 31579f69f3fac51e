"""The runs that forecasts are judged on: four networks, three optimizers, constant and other schedules.

Each network and optimizer runs at constant lr, with one of four usual schedules, and with six changes of the learning
rate and the decay two hundred steps apart: a usual schedule has one change or two, too few windows to judge by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lipadvisor.experiments.bars import BarSettings
from lipadvisor.experiments.bars.networks import NETWORKS
from lipadvisor.experiments.bars.schedules import Pieces, WarmupCosine
from lipadvisor.experiments.reproduce.images import load_images
from lipadvisor.experiments.reproduce.run_log import RunLog, kept_run
from lipadvisor.experiments.reproduce.training import OPTIMIZERS, OptimizerKind, Recipe
from lipadvisor.terms import Array

__all__ = ["INTERVAL", "Recorded", "recorded_runs"]

INTERVAL = 5  # steps between measurements
_STEPS, _QUICK_STEPS = 1600, 300
_LR: dict[OptimizerKind, float] = {"sgd": 0.05, "momentum": 0.01, "adamw": 1e-3}


@dataclass(frozen=True, slots=True)
class Recorded:
    """One run, with the knobs of every step, measured or not."""

    name: str
    schedule: str
    optimizer: OptimizerKind
    log: RunLog
    lr_N: Array
    weight_decay_N: Array


def _schedules(steps: int) -> dict[str, tuple[Callable[[int], float] | None, Callable[[int], float] | None]]:
    """Return name -> (factor on the learning rate, what the decay takes off a weight per step)."""
    return {
        "cosine": (WarmupCosine(steps // 16, steps), None),
        "steps": (Pieces(((0, 1.0), (int(0.4 * steps), 0.25), (int(0.7 * steps), 0.0625))), None),
        "rise": (Pieces(((0, 0.5), (int(0.5 * steps), 1.0))), None),
        "decay": (None, Pieces(((0, 0.0), (int(0.4 * steps), 5e-4)))),
    }


def _changes(steps: int) -> tuple[Pieces, Pieces]:
    """Return the factor on the learning rate and the decay per step of the runs with many changes."""
    lr = Pieces(((0, 1.0), (5 * steps // 16, 0.25), (9 * steps // 16, 0.5), (13 * steps // 16, 0.125)))
    shrink = Pieces(((0, 0.0), (3 * steps // 16, 5e-4), (7 * steps // 16, 0.0), (11 * steps // 16, 5e-4)))
    return lr, shrink


def recorded_runs(settings: BarSettings) -> Iterator[Recorded]:
    """Make, or read back, the runs: each network and optimizer at constant lr, one usual schedule, and many changes."""
    images = load_images("digits")
    steps = _QUICK_STEPS if settings.quick else _STEPS
    others = list(_schedules(steps).items())
    turn = settings.seed
    for network in ("mlp",) if settings.quick else NETWORKS:
        for optimizer in OPTIMIZERS:
            turn += 1
            other = others[turn % len(others)]
            for schedule, (factor, shrink) in (("constant", (None, None)), other, ("changes", _changes(steps))):
                recipe = Recipe(
                    optimizer,
                    steps,
                    lr=_LR[optimizer],
                    interval=INTERVAL,
                    seed=settings.seed,
                    schedule=factor,
                    shrink_schedule=shrink,
                )
                name = f"{network}-{optimizer}-{schedule}"
                path = settings.out.parent / "recorded" / f"{name}{'-quick' if settings.quick else ''}.npz"
                log = kept_run(path, recipe, images, NETWORKS[network], settings.progress, network)
                lr_N = np.array([recipe.base_lr * (factor(n) if factor else 1.0) for n in range(steps)])
                shrink_N = np.array([shrink(n) if shrink else 0.0 for n in range(steps)])
                yield Recorded(name, schedule, optimizer, log, lr_N, shrink_N / lr_N)
