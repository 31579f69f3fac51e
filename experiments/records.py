"""What a study keeps of each trial: the job that was set, and how it ended.

A finished trial is one file, ``results/<name>.json``, with its ``config`` (the job among it) and its ``result``,
written whole by the driver before anything else hears of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lipadvisor.policies import as_json, from_json
from lipadvisor.trajectory import read_json
from lipadvisor.trajectory.run import RESULTS

__all__ = ["REPLICATE", "SEARCH", "Job", "Record", "Results", "record_of"]

SEARCH, REPLICATE = "search", "replicate"


@dataclass(frozen=True, slots=True)
class Job:
    """One training run to do."""

    workload: str
    arm: str
    stage: str  # SEARCH or REPLICATE
    number: int  # of the configuration in its study, or of the repetition
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

    def as_result(self) -> dict[str, Any]:
        """Return what a trial hands in: everything except the job, which the driver knows."""
        return {name: value for name, value in as_json(self).items() if name != "job"}


_RESULT_FIELDS = frozenset(item.name for item in dataclasses.fields(Record)) - {"job"}


def record_of(job: Job, result: Mapping[str, Any] | None) -> Record:
    """Return the record of ``job`` from what its trial handed in; ``None`` means that it failed.

    Raises:
        ValueError: the result lacks a field or has one of the wrong type.
    """
    if result is None:
        return Record(job, "failed")
    own = {name: value for name, value in result.items() if name in _RESULT_FIELDS}
    return from_json(Record, {"job": as_json(job), **own})


class Results:
    """The records of a run directory by job name: those on disk, and those added since."""

    def __init__(self, folder: Path) -> None:
        """Read what is there.

        Raises:
            ValueError: a file is not the result of a job; names it.
        """
        self._records: dict[str, Record] = {}
        for path in sorted((folder / RESULTS).glob("*.json")):
            entry = read_json(path)
            try:
                record = record_of(from_json(Job, entry["config"]["job"]), entry["result"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} is not the result of a trial: {error}") from error
            self._records[record.job.name] = record

    def __contains__(self, name: str) -> bool:
        """Return whether the job called ``name`` has ended."""
        return name in self._records

    def __len__(self) -> int:
        """Return how many jobs have ended."""
        return len(self._records)

    def all(self) -> tuple[Record, ...]:
        """Return all records."""
        return tuple(self._records.values())

    def of(self, workload: str, arm: str, stage: str) -> tuple[Record, ...]:
        """Return the records of one stage of one arm on one workload, ascending in number."""
        wanted = (workload, arm, stage)
        found = [r for r in self._records.values() if (r.job.workload, r.job.arm, r.job.stage) == wanted]
        return tuple(sorted(found, key=lambda record: record.job.number))

    def add(self, record: Record) -> bool:
        """Take ``record`` in; one whose job has a record already is left out, and False returned."""
        if record.job.name in self._records:
            return False
        self._records[record.job.name] = record
        return True
