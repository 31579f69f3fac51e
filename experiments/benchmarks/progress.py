"""How far a bench is, and how long it still takes."""

from __future__ import annotations

import sys
import time
from typing import TextIO

__all__ = ["Progress"]


class Progress:
    """Counts units of work and writes a line now and then.

    Args:
        total: units of work planned, > 0.
        stream: where the lines go; standard error by default.
        every_s: seconds between lines.
    """

    def __init__(self, total: float, stream: TextIO | None = None, every_s: float = 5.0) -> None:
        self.total, self.every_s = max(total, 1e-9), every_s
        self._stream = sys.stderr if stream is None else stream
        self._done = self._worked = 0.0
        self._begun = self._said = time.monotonic()

    def skip(self, units: float) -> None:
        """Count work that was found done."""
        self._done += units

    def add(self, units: float, what: str) -> None:
        """Count work just done under the name ``what``."""
        self._done += units
        self._worked += units
        now = time.monotonic()
        if now - self._said >= self.every_s:
            self._said = now
            left = max(0.0, self.total - self._done) * (now - self._begun) / max(self._worked, 1e-9)
            share = min(1.0, self._done / self.total)
            minutes, seconds = divmod(round(left), 60)
            self._stream.write(f"{share:4.0%}  {minutes}:{seconds:02d} left  {what}\n")
            self._stream.flush()
