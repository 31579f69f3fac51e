"""Reads a run back: its trials' tables as pandas frames, their configurations and results."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from lipadvisor.trajectory.schema import TABLES, as_frame, empty_frame
from lipadvisor.trajectory.store import FOLDER
from lipadvisor.trajectory.stream import TableFile
from lipadvisor.trajectory.whole_files import read_json

__all__ = ["RESULTS", "RUN_FILE", "Run", "load_run"]

RESULTS = "results"  # folder of one JSON file for each finished trial
RUN_FILE = "run.json"  # what the run is: written by whoever starts it


@dataclass(frozen=True, slots=True)
class Run:
    """A run as read from disk.

    The frames begin with the columns ``trial`` and ``attempt``; of each step only the last attempt at it is kept.
    ``meta`` has ``run`` (content of ``run.json``) and ``trials``: by name ``config``, ``attempts``, ``lost_batches``
    (numbers missing in the sequence of stored batches; 0 unless something went wrong) and ``result`` (``None`` while
    the trial is unfinished).
    """

    path: Path
    observations: pd.DataFrame
    forecasts: pd.DataFrame
    decisions: pd.DataFrame
    inspections: pd.DataFrame
    meta: Mapping[str, Any]

    @property
    def trials(self) -> tuple[str, ...]:
        """Names of the trials, sorted."""
        return tuple(sorted(self.meta["trials"]))

    def trial(self, name: str) -> Run:
        """Return the same run with the rows of one trial only.

        Raises:
            KeyError: there is no such trial.
        """
        if name not in self.meta["trials"]:
            raise KeyError(f"no trial {name!r} in {self.path}; it has {list(self.trials)}.")
        everything = {table: getattr(self, table) for table in TABLES}
        own = {table: frame[frame["trial"] == name].reset_index(drop=True) for table, frame in everything.items()}
        return Run(self.path, **own, meta=self.meta)


def load_run(path: str | os.PathLike[str], *, superseded: bool = False) -> Run:
    """Read a run, finished, stopped or still going on.

    Args:
        path: Directory that was given as ``out`` to an ``Advisor``, to a demo or to a study.
        superseded: keep the rows of earlier attempts at a step as well; the column ``attempt`` tells them apart.

    Raises:
        FileNotFoundError: there is no such directory, or it is not a run; says what was looked for.
        ValueError: a file of the run is damaged or of another version; names the file.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a directory; load_run needs the directory of a run.")
    root = directory / FOLDER
    if not root.is_dir():
        nested = sorted(str(found.parent) for found in directory.glob(f"*/{FOLDER}"))
        hint = f" Runs below it: {', '.join(nested[:5])}." if nested else ""
        raise FileNotFoundError(f"{directory} is not a run: it has no folder {FOLDER!r}.{hint}")
    frames: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    trials: dict[str, Any] = {}
    for folder in sorted(found for found in root.iterdir() if found.is_dir()):
        tables, trials[folder.name] = _read_trial(directory, folder, superseded)
        for name, frame in tables.items():
            frames[name].append(frame)
    run_file = directory / RUN_FILE
    meta = {"run": read_json(run_file) if run_file.exists() else {}, "trials": trials}
    return Run(directory, **{name: _joined(name, frames[name]) for name in TABLES}, meta=meta)


def _read_trial(directory: Path, folder: Path, superseded: bool) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    starts = {int(path.stem): read_json(path) for path in folder.glob("*.json") if path.stem.isdecimal()}
    parts: dict[str, list[pa.Table]] = {name: [] for name in TABLES}
    superseded_from: int | None = None
    lost = 0
    for attempt in sorted(starts, reverse=True):
        tables = {name: TableFile(folder / f"{attempt}-{name}", name).read() for name in TABLES}
        lost += _lost_batches(tables.values())
        for name, table in tables.items():
            everything = superseded or superseded_from is None
            kept = table if everything else table.filter(pc.field("step") < superseded_from)
            parts[name].insert(0, _labelled(kept, folder.name, attempt))
        start = int(starts[attempt]["start_step"])
        superseded_from = start if superseded_from is None else min(start, superseded_from)
    result_path = directory / RESULTS / f"{folder.name}.json"
    entry = read_json(result_path) if result_path.exists() else {}
    facts = {
        "config": starts[max(starts)]["config"] if starts else {},
        "attempts": len(starts),
        "lost_batches": lost,
        "result": entry.get("result"),
    }
    return {name: as_frame(pa.concat_tables(tables)) for name, tables in parts.items() if tables}, facts


def _lost_batches(tables: Any) -> int:
    numbers = {number for table in tables for number in pc.unique(table["sequence"]).to_pylist()}
    return max(numbers, default=0) - len(numbers)


def _labelled(table: pa.Table, trial: str, attempt: int) -> pa.Table:
    names = pa.array([trial] * table.num_rows, type=pa.string())
    attempts = pa.array([attempt] * table.num_rows, type=pa.int64())
    rest = table.drop_columns(["sequence"])
    columns = [names, attempts, *rest.columns]
    return pa.table(columns, names=["trial", "attempt", *rest.column_names])


def _joined(name: str, frames: list[pd.DataFrame]) -> pd.DataFrame:
    if frames:
        return pd.concat(frames, ignore_index=True)
    empty = empty_frame(name)
    empty.insert(0, "trial", pd.Series(dtype="str"))
    empty.insert(1, "attempt", pd.Series(dtype="int64"))
    return empty
