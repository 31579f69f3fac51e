"""The single runs that the suites are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lipadvisor.experiments.benchmarks.baseline import Trial
from lipadvisor.experiments.benchmarks.suites import INIT_SCALES, INTERVAL_STARTS, LR_FACTORS, WEIGHT_DECAY_FACTORS
from lipadvisor.policies import Lipschitz, Policy, chain, guard

__all__ = ["Cell", "starts", "tuned_cells", "without_budget"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One run to be made: a policy on a seed, with the weights scaled beforehand."""

    label: str
    policy: Policy[Any]
    seed: int
    scale: float = 1.0  # of all matrices


def without_budget(policy: Lipschitz, *further: Any) -> Policy[Any]:
    """Return the line of ``policy`` with ``further`` parts in place of its budget, and the rollback around it."""
    parts: list[Any] = []
    for part in policy.line().members:
        parts += further if part.name == "lipschitz_budget" else (part,)
    return guard(chain(*parts, name="line"))


def starts(arms: Mapping[str, Policy[Any]], seeds: int) -> list[Cell]:
    """Return a cell for each arm, start and seed; the label is ``arm xscale``."""
    return [
        Cell(f"{arm} x{scale:g}", policy, seed, scale)
        for arm, policy in arms.items()
        for scale in INTERVAL_STARTS
        for seed in range(seeds)
    ]


def tuned_cells(best: Trial) -> Iterator[Cell]:
    """Yield the cells of the grid: ``best`` with learning rate, init scale and weight decay off by factors."""
    for lr in LR_FACTORS:
        for scale in INIT_SCALES:
            for decay in WEIGHT_DECAY_FACTORS:
                changed = Trial(best.schedule, best.lr * lr, best.weight_decay * decay, best.warmup_fraction)
                yield Cell(f"lr x{lr:g} x{scale:g} wd x{decay:g}", changed.policy(), 0, scale)
