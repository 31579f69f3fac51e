"""Test loss of each arm: a dot a seed, a bar at the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from lipadvisor.report.style import ARM_COLOURS, COLOURS, as_svg, figure, styled

__all__ = ["draw_comparison"]


def draw_comparison(arms: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return the figure as SVG; ``arms`` each have ``arm`` and ``test_losses``, a list with one loss a repetition."""
    shown = [row for row in arms if row["test_losses"]]
    with styled():
        drawn = figure(8.6, 0.75 + 0.32 * max(len(shown), 1))
        axes = drawn.subplots()
        for place, row in enumerate(reversed(shown)):
            colour = ARM_COLOURS.get(row["arm"], COLOURS[place % len(COLOURS)])
            losses = row["test_losses"]
            mean = sum(losses) / len(losses)
            axes.plot([mean, mean], [place - 0.3, place + 0.3], color=colour, linewidth=2.4, solid_capstyle="butt")
            axes.plot(losses, [place] * len(losses), "o", color=colour, markersize=5, alpha=0.75, markeredgewidth=0)
        axes.set_yticks(range(len(shown)), [row["arm"] for row in reversed(shown)])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("test loss (nats)")
        return as_svg(drawn, name)
