"""Predicted against observed log-norm, the network above and one panel for each layer below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from lipadvisor.report.prediction import Track
from lipadvisor.report.style import COLOURS, as_svg, figure, styled

__all__ = ["draw_prediction"]

_COLUMNS = 3


def draw_prediction(tracks: Sequence[Track], name: str, alarms: Sequence[tuple[int, int]] = ()) -> str:
    """Return the figure of ``tracks``, the network's first, as SVG; ``alarms`` are stretches of steps, marked in it."""
    layers = tracks[1:]
    rows = -(-len(layers) // _COLUMNS)
    with styled():
        drawn = figure(8.6, 3.2 + 1.9 * rows)
        grid = drawn.add_gridspec(rows + 1, _COLUMNS, height_ratios=[1.6, *([1.0] * rows)])
        whole = drawn.add_subplot(grid[0, :])
        _panel(whole, tracks[0], "network: Z, log of the Lipschitz bound")
        for index, (first, last) in enumerate(alarms):
            label = "early warning" if not index else None
            whole.axvspan(first, max(last, first + 1), color=COLOURS[1], alpha=0.22, linewidth=0, label=label)
            whole.axvline(first, color=COLOURS[1], linewidth=0.9)
        handles, labels = whole.get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside upper left", ncols=5, fontsize=8)
        for index, seen in enumerate(layers):
            axes = drawn.add_subplot(grid[1 + index // _COLUMNS, index % _COLUMNS])
            _panel(axes, seen, f"layer {seen.layer}")
            if index % _COLUMNS:
                axes.set_ylabel("")
        return as_svg(drawn, name)


def _panel(axes: Axes, seen: Track, title: str) -> None:
    if len(seen.target_F):
        axes.fill_between(
            seen.target_F,
            seen.lower_F,
            seen.upper_F,
            color=COLOURS[5],
            alpha=0.3,
            linewidth=0,
            label=f"90 % band, made {seen.horizon} steps earlier",
        )
    axes.plot(seen.step_T, seen.paper_T, color=COLOURS[1], linestyle=(0, (1, 1.2)), label="predicted, paper's SDE")
    axes.plot(seen.step_T, seen.observed_T, color=COLOURS[7], linewidth=2.6, alpha=0.8, label="observed")
    axes.plot(seen.step_T, seen.finite_step_T, color=COLOURS[0], linewidth=1.0, label="predicted, with finite step")
    _limits(axes, seen)
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel("log-norm (nats)")


def _limits(axes: Axes, seen: Track) -> None:
    """Keep the view on the curves: early bands may be wider than all that follows."""
    shown = np.concatenate([seen.observed_T, seen.finite_step_T, seen.paper_T])
    shown = shown[np.isfinite(shown)]
    if len(shown):
        margin = 0.12 * max(float(np.ptp(shown)), 0.02)
        axes.set_ylim(shown.min() - margin, shown.max() + margin)
