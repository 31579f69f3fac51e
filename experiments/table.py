"""The comparison as text, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["comparison_table"]

_HEAD = ("workload", "arm", "test loss", "test accuracy", "ratio to best tuned baseline", "trials", "seeds", "steps")


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """Return the comparison (see ``comparison.compare``) as an aligned table with a note on how to read it."""
    rows: list[tuple[str, ...]] = [_HEAD]
    rows += [_row(workload, arm) for workload in comparison["workloads"] for arm in workload["arms"]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    note = (
        "mean ± standard deviation over the seeds, on a test split that selected nothing; * best tuned baseline;\n"
        "ratio: geometric mean over paired seeds [90 % bootstrap interval], below 1 is better than that baseline"
    )
    return "\n".join([*lines, note])


def _row(workload: Mapping[str, Any], arm: Mapping[str, Any]) -> tuple[str, ...]:
    mark = "*" if arm["arm"] == workload["best_baseline"] else ""
    return (
        workload["name"],
        arm["arm"] + mark,
        _spread(arm["test_loss"], 1.0, 4, ""),
        _spread(arm["test_accuracy"], 100.0, 2, " %"),
        _ratio(arm["ratio"]),
        str(arm["trials"]) if arm["searched"] else "untuned",
        str(arm["repetitions"]),
        str(arm["steps"]),
    )


def _spread(summary: Mapping[str, Any] | None, scale: float, digits: int, unit: str) -> str:
    if summary is None:
        return "none finished"
    mean = f"{scale * summary['mean']:.{digits}f}"
    return mean + (f" ± {scale * summary['std']:.{digits}f}" if summary["count"] > 1 else "") + unit


def _ratio(ratio: Mapping[str, Any] | None) -> str:
    return "-" if ratio is None else f"{ratio['value']:.3f} [{ratio['lower']:.3f}, {ratio['upper']:.3f}]"
