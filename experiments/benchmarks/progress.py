"""How far a bench is, and how long it still takes."""

from __future__ import annotations

import sys
import time
from typing import TextIO

__all__ = ["Progress"]


class Progress:
    """Counts units of work and writes a line now and then; on a terminal the line is rewritten in place.

    Args:
        total: units of work planned, > 0.
        stream: where the lines go; standard error by default.
        every_s: seconds between lines; by default 1 on a terminal and 10 elsewhere.
    """

    def __init__(self, total: float, stream: TextIO | None = None, every_s: float | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self.total = max(total, 1e-9)
        self.every_s = (1.0 if self._terminal else 10.0) if every_s is None else every_s
        self._done = self._worked = 0.0
        self._begun = self._said = time.monotonic()

    @property
    def share(self) -> float:
        """Share of the work that is done, in [0, 1]."""
        return min(1.0, self._done / self.total)

    def skip(self, units: float) -> None:
        """Count work that was found done: it says nothing about the time that the rest takes."""
        self._done += units

    def add(self, units: float, what: str) -> None:
        """Count work just done under the name ``what``."""
        self._done += units
        self._worked += units
        now = time.monotonic()
        if now - self._said >= self.every_s:
            self._said = now
            left = max(0.0, self.total - self._done) * (now - self._begun) / max(self._worked, 1e-9)
            minutes, seconds = divmod(round(left), 60)
            line = f"{self.share:4.0%}  {minutes}:{seconds:02d} left  {what}"
            self._stream.write(f"\r{line}\x1b[K" if self._terminal else f"{line}\n")
            self._stream.flush()

    def close(self) -> None:
        """Leave the terminal's line."""
        if self._terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
