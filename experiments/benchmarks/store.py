"""The results file: one JSON object of records by content hash, written whole after each record."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lipadvisor.experiments.benchmarks.task import Task

__all__ = ["Results", "content_key", "source_hash", "task_fingerprint"]

_LIST_FILE = "lists.py"  # only calls what the others build
_TASK_FILES = ("task.py", "sources.py", "splits.py", "networks.py", "updates.py", "population.py")


class Results:
    """Records by key; a record that is there is not computed again, so that an interrupted bench goes on.

    Args:
        path: of the JSON file; made with its folders on the first record.

    Raises:
        ValueError: there is a file of that name, but it holds no records.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.records: dict[str, dict[str, Any]] = {}
        self._lines: dict[str, str] = {}  # of the file, by key: a bench writes it thousands of times
        if self.path.exists():
            self.records = _records(self.path)

    def get(self, spec: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the record of ``spec``, computed and stored if it is not there."""
        if not self.has(spec):
            self.add(spec, compute())
            self.write()
        return self.record(spec)

    def has(self, spec: Mapping[str, Any]) -> bool:
        """Return whether there is a record of ``spec``."""
        return content_key(spec) in self.records

    def record(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Return the record of ``spec``.

        Raises:
            KeyError: there is none.
        """
        return self.records[content_key(spec)]

    def add(self, spec: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Keep one record; :meth:`write` stores it."""
        key = content_key(spec)
        self.records[key] = {"spec": dict(spec), **values}
        self._lines.pop(key, None)

    def write(self) -> None:
        """Write the file whole, one record a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(self.path.name + ".part")
        for key in self.records.keys() - self._lines.keys():
            self._lines[key] = f"{json.dumps(key)}: {json.dumps(self.records[key])}"
        lines = ",\n".join(self._lines[key] for key in self.records)
        part.write_text(f'{{"version": 1, "records": {{\n{lines}\n}}}}\n', encoding="utf-8")
        os.replace(part, self.path)


def _records(path: Path) -> dict[str, dict[str, Any]]:
    try:
        records: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["records"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} holds no records of a bench ({error}); move it away, or choose another --out."
        ) from error
    return records


def content_key(spec: Mapping[str, Any]) -> str:
    """Return the hash of ``spec``, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, default=repr).encode()).hexdigest()[:16]


def source_hash(*paths: Path) -> str:
    """Return the hash of the contents of files, in the order given."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


def task_fingerprint(task: Task, steps: int | None = None) -> dict[str, Any]:
    """Return what decides a task's numbers: its fields, and the source that builds its data and network."""
    folder = Path(__file__).parent
    return {
        "task": task.name,
        "steps": task.steps if steps is None else steps,
        "batch_size": task.batch_size,
        "optimizer": task.optimizer,
        "build": _called(task.build),
        "load": _called(task.load),
        "source": source_hash(*(folder / name for name in _TASK_FILES), *_further_files(task)),
    }


def _further_files(task: Task) -> list[Path]:
    """Return the files that build the task's network and data, where they are not among the common ones."""
    folder = Path(__file__).parent
    modules = {getattr(function, "func", function).__module__ for function in (task.build, task.load)}
    names = sorted(f"{module.rpartition('.')[2]}.py" for module in modules if module.startswith(__package__))
    return [folder / name for name in names if name not in (*_TASK_FILES, _LIST_FILE)]


def _called(function: Any) -> str:
    """Return a name that is the same in every process: ``repr`` would hold an address."""
    inner = getattr(function, "func", None)
    if inner is None:
        return str(getattr(function, "__qualname__", function))
    return f"{_called(inner)}({[_called(a) for a in function.args]}, {sorted(function.keywords.items(), key=str)})"
