"""Figures of a reproduction: one SVG and one PNG, on white, whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from lipadvisor.report.style import figure, styled
from lipadvisor.trajectory.whole_files import write_bytes

__all__ = ["keep_figure"]


def keep_figure(
    out: Path, draw: Callable[[Figure], None], width: float = 9.0, height: float = 4.0, name: str = "figure"
) -> None:
    """Draw and write ``NAME.svg`` and ``NAME.png`` in ``out``.

    Args:
        out: folder.
        draw: puts axes on the figure that it is handed.
        width: inches.
        height: inches.
        name: of the files, without suffix.
    """
    with styled():
        made = figure(width, height)
        draw(made)
        for suffix in ("svg", "png"):
            buffer = io.BytesIO()
            made.savefig(buffer, format=suffix, dpi=110, facecolor="white")
            write_bytes(out / f"{name}.{suffix}", buffer.getvalue())
