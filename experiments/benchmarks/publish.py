"""One page of all tables of the bench and its figures, as its runs wrote them: no number is typed by hand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lipadvisor.experiments.benchmarks.command import SUITES
from lipadvisor.experiments.benchmarks.store import Results

__all__ = ["page", "publish"]

_MOST_LINES = 200  # of one suite's tables


def page(folders: Sequence[Path], stem: str = "policies_results") -> str:
    """Return the tables of ``folders``, in the order given and in that of the suites.

    Args:
        folders: that runs of the bench wrote.
        stem: what the names of figures begin with: those of the suite ``zero``, where they are.

    Raises:
        ValueError: a folder holds no table of a suite.
    """
    command = " ".join(["lipadvisor bench publish", *(folder.as_posix() for folder in folders)])
    parts = [
        "# Policies: the bench's tables\n",
        f"Written by `{command}`; what the columns and arms are: policies.md.\n",
    ]
    for folder in folders:
        found = [suite for suite in SUITES if (folder / f"{suite}.md").is_file()]
        if not found:
            raise ValueError(
                f"{folder} holds no table of a suite ({', '.join(SUITES)}); run the bench with --out there."
            )
        records = Results(folder / "results.json").records
        parts.append(f"## {folder.name}: {len(records)} records\n")
        if _figure(folder).is_file():
            parts.append(f"![Share of tasks within a factor of the tuned baseline]({stem}_{folder.name}.svg)\n")
        parts += [_shortened((folder / f"{suite}.md").read_text(encoding="utf-8")) for suite in found]
    return "\n".join(parts)


def _figure(folder: Path) -> Path:
    return folder / "zero.svg"


def _shortened(text: str) -> str:
    """Return the tables of a suite, without those of the cells of a grid that only a later arm has."""
    lines = text.rstrip().split("\n")
    if len(lines) <= _MOST_LINES:
        return "\n".join(lines) + "\n"
    kept = [line for line in lines if not (line.startswith("| ") and line.split("|")[2].strip() == "")]
    return "\n".join([*kept, "", f"{len(lines) - len(kept)} cells more are in the results file."]) + "\n"


def publish(folders: Sequence[Path], to: Path) -> None:
    """Write :func:`page` to the file ``to``, and its figures beside it, each whole.

    Raises:
        ValueError: a folder holds no table of a suite.
    """
    text = page(folders, to.stem)
    for folder in folders:
        if _figure(folder).is_file():
            figure = _figure(folder).read_text(encoding="utf-8")
            _write(
                to.with_name(f"{to.stem}_{folder.name}.svg"),
                "".join(f"{line.rstrip()}\n" for line in figure.splitlines()),
            )
    _write(to, text)


def _write(to: Path, text: str) -> None:
    part = to.with_name(to.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, to)
