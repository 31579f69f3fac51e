"""Rehearsal: a few short runs of candidate step sizes from one checkpoint, undone; the best one makes the real run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from lipadvisor.experiments.benchmarks.drive import drive
from lipadvisor.experiments.benchmarks.task import Task
from lipadvisor.policies import Lipschitz, named_policy

__all__ = ["CANDIDATES", "rehearse"]

CANDIDATES: tuple[float, ...] = (0.5, 1.0, 2.0)  # times the default's own step size
_SHARE = 0.05  # of the run that each candidate may take


def rehearse(
    task: Task,
    policy: str,
    seeds: Sequence[int],
    *,
    decide_every: int = 5,
    validate_every: int = 0,
    tick: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """Return the losses of runs whose step size was rehearsed, and what was chosen.

    Each candidate runs ``5 %`` of the steps from the very initialization of the real run, annealed to its own end;
    the lowest validation loss wins. The real run is shorter by the steps rehearsed.

    Raises:
        ValueError: ``policy`` does not name a :class:`Lipschitz`.
    """
    base = named_policy(policy)
    if not isinstance(base, Lipschitz):
        raise ValueError(f"rehearse(policy=...) must name a policy whose steps can be scaled, got {policy!r}.")
    short = max(5, round(_SHARE * task.steps))
    tried = [(seed, factor) for seed in seeds for factor in CANDIDATES]
    trial = drive(
        task,
        [base.scaled(factor) for _, factor in tried],
        [seed for seed, _ in tried],
        steps=short,
        decide_every=decide_every,
        tick=tick,
    )
    scores = [loss if math.isfinite(loss) else math.inf for loss in trial.validation]
    chosen = []
    for place in range(len(seeds)):
        mine = scores[place * len(CANDIDATES) : (place + 1) * len(CANDIDATES)]
        chosen.append(CANDIDATES[mine.index(min(mine))])
    outcome = drive(
        task,
        [base.scaled(factor) for factor in chosen],
        seeds,
        steps=task.steps - short * len(CANDIDATES),
        decide_every=decide_every,
        validate_every=validate_every,
        tick=tick,
    )
    return {"chosen": chosen, "train": outcome.train, "validation": outcome.validation, "test": outcome.test}
