"""The bars that dynamics and forecast are held to, each a command that writes its figures.

``lipadvisor bars NAME`` runs one. To add one: a module with ``run(settings) -> Bar`` and a row in ``BARS``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["BARS", "Bar", "BarSettings", "bar"]


@dataclass(frozen=True, slots=True)
class BarSettings:
    """What every bar is given.

    Args:
        out: its own directory, made; kept sub-runs and results go there.
        seed: of its own generators.
        quick: a small version for tests: too small to judge the bar by.
        progress: takes a line of text; called often on long work.
    """

    out: Path
    seed: int = 0
    quick: bool = False
    progress: Callable[[str], None] = field(default=print)


@dataclass(frozen=True, slots=True)
class Bar:
    """What was measured, beside what was asked for.

    Args:
        name: of the bar.
        checks: one for each demand: (what, measured, demanded, whether it is met).
        figures: everything else that was measured, by name.
        table: for people.
    """

    name: str
    checks: tuple[tuple[str, float, str, bool], ...]
    figures: dict[str, Any]
    table: str


# name -> module below this package. In the order in which ``all`` runs them.
BARS: dict[str, str] = {
    "reconstruction": "reconstruction",
    "branching": "branching",
    "forecast": "forecast",
    "what-if": "what_if",
    "divergence": "divergence",
    "scaling": "scaling",
    "cost": "cost",
    "tracking": "tracking",
    "levels": "levels",
    "overhead": "overhead",
    "probe-floor": "probe_floor",
    "probe-cost": "probe_cost",
    "probe-memory": "probe_memory",
}


def bar(name: str) -> Callable[[BarSettings], Bar]:
    """Return the function that measures the bar ``name``.

    Raises:
        ValueError: there is none of that name; lists the names.
    """
    if name not in BARS:
        raise ValueError(f"bars NAME must be one of {', '.join(BARS)} or all, got {name!r}.")
    module = importlib.import_module(f"lipadvisor.experiments.bars.{BARS[name]}")
    run: Callable[[BarSettings], Bar] = module.run
    return run
