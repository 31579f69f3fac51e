"""What a policy's numbers depend on: its constants, and the source of the modules that it is made of."""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from lipadvisor.experiments.benchmarks.store import source_hash
from lipadvisor.policies import Policy

__all__ = ["frozen_hash", "source_files"]

_PACKAGE = "lipadvisor.policies."


def frozen_hash(policy: Policy[Any]) -> str:
    """Return the constants of ``policy`` and the hash of its source, with that of all that it is made of.

    A policy that it does not use may change, or be added, without changing the hash: records stay good.
    """
    return f"{policy!r} {source_hash(*source_files(policy))}"


def source_files(policy: Policy[Any]) -> tuple[Path, ...]:
    """Return the files, in order of their names, of the policy's parts and of what these import from the package."""
    modules: set[str] = set()
    for module in {type(part).__module__ for part in _parts(policy)}:
        modules |= _closure(module)
    return tuple(sorted(_file(module) for module in modules))


def _parts(value: Any) -> Iterator[Any]:
    """Yield all dataclass objects in ``value``, itself included."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _parts(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield value
        for field in dataclasses.fields(value):
            yield from _parts(getattr(value, field.name))


@cache
def _closure(module: str) -> frozenset[str]:
    found, waiting = {module}, [module]
    while waiting:
        for node in ast.walk(ast.parse(_file(waiting.pop()).read_text(encoding="utf-8"))):
            name = node.module if isinstance(node, ast.ImportFrom) else None
            if name is not None and name.startswith(_PACKAGE) and name not in found:
                found.add(name)
                waiting.append(name)
    return frozenset(found)


def _file(module: str) -> Path:
    return Path(str(sys.modules[module].__file__))
