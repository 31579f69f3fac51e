"""The directory of a comparison: whose it is, whether it may be used, and by one process at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lipadvisor.experiments.settings import Settings
from lipadvisor.policies import as_json
from lipadvisor.trajectory import read_json, write_json
from lipadvisor.trajectory.run import RUN_FILE

__all__ = ["KIND", "open_directory", "read_run", "write_run"]

KIND = "comparison"
_LOCK = ".lock"
_OWN = (
    *("run.json", "comparison.json", "report.html", "study.journal"),
    *("results", "trajectory", "checkpoints", "ray"),
)


@contextmanager
def open_directory(path: Path, settings: Settings, *, fresh: bool) -> Iterator[dict[str, Any]]:
    """Take the directory for this process and yield the content of its ``run.json``, begun here if there is none.

    Args:
        path: made if missing.
        settings: what is to be compared.
        fresh: forget what an earlier comparison left there.

    Raises:
        ValueError: the directory cannot be written, holds something else, belongs to other settings, or is in use.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(path)
        descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ValueError(f"the output directory {path} cannot be written: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"the output directory {path} is in use by another process.") from error
        yield _begin(path, settings, fresh)
    finally:
        os.close(descriptor)


def read_run(path: Path) -> dict[str, Any]:
    """Return what ``run.json`` holds; empty if there is none."""
    file = path / RUN_FILE
    return dict(read_json(file)) if file.exists() else {}


def write_run(path: Path, facts: Mapping[str, Any]) -> None:
    """Write ``run.json``, whole."""
    write_json(path / RUN_FILE, facts)


def _begin(path: Path, settings: Settings, fresh: bool) -> dict[str, Any]:
    facts = read_run(path)
    if facts and fresh:
        _clear(path)
        facts = {}
    elif facts:
        differences = settings.differences(facts["settings"])
        if differences:
            raise ValueError(
                f"{path} holds a comparison with other settings ({'; '.join(differences)}). "
                f"Give the same settings to resume it, another --out, or --fresh to start over."
            )
    if not facts:
        facts = {"kind": KIND, "settings": as_json(settings), "seconds": 0.0}
        write_run(path, facts)
    return facts


def _refuse_foreign(path: Path) -> None:
    """Leave a directory alone that holds anything but a comparison; nothing has been written into it yet."""
    facts = read_run(path)
    if facts and facts.get("kind") != KIND:
        raise ValueError(f"the output directory {path} holds a run of another kind; name an empty one.")
    foreign = [] if facts else sorted(item.name for item in path.iterdir() if item.name != _LOCK)
    if foreign:
        raise ValueError(f"the output directory {path} holds something else ({foreign[0]}); name an empty one.")


def _clear(path: Path) -> None:
    """Remove what a comparison writes, and nothing else that lies there; the record of whose it is goes last."""
    for audit in path.glob("audit-*.html"):
        audit.unlink()
    for name in reversed(_OWN):
        item = path / name
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink(missing_ok=True)
