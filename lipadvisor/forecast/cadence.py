"""When forecasts are made that will be scored.

Until 30 forecasts of a horizon have been scored, every ``horizon / 20`` steps: each of them teaches much. Then about
every ``sqrt(horizon / 2)`` steps, in multiples of five and those of all horizons together: what comes between shares
its future with its neighbours, and a step without a forecast costs half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["AT_FIRST", "Cadence"]

AT_FIRST = 30  # outcomes
_STRIDE = 5  # steps


class Cadence:
    """Steps at which forecasts for each of ``H`` horizons are due.

    Attributes:
        early_H: steps between two of them at first.
        last_H: step of the last one; below zero before the first.
        next_step: when the next one is due, of any horizon.
    """

    def __init__(self, horizons: Sequence[int]) -> None:
        self.early_H = tuple(max(1, horizon // 20) for horizon in horizons)
        self._late_H = tuple(_STRIDE * max(1, math.isqrt(horizon // 2) // _STRIDE) for horizon in horizons)
        self._stride_H = self.early_H
        self.restart()

    def due(self, step: int) -> list[int]:
        """Return the places of the horizons that a forecast is due for."""
        return [place for place, then in enumerate(self._next_H) if step >= then]

    def note(self, place: int, step: int) -> None:
        """Take note that one was made."""
        self.last_H[place] = step
        self._next_H[place] = (step // self._stride_H[place] + 1) * self._stride_H[place]
        self.next_step = min(self._next_H)

    def pace(self, scored_H: Sequence[float]) -> None:
        """Set the strides by how many forecasts of each horizon have been scored."""
        if self._stride_H != self._late_H:
            strides = zip(scored_H, self.early_H, self._late_H, strict=True)
            self._stride_H = tuple(early if n < AT_FIRST else late for n, early, late in strides)
            self._plan()

    def restart(self) -> None:
        """Make forecasts for every horizon at the next chance."""
        self.load([-stride for stride in self._stride_H], ())

    def load(self, last_H: Sequence[int], scored_H: Sequence[float]) -> None:
        """Continue from steps at which the last ones were made."""
        self.last_H = [int(last) for last in last_H]
        if scored_H:
            self._stride_H = self.early_H
            self.pace(scored_H)
        self._plan()

    def _plan(self) -> None:
        both = zip(self.last_H, self._stride_H, strict=True)
        self._next_H = [(last // stride + 1) * stride for last, stride in both]
        self.next_step = min(self._next_H)
