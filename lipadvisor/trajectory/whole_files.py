"""Files that are there whole or not at all: written beside their place, synced, then moved onto it."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["finite", "read_json", "write_bytes", "write_json", "write_text"]


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write ``content`` to ``path`` so that a reader, or a crash, never meets half a file.

    Missing parent folders are made.

    Returns:
        The path written.

    Raises:
        OSError: the place cannot be written; what was there before is untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's 0600 would hide a shared run from its other readers
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write ``text`` as UTF-8, whole; see :func:`write_bytes`."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], data: Any) -> Path:
    """Write ``data`` as JSON, whole; see :func:`write_bytes`.

    JSON has no infinities and no nan: they become ``null``, so that every JSON reader takes the file.

    Raises:
        TypeError: ``data`` holds something that JSON has no form for.
    """
    return write_text(path, json.dumps(finite(data), indent=1, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read what :func:`write_json` wrote.

    Raises:
        ValueError: the file is not JSON; names the file.
        OSError: the file cannot be read.
    """
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} is not JSON: {error}.") from error


def finite(value: Any) -> Any:
    """Return ``value`` (of numbers, texts, lists and mappings) with ``None`` for each infinity and nan."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
