"""What the reproductions about modules leave behind: data and figure, written whole."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lipadvisor.experiments.reproduce import Settings
from lipadvisor.trajectory.whole_files import write_bytes, write_json

__all__ = ["keep", "slope"]


def keep(settings: Settings, data: dict[str, Any], figure: Figure) -> None:
    """Write ``data.json``, ``figure.svg`` and ``figure.png`` into the reproduction's directory."""
    FigureCanvasAgg(figure)
    for kind in ("svg", "png"):
        image = io.BytesIO()
        figure.savefig(image, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
        write_bytes(settings.out / f"figure.{kind}", image.getvalue())
    write_json(settings.out / "data.json", data)


def slope(x: list[float], y: list[float]) -> float:
    """Return the least-squares slope of y over x."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
