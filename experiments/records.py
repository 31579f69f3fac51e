"""What a study keeps of each trial: a job that was set, and a line for each job that ended.

``results.jsonl`` is written by one process, a line at a time, each line synced. A line torn by a crash is dropped
when the file is read, and its job runs again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lipadvisor.policies.contract import as_json, from_json

__all__ = ["REPLICATE", "SEARCH", "Job", "Record", "Results"]

SEARCH, REPLICATE = "search", "replicate"


@dataclass(frozen=True, slots=True)
class Job:
    """One training run to do."""

    workload: str
    arm: str
    stage: str  # SEARCH or REPLICATE
    number: int  # of the proposal in its study, or of the repetition
    seed: int  # of initialization and order of batches; the same for all arms
    parameters: dict[str, float] = field(default_factory=dict)  # of the arm's policy

    @property
    def name(self) -> str:
        """Return the trial's name: a plain word, the same whenever the job runs."""
        return f"{self.workload}-{self.arm}-{self.stage}-{self.number:03d}"


@dataclass(frozen=True, slots=True)
class Record:
    """How a job ended. Losses are mean cross-entropies in nats; ``None`` where the run diverged or failed."""

    job: Job
    status: str  # "finished", "diverged" or "failed"
    steps: int = 0
    seconds: float = 0.0
    overhead: float = 0.0  # share of the training time spent on measuring
    validation_loss: float | None = None  # selects
    validation_accuracy: float | None = None
    test_loss: float | None = None  # reported, never used to select
    test_accuracy: float | None = None
    advisor_errors: int = 0
    curve: tuple[tuple[int, float | None, float | None], ...] = ()  # step, training loss, validation loss
    error: str = ""


class Results:
    """The records of one run directory, read at the start and appended to."""

    def __init__(self, path: Path) -> None:
        """Read ``path`` if it is there; a torn last line is cut off.

        Raises:
            ValueError: a whole line is not a record; names the file and the line.
        """
        self._path = path
        self._records: dict[str, Record] = {}
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) != len(content):
            with path.open("r+b") as stream:
                stream.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = from_json(Record, json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}:{number} is not a record of a trial: {error}") from error
            self._records[record.job.name] = record

    def __contains__(self, name: str) -> bool:
        """Return whether the job called ``name`` has ended."""
        return name in self._records

    def __len__(self) -> int:
        """Return how many jobs have ended."""
        return len(self._records)

    def all(self) -> tuple[Record, ...]:
        """Return the records in the order they were added."""
        return tuple(self._records.values())

    def get(self, name: str) -> Record | None:
        """Return the record of the job called ``name``, or None."""
        return self._records.get(name)

    def of(self, workload: str, arm: str, stage: str) -> tuple[Record, ...]:
        """Return the records of one stage of one arm on one workload, ascending in number."""
        found = [
            r for r in self._records.values() if (r.job.workload, r.job.arm, r.job.stage) == (workload, arm, stage)
        ]
        return tuple(sorted(found, key=lambda record: record.job.number))

    def add(self, record: Record) -> bool:
        """Append ``record`` and sync it; one whose job has a record already is left out, and False returned."""
        if record.job.name in self._records:
            return False
        line = json.dumps(_finite(as_json(record)), allow_nan=False) + "\n"
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        self._records[record.job.name] = record
        return True


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
