"""Progress of long work, for people: one line that is updated on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TextIO

from lipadvisor.experiments.records import SEARCH, Record

__all__ = ["Progress", "duration"]


class Progress:
    """Says how many trials are done, the best so far, and how long the rest will take.

    Args:
        stream: where to write.
        done: trials that had ended before.
        total: returns how many there are in all.
        clock: seconds, monotonic.
    """

    def __init__(
        self, stream: TextIO, done: int, total: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._total, self._clock = stream, total, clock
        self._done_before = self._done = done
        self._first_ended = 0.0
        self._best: dict[str, tuple[float, str]] = {}
        self._live = stream.isatty()
        self._width = 0

    def add(self, record: Record, *, count: bool = True) -> None:
        """Take in a record; with ``count`` false one that had ended before: it counts only towards the best."""
        job = record.job
        loss = record.validation_loss
        if job.stage == SEARCH and loss is not None and loss < self._best.get(job.workload, (float("inf"), ""))[0]:
            self._best[job.workload] = (loss, job.arm)
        if not count:
            return
        self._done += 1
        if self._done == self._done_before + 1:
            self._first_ended = self._clock()
        self._show(f"{job.name}: {'validation loss ' + format(loss, '.4f') if loss is not None else record.status}")

    def seconds_left(self) -> float | None:
        """Return an estimate from the pace since the first trial ended; None before the third has.

        The first ones wait for their processes to start, and two run at a time: neither says much about the rest.
        """
        since_first = self._done - self._done_before - 1
        if since_first < 2:
            return None
        return (self._clock() - self._first_ended) / since_first * max(0, self._total() - self._done)

    def close(self) -> None:
        """End the line that was being updated."""
        if self._live and self._width:
            self._stream.write("\n")
            self._stream.flush()
            self._width = 0

    def _show(self, last: str) -> None:
        left = self.seconds_left()
        best = "; ".join(f"{workload} {loss:.4f} by {arm}" for workload, (loss, arm) in self._best.items())
        parts = [f"{self._done}/{self._total()} trials"]
        parts += [f"{duration(left)} left"] if left is not None else []
        parts += [f"best validation loss: {best}"] if best else []
        line = "  |  ".join(parts)
        if self._live:
            line = line[: shutil.get_terminal_size().columns - 1]  # a wrapped line could not be written over
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(f"{line}  |  {last}\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """Return ``seconds`` as minutes and seconds, ``3:05``."""
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"
