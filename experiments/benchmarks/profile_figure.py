"""The performance profile (Dolan and More 2002): share of tasks within a factor of the tuned baseline, for each arm."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

__all__ = ["profile_figure"]

_ROWS = 20  # of the legend, which stands beside the curves


def profile_figure(
    panels: Mapping[str, Mapping[str, Mapping[str, float]]],
    path: str | os.PathLike[str],
    highest: float = 2.0,
    against: str = "the best of 64 tuned trials",
) -> Path:
    """Draw one panel a list of tasks, one curve an arm; write SVG or PNG by the file's ending.

    Args:
        panels: ratios by panel, arm and task.
        path: of the file.
        highest: right end of the axis of ratios, > 1.
        against: what the ratios are to, in words.

    Returns:
        The path written.
    """
    columns = -(-max([len(arms) for arms in panels.values()], default=1) // _ROWS)
    figure = Figure(figsize=(5.0 * max(len(panels), 1) + 2.0 * columns, 3.6), layout="constrained")
    axes = figure.subplots(1, max(len(panels), 1), squeeze=False, sharey=True)[0]
    factors = np.geomspace(0.5, highest, 400)
    for ax, (title, arms) in zip(axes, panels.items(), strict=False):
        for arm, by_task in arms.items():
            ratios = np.asarray(list(by_task.values()))
            share = (ratios[None, :] <= factors[:, None]).mean(1)
            ax.step(factors, share, where="post", label=arm)
        ax.axvline(1.0, color="0.7", linewidth=1, zorder=0)
        ax.set_xscale("log")
        ax.set_xticks([0.5, 0.7, 1.0, 1.2, 1.5, 2.0], ["0.5", "0.7", "1", "1.2", "1.5", "2"])
        ax.minorticks_off()
        ax.set_xlabel(f"test loss, ratio to {against}")
        ax.set_title(title)
    axes[0].set_ylabel("share of tasks")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=7, loc="outside right upper", ncols=columns)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.stem}.part{target.suffix}")
    figure.savefig(part)
    os.replace(part, target)
    return target
