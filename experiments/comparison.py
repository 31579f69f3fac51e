"""What a campaign found: each arm's figures over the repetitions, and ratios to the best tuned baseline."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lipadvisor.experiments.records import REPLICATE, SEARCH, Record, Results
from lipadvisor.experiments.statistics import paired_ratio, summary

__all__ = ["compare"]


def compare(
    results: Results, arms: Mapping[str, Mapping[str, Any]], workloads: Mapping[str, str], seed: int
) -> dict[str, Any]:
    """Return the comparison as JSON.

    Args:
        results: the records of a campaign, finished or not.
        arms: by name: ``summary``, ``baseline`` (whether it is one) and ``searched`` (whether it is tuned).
        workloads: name and one-line summary.
        seed: of the bootstrap.

    Returns:
        ``{"workloads": [{"name", "summary", "shown", "best_baseline", "arms": [...]}]}``. Test losses are summarised
        over the repetitions; the ratio of an arm is to the tuned baseline of lowest mean test loss, paired by seed,
        as a geometric mean with a 90 % bootstrap interval. Taking that baseline by its test loss favours it.
    """
    return {
        "workloads": [_workload(results, arms, name, about, seed) for name, about in workloads.items()],
        "level": 0.9,
    }


def _workload(
    results: Results, arms: Mapping[str, Mapping[str, Any]], workload: str, about: str, seed: int
) -> dict[str, Any]:
    repeated = {arm: results.of(workload, arm, REPLICATE) for arm in arms}
    means = {
        arm: float(np.mean(_values(records, "test_loss")))
        for arm, records in repeated.items()
        if arms[arm]["baseline"] and _values(records, "test_loss")
    }
    best = min(means, key=lambda arm: means[arm]) if means else None
    rows = []
    for arm, facts in arms.items():
        row = _arm(arm, facts, results.of(workload, arm, SEARCH), repeated[arm])
        row["ratio"] = None if best is None else _ratio(repeated[arm], repeated[best], seed)
        rows.append(row)
    shown = next((r.job.name for arm in _shown_first(arms) for r in repeated[arm] if r.status == "finished"), None)
    return {"name": workload, "summary": about, "shown": shown, "best_baseline": best, "arms": rows}


def _arm(arm: str, facts: Mapping[str, Any], searched: Sequence[Record], repeated: Sequence[Record]) -> dict[str, Any]:
    losses, accuracies = _values(repeated, "test_loss"), _values(repeated, "test_accuracy")
    everything = (*searched, *repeated)
    return {
        "arm": arm,
        "summary": facts["summary"],
        "baseline": facts["baseline"],
        "searched": facts["searched"],
        "trials": len(searched),
        "repetitions": len(repeated),
        "seeds": [record.job.seed for record in repeated],
        "steps": max((record.steps for record in everything), default=0),
        "not_finished": sum(record.status != "finished" for record in everything),
        "parameters": dict(repeated[0].job.parameters) if repeated else {},
        "test_loss": dataclasses.asdict(summary(losses)) if losses else None,
        "test_accuracy": dataclasses.asdict(summary(accuracies)) if accuracies else None,
        "test_losses": losses,
        "overhead": [record.overhead for record in everything],
        "curves": [[list(point) for point in record.curve] for record in repeated],
    }


def _ratio(above: Sequence[Record], below: Sequence[Record], seed: int) -> dict[str, float] | None:
    """Pair the runs by seed; runs without a partner or without a positive finite loss are left out."""
    other = {record.job.seed: record.test_loss for record in below}
    pairs = [(record.test_loss, other.get(record.job.seed)) for record in above]
    usable = [(a, b) for a, b in pairs if a is not None and b is not None and a > 0 and b > 0]
    if not usable:
        return None
    numerators, denominators = [a for a, _ in usable], [b for _, b in usable]
    ratio = paired_ratio(numerators, denominators, np.random.default_rng(seed))
    return {**dataclasses.asdict(ratio), "pairs": len(usable)}


def _values(records: Sequence[Record], name: str) -> list[float]:
    values = [getattr(record, name) for record in records]
    return [value for value in values if value is not None and math.isfinite(value)]


def _shown_first(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The trajectory shown in full is the untuned arm's, else that of the last arm named."""
    untuned = [arm for arm, facts in arms.items() if not facts["searched"]]
    return untuned + [arm for arm in reversed(list(arms)) if arm not in untuned]
