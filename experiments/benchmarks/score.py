"""From records to one table: loss ratios to the tuned baseline, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["FAILED_RATIO", "Summary", "loss_ratio", "summary", "table"]

FAILED_RATIO = 100.0  # what a run that is not finite counts for


def loss_ratio(losses: Sequence[float], baseline: Sequence[float]) -> float:
    """Return the geometric mean over seeds of ``losses[i] / baseline[i]``, at most ``FAILED_RATIO`` each.

    A seed on which the baseline is not finite is left out: its failure is no merit of the other.

    Raises:
        ValueError: the two do not have the same, positive length, or no entry of the baseline is finite.
    """
    if not losses or len(losses) > len(baseline):
        raise ValueError(f"loss_ratio(losses=...) must have 1 to {len(baseline)} entries, got {len(losses)}.")
    pairs = [(loss, base) for loss, base in zip(losses, baseline, strict=False) if math.isfinite(base)]
    if not pairs:
        raise ValueError(f"loss_ratio(baseline=...) must have a finite entry, got {list(baseline)}.")
    logs = [
        math.log(min(max(loss, 1e-12) / max(base, 1e-12), FAILED_RATIO)) if math.isfinite(loss) else
        math.log(FAILED_RATIO)
        for loss, base in pairs
    ]  # fmt: skip
    return math.exp(sum(logs) / len(logs))


@dataclass(frozen=True, slots=True)
class Summary:
    """One arm over many tasks (or many cells of a grid)."""

    count: int
    geometric_mean: float
    median: float
    percentile_90: float
    worst: float
    within_5: float  # share of ratios at most 1.05
    within_10: float
    failed: int  # runs that are not finite, or end above ``FAILED_LOSS`` times the baseline


FAILED_LOSS = 10.0  # ratio from which a run counts as failed


def summary(ratios: Sequence[float]) -> Summary:
    """Return the figures of one arm.

    Raises:
        ValueError: there is no ratio.
    """
    if not ratios:
        raise ValueError("summary(ratios=...) must have at least one entry, got none.")
    r = np.asarray(ratios, dtype=np.float64)
    return Summary(
        count=len(r),
        geometric_mean=float(np.exp(np.log(r).mean())),
        median=float(np.median(r)),
        percentile_90=float(np.quantile(r, 0.9)),
        worst=float(r.max()),
        within_5=float((r <= 1.05).mean()),
        within_10=float((r <= 1.10).mean()),
        failed=int((r >= FAILED_LOSS).sum()),
    )


def table(ratios: Mapping[str, Mapping[str, float]], title: str) -> str:
    """Return a Markdown table: one row an arm with its figures, then one row a task with each arm's ratio."""
    head = ["arm", "tasks", "geo mean", "median", "p90", "worst", "within 5 %", "within 10 %", "failed"]
    lines = [f"### {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for arm, by_task in ratios.items():
        s = summary(list(by_task.values()))
        lines.append(
            f"| {arm} | {s.count} | {s.geometric_mean:.3f} | {s.median:.3f} | {s.percentile_90:.3f} | {s.worst:.3f} "
            f"| {s.within_5:.0%} | {s.within_10:.0%} | {s.failed} |"
        )
    tasks = list(dict.fromkeys(task for by_task in ratios.values() for task in by_task))
    lines += ["", "| task | " + " | ".join(ratios) + " |", "|" + "---|" * (len(ratios) + 1)]
    for task in tasks:
        cells = " | ".join(f"{by_task[task]:.3f}" if task in by_task else "" for by_task in ratios.values())
        lines.append(f"| {task} | {cells} |")
    return "\n".join(lines) + "\n"
