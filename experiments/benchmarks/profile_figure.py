"""The performance profile (Dolan and More 2002): share of tasks within a factor of the tuned baseline, for each arm."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

__all__ = ["profile_figure"]

_ROWS = 20  # of the legend, which stands beside the curves
_COLOURS = 10  # of the cycle
# Each with all colours, before any look comes again.
_DASHES: tuple[Literal["solid", "dashed", "dotted", "dashdot"], ...] = ("solid", "dashed", "dotted", "dashdot")


def profile_figure(
    panels: Mapping[str, Mapping[str, Mapping[str, float]]],
    path: str | os.PathLike[str],
    highest: float = 2.0,
    against: str = "the best of 64 tuned trials",
) -> Path:
    """Draw one panel a list of tasks, one curve an arm; write SVG or PNG by the file's ending.

    An arm looks the same in every panel, and no two arms look alike unless there are more than forty.

    Args:
        panels: ratios by panel, arm and task.
        path: of the file.
        highest: right end of the axis of ratios, > 1.
        against: what the ratios are to, in words.

    Returns:
        The path written.
    """
    names = dict.fromkeys(arm for arms in panels.values() for arm in arms)
    looks = {
        arm: (f"C{place % _COLOURS}", _DASHES[place // _COLOURS % len(_DASHES)]) for place, arm in enumerate(names)
    }
    columns = -(-max(len(looks), 1) // _ROWS)
    figure = Figure(figsize=(5.0 * max(len(panels), 1) + 2.0 * columns, 3.6), layout="constrained")
    axes = figure.subplots(1, max(len(panels), 1), squeeze=False, sharey=True)[0]
    factors = np.geomspace(0.5, highest, 400)
    for ax, (title, arms) in zip(axes, panels.items(), strict=False):
        for arm, by_task in arms.items():
            ratios = np.asarray(list(by_task.values()))
            share = (ratios[None, :] <= factors[:, None]).mean(1)
            colour, dashes = looks[arm]
            ax.step(factors, share, where="post", color=colour, linestyle=dashes)
        ax.axvline(1.0, color="0.7", linewidth=1, zorder=0)
        ax.set_xscale("log")
        ax.set_xticks([0.5, 0.7, 1.0, 1.2, 1.5, 2.0], ["0.5", "0.7", "1", "1.2", "1.5", "2"])
        ax.minorticks_off()
        ax.set_xlabel(f"test loss, ratio to {against}")
        ax.set_title(title)
    axes[0].set_ylabel("share of tasks")
    lines = [Line2D([], [], label=arm, color=look[0], linestyle=look[1]) for arm, look in looks.items()]
    figure.legend(handles=lines, fontsize=7, loc="outside right upper", ncols=columns)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.stem}.part{target.suffix}")
    figure.savefig(part)
    os.replace(part, target)
    return target
