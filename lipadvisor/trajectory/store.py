"""The trajectories of a run on disk: durable batch by batch, readable while written, each batch once.

Layout below the run's directory::

    trajectory/<trial>/<attempt>.json                   where the attempt began, and the trial's configuration
    trajectory/<trial>/<attempt>-observations.arrows    live (also -forecasts, -decisions)
    trajectory/<trial>/<attempt>-observations.parquet   after the trial has ended

A trial that is killed and goes on from a checkpoint does so as a new *attempt*, numbered from 1.
"""

from __future__ import annotations

import logging
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from lipadvisor.trajectory.schema import SCHEMA_VERSION, TABLES, Batch, Sink, as_table
from lipadvisor.trajectory.stream import TableFile
from lipadvisor.trajectory.whole_files import read_json, write_json

__all__ = ["FOLDER", "TrajectoryStore", "check_trial_name"]

_log = logging.getLogger("lipadvisor")
FOLDER = "trajectory"
_TRIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MAX_OPEN = 192  # files kept open; the limit of a process is often 1,024
_MAX_ROWS = 1_000_000  # of one batch; a step of a network with 1,000 layers has some 10,000


def check_trial_name(trial: str) -> str:
    """Return ``trial`` if it may name a folder.

    Raises:
        ValueError: it is not 1 to 100 letters, digits, dots, underscores and hyphens, the first a letter or digit.
    """
    if not isinstance(trial, str) or not _TRIAL.fullmatch(trial):
        rule = "1 to 100 of letters, digits, '.', '_', '-', starting with a letter or digit"
        raise ValueError(f"a trial's name must be {rule}, got {trial!r}.")
    return trial


class TrajectoryStore:
    """Appends batches of rows to the files of a run. One writer at a time; any number of readers.

    Args:
        directory: The run's directory; made if missing.

    Raises:
        OSError: the directory cannot be made or written.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._root = self.directory / FOLDER
        self._root.mkdir(parents=True, exist_ok=True)
        if not os.access(self._root, os.W_OK | os.X_OK):
            raise PermissionError(f"{self._root} cannot be written.")
        self._files: OrderedDict[tuple[str, int, str], TableFile] = OrderedDict()
        self._own_trials: set[str] = set()

    def begin(
        self, trial: str, *, start_step: int = 0, config: Mapping[str, Any] | None = None, token: str | None = None
    ) -> int:
        """Open a new attempt of a trial and return its number, from 1 on.

        Args:
            trial: Name of the trial.
            start_step: The step it starts from; what earlier attempts recorded from there on is superseded.
            config: The trial's configuration, kept for whoever reads the run.
            token: Any text unique to this start; asking twice with the same one gives the same attempt.

        Raises:
            ValueError: the name may not name a folder, or ``start_step`` is negative.
            OSError: the disk did not take it.
        """
        folder = self._root / check_trial_name(trial)
        if start_step < 0:
            raise ValueError(f"begin(start_step=...) must be at least 0, got {start_step}.")
        last = max(self.attempts(trial), default=0)
        if token is not None and last and read_json(folder / f"{last}.json").get("token") == token:
            return last
        facts = {"schema": SCHEMA_VERSION, "start_step": start_step, "config": dict(config or {}), "token": token}
        write_json(folder / f"{last + 1}.json", facts)
        return last + 1

    def attempts(self, trial: str) -> tuple[int, ...]:
        """Return the numbers of the attempts of a trial so far, ascending."""
        folder = self._root / check_trial_name(trial)
        return tuple(sorted(int(path.stem) for path in folder.glob("*.json") if path.stem.isdecimal()))

    def append(self, trial: str, attempt: int, sequence: int, batch: Batch) -> int:
        """Store a batch unless it is stored already.

        Args:
            trial: Name of the trial.
            attempt: Number that ``begin`` gave.
            sequence: Number of the batch within the attempt, from 1 on.
            batch: Rows by table, as the :class:`Recorder` hands them on.

        Returns:
            The number of the last batch stored of this attempt.

        Raises:
            ValueError: a name, number or row does not fit; nothing of the batch is stored.
            OSError: the disk did not take it; send it again.
        """
        self._check(trial, attempt, sequence, batch)
        tables = {name: as_table(name, rows) for name, rows in batch.items() if rows}
        for name, table in tables.items():  # a batch cut off between two tables is completed when it is sent again
            self._file(trial, attempt, name).append(sequence, table)
        return self.last_sequence(trial, attempt)

    def last_sequence(self, trial: str, attempt: int) -> int:
        """Return the number of the last batch stored of this attempt, 0 if none is."""
        return max(self._file(trial, attempt, table).last_sequence for table in TABLES)

    def sink(self, trial: str, *, config: Mapping[str, Any] | None = None) -> Sink:
        """Return a sink for a :class:`Recorder` in this process; ``close`` seals what came through it.

        The first batch begins a new attempt, at the first step that it holds.
        """
        check_trial_name(trial)
        attempt, sequence = 0, 0

        def take(batch: Batch) -> None:
            nonlocal attempt, sequence
            if not attempt:
                first = min((row[0] for rows in batch.values() for row in rows), default=0)
                if first == 0 and self.attempts(trial):
                    _log.warning(
                        "%s holds an earlier run. Where both recorded a step, load_run shows the later one; "
                        "load_run(..., superseded=True) shows both.",
                        self.directory,
                    )
                attempt = self.begin(trial, start_step=first, config=config)
                self._own_trials.add(trial)
            self.append(trial, attempt, sequence + 1, batch)
            sequence += 1

        return take

    def seal(self, trial: str) -> None:
        """Turn all attempts of an ended trial into Parquet files. May be repeated, and appended to afterwards."""
        for attempt in self.attempts(trial):
            for table in TABLES:
                self._file(trial, attempt, table).seal()

    def close(self) -> None:
        """Seal the trials written through :meth:`sink`, and let go of all files."""
        for trial in sorted(self._own_trials):
            self.seal(trial)
        self._own_trials.clear()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __enter__(self) -> TrajectoryStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _file(self, trial: str, attempt: int, table: str) -> TableFile:
        key = (trial, attempt, table)
        if key not in self._files:
            self._files[key] = TableFile(self._root / check_trial_name(trial) / f"{attempt}-{table}", table)
            if len(self._files) > _MAX_OPEN:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(key)
        return self._files[key]

    def _check(self, trial: str, attempt: int, sequence: int, batch: Batch) -> None:
        check_trial_name(trial)
        for what, number in (("attempt", attempt), ("sequence", sequence)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f"append({what}=...) must be a whole number of at least 1, got {number!r}.")
        if not isinstance(batch, Mapping) or not set(batch) <= set(TABLES):
            raise ValueError(f"append(batch=...) must have tables among {sorted(TABLES)}, got {batch!r:.200}.")
        rows = sum(len(table) for table in batch.values())
        if rows > _MAX_ROWS:
            raise ValueError(f"append(batch=...) must have at most {_MAX_ROWS} rows, got {rows}.")
