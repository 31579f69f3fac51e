"""Watches a network's Lipschitz continuity while it trains, predicts where it is heading, and steers the knobs.

The names below are imported when first used, so that ``lipadvisor.policies`` needs nothing but the standard library
and offline analysis needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipadvisor.advisor import Advisor
    from lipadvisor.forecast import Forecast
    from lipadvisor.modules import audit
    from lipadvisor.rehearsal import Rehearsal, rehearse
    from lipadvisor.trajectory import Run, load_run

__version__ = "0.1.0"
__all__ = ["Advisor", "Forecast", "Rehearsal", "Run", "__version__", "audit", "load_run", "rehearse"]

_HOME = {
    "Advisor": "lipadvisor.advisor",
    "Forecast": "lipadvisor.forecast",
    "Rehearsal": "lipadvisor.rehearsal",
    "Run": "lipadvisor.trajectory",
    "audit": "lipadvisor.modules",
    "load_run": "lipadvisor.trajectory",
    "rehearse": "lipadvisor.rehearsal",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lipadvisor' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
