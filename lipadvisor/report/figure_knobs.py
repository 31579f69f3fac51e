"""Learning rate and weight decay over the steps, coloured by the reason of the decision in force."""

from __future__ import annotations

from collections import Counter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from lipadvisor.report.style import COLOURS, as_svg, figure, styled
from lipadvisor.report.timeline import Timeline

__all__ = ["draw_knobs"]

_NAMED = 6  # reasons with a colour of their own; the rarer ones share the last


def draw_knobs(seen: Timeline, name: str) -> str:
    """Return the figure of ``seen`` as SVG."""
    common = [reason for reason, _ in Counter(seen.reason_D).most_common(_NAMED)]
    named = [reason for reason in dict.fromkeys(seen.reason_D) if reason in common]
    colour = dict(zip(named, COLOURS, strict=False))
    with styled():
        drawn = figure(8.6, 4.8)
        above, below = drawn.subplots(2, 1, sharex=True, height_ratios=[1.5, 1.0])
        _steps(above, seen, seen.lr_D, colour)
        _steps(below, seen, seen.weight_decay_D, colour)
        for axes, value_D in ((above, seen.lr_D), (below, seen.weight_decay_D)):
            _scale(axes, value_D)
        above.set_ylabel("learning rate\n(per step)")
        below.set_ylabel("weight decay\n(per unit of τ)")
        below.set_xlabel("step")
        for step, word, line in ((seen.warmup_end, "warmup ends", 0), (seen.cooldown_start, "cooldown starts", 1)):
            if step is not None:
                _mark(above, below, step, word, line)
        handles = [Line2D([], [], color=colour[reason], linewidth=3, label=reason) for reason in named]
        if len(set(seen.reason_D)) > len(named):
            handles.append(Line2D([], [], color=COLOURS[-1], linewidth=3, label="other reasons"))
        drawn.legend(handles=handles, loc="outside upper left", ncols=2, fontsize=8)
        return as_svg(drawn, name)


def _steps(axes: Axes, seen: Timeline, value_D: NDArray[np.float64], colour: dict[str, str]) -> None:
    """Draw a staircase; each stretch of one reason takes the next one's first point along, so no gap is left."""
    start = 0
    for index in range(1, len(seen.step_D) + 1):
        if index < len(seen.step_D) and seen.reason_D[index] == seen.reason_D[start]:
            continue
        stretch = slice(start, index + 1)
        axes.plot(
            seen.step_D[stretch],
            value_D[stretch],
            drawstyle="steps-post",
            linewidth=1.8,
            color=colour.get(seen.reason_D[start], COLOURS[-1]),
            solid_capstyle="butt",
        )
        start = index


def _scale(axes: Axes, value_D: NDArray[np.float64]) -> None:
    """Take a logarithmic axis where the values are positive and span more than a factor of ten."""
    positive = value_D[np.isfinite(value_D) & (value_D > 0)]
    if len(positive) and len(positive) == np.count_nonzero(np.isfinite(value_D)) and np.ptp(np.log10(positive)) > 1:
        axes.set_yscale("log")


def _mark(above: Axes, below: Axes, step: int, word: str, line: int) -> None:
    for axes in (above, below):
        axes.axvline(step, color="#888888", linewidth=0.8, linestyle=(0, (4, 3)))
    above.annotate(
        word,
        (step, 0.0),
        xycoords=("data", "axes fraction"),
        xytext=(3, 3 + 10 * line),
        textcoords="offset points",
        fontsize=7.5,
    )
