"""Learning curves by arm: validation loss over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from lipadvisor.report.style import ARM_COLOURS, COLOURS, as_svg, figure, styled

__all__ = ["draw_curves"]


def draw_curves(arms: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return the figure as SVG.

    Args:
        arms: each with ``arm`` and ``curves``: one list of ``[step, training loss, validation loss]`` a repetition.
        name: of the figure.
    """
    with styled():
        drawn = figure(8.6, 3.3)
        axes = drawn.subplots()
        for index, row in enumerate(arms):
            curves = [curve for curve in row["curves"] if curve]
            if not curves:
                continue
            colour = ARM_COLOURS.get(row["arm"], COLOURS[index % len(COLOURS)])
            step_T = sorted({point[0] for curve in curves for point in curve})
            loss_RT = np.array([_at(curve, step_T) for curve in curves])
            kept = np.isfinite(loss_RT).any(axis=0)
            step_kept, loss_kept = np.array(step_T)[kept], loss_RT[:, kept]
            axes.plot(step_kept, np.nanmean(loss_kept, axis=0), color=colour, label=row["arm"], zorder=3 + index)
            axes.fill_between(
                step_kept,
                np.nanmin(loss_kept, axis=0),
                np.nanmax(loss_kept, axis=0),
                color=colour,
                alpha=0.13,
                linewidth=0,
            )
        _scale(axes)
        axes.set_xlabel("step")
        axes.set_ylabel("validation loss (nats)")
        drawn.legend(loc="outside upper left", ncols=5, fontsize=8)
        return as_svg(drawn, name)


def _scale(axes: Axes) -> None:
    """Take a logarithmic axis where the losses span more than a factor of two; label it with plain numbers."""
    low, high = axes.get_ylim()
    if low <= 0 or high / low > 2:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _at(curve: Sequence[Sequence[float | None]], step_T: Sequence[Any]) -> list[float]:
    found = {point[0]: point[2] for point in curve}
    values = (found.get(step) for step in step_T)
    return [float("nan") if value is None else float(value) for value in values]
