"""Reproductions of the two papers' results, each with data, figure and a verdict computed from the data.

To add one: a module with ``run(settings) -> Verdict`` and a row in ``REPRODUCTIONS``. ``lipadvisor reproduce NAME``
calls it; modules are imported when called, so that the command line starts fast.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["REPRODUCTIONS", "WITHOUT_DATA", "Settings", "Verdict", "reproduction"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What every reproduction is given.

    Args:
        out: its own directory, made; it writes ``data.json`` (or .npz), ``figure.svg``, ``figure.png``,
            ``verdict.json`` there, whole or not at all, and reads back what an interrupted run left, to resume.
        seed: of its own generators.
        quick: a small version for tests, seconds instead of minutes.
        data: ``"digits"``, ``"cifar10:PATH"`` or ``"cifar100:PATH"``.
        progress: takes a line of text; called often on long work.
    """

    out: Path
    seed: int = 0
    quick: bool = False
    data: str = "digits"
    progress: Callable[[str], None] = field(default=print)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the data say about the paper's claim.

    Args:
        name: of the reproduction.
        claim: what the paper says, in a sentence, with its place ("[D] Fig 5: ...").
        agrees: whether the data agree, computed from them.
        figures: the numbers that decide, by name.
        finding: what was found, in a sentence built from the numbers.
    """

    name: str
    claim: str
    agrees: bool
    figures: dict[str, Any]
    finding: str


# name -> (module below this package, source). In the order in which ``all`` runs them.
REPRODUCTIONS: dict[str, tuple[str, str]] = {
    "landscapes": ("landscapes", "D"),
    "validation": ("validation", "D"),
    "convergence": ("convergence", "D"),
    "sampling": ("sampling", "D"),
    "batch-size": ("batch_size", "D"),
    "label-noise": ("label_noise", "D"),
    "initialization": ("initialization", "D"),
    "module-constants": ("module_constants", "J"),
    "depth": ("depth", "J"),
    "attention": ("attention", "J"),
    "init-sensitivity": ("init_sensitivity", "J"),
    "adam-vs-sgd": ("adam_vs_sgd", "J"),
    "contraction": ("contraction", "J"),
}
WITHOUT_DATA = frozenset({"module-constants", "depth", "attention"})  # they make their own inputs


def reproduction(name: str) -> Callable[[Settings], Verdict]:
    """Return the function that runs the reproduction ``name``.

    Raises:
        ValueError: there is none of that name; lists the names.
    """
    if name not in REPRODUCTIONS:
        raise ValueError(f"reproduce NAME must be one of {', '.join(REPRODUCTIONS)} or all, got {name!r}.")
    module = importlib.import_module(f"lipadvisor.experiments.reproduce.{REPRODUCTIONS[name][0]}")
    run: Callable[[Settings], Verdict] = module.run
    return run
