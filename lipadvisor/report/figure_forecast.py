"""Forecast quality over the horizon: error beside persistence, and coverage of the 90 % band."""

from __future__ import annotations

from collections.abc import Sequence

from lipadvisor.report.prediction import HorizonScore
from lipadvisor.report.style import COLOURS, as_svg, figure, styled

__all__ = ["draw_forecast"]


def draw_forecast(scores: Sequence[HorizonScore], name: str) -> str:
    """Return the figure of ``scores``, ascending in their horizon, as SVG."""
    horizons = [score.horizon for score in scores]
    with styled():
        drawn = figure(8.6, 2.5)
        left, right = drawn.subplots(1, 2)
        left.plot(horizons, [s.mae for s in scores], "o-", color=COLOURS[0], label="forecast")
        left.plot(horizons, [s.persistence_mae for s in scores], "s--", color=COLOURS[7], label="stays as it is")
        if any(max(s.mae, s.persistence_mae) > 0.0 for s in scores):  # else there is nothing to be drawn
            left.set_yscale("log")
        left.set_ylabel("mean absolute error of Z (nats)")
        left.legend(fontsize=8)
        right.plot(horizons, [s.coverage for s in scores], "o-", color=COLOURS[0])
        right.axhline(0.9, color=COLOURS[1], linestyle="--", linewidth=1.0)
        right.annotate("aim: 0.90", (horizons[0], 0.9), xytext=(0, 3), textcoords="offset points", fontsize=8)
        right.set_ylim(0, 1.03)
        right.set_ylabel("share inside the 90 % band")
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xticks(horizons, [str(horizon) for horizon in horizons])
            axes.minorticks_off()
            axes.set_xlabel("steps ahead")
        return as_svg(drawn, name)
