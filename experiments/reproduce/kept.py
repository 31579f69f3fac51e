"""What the reproductions leave behind: data and figure, written whole, and parts that an interrupted run resumes."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from typing import Any

from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from lipadvisor.experiments.reproduce import Settings
from lipadvisor.trajectory.whole_files import read_json, write_bytes, write_json, write_text

__all__ = ["keep", "kept_part", "plain_log", "slope"]


def keep(settings: Settings, data: dict[str, Any], figure: Figure) -> None:
    """Write ``data.json``, ``figure.svg`` and ``figure.png`` into the reproduction's directory."""
    FigureCanvasAgg(figure)
    for kind in ("svg", "png"):
        image = io.BytesIO()
        figure.savefig(image, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
        write_bytes(settings.out / f"figure.{kind}", image.getvalue())
    write_json(settings.out / "data.json", data)


def kept_part(settings: Settings, name: str, given: object, make: Callable[[], Any]) -> Any:
    """Return a part of a reproduction, from an earlier run that was interrupted where it has it, else made and kept.

    Args:
        settings: of the reproduction; data, seed and size tell parts of other runs from its own.
        name: of the part, unique in the reproduction.
        given: whatever else decides the part's numbers: printed, it must be the same.
        make: makes it; of numbers, texts, lists and dicts keyed by texts. What is returned has been read back from
            what is kept, so that a resumed run gives the same numbers to the last bit.
    """
    path = settings.out / "runs" / f"{re.sub(r'[^A-Za-z0-9.+-]+', '-', name)}.json"
    identity = f"{name} {settings.data} {settings.seed} {settings.quick} {given}"
    if path.exists():
        kept = read_json(path)
        if isinstance(kept, dict) and kept.get("identity") == identity:
            settings.progress(f"{name}: kept from before")
            return kept["value"]
    text = json.dumps({"identity": identity, "value": make()}, indent=1)  # with infinities, unlike what people read
    write_text(path, text)
    return json.loads(text)["value"]


def plain_log(axis: Axis, subs: tuple[float, ...] = (1.0, 2.0, 5.0)) -> None:
    """Label a logarithmic axis with plain numbers at ``subs`` times the powers of ten."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def slope(x: list[float], y: list[float]) -> float:
    """Return the least-squares slope of y over x."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
