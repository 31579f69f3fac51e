"""The parts of the network's growth over the steps, added up from the start."""

from __future__ import annotations

from lipadvisor.report.growth import Growth
from lipadvisor.report.style import COLOURS, as_svg, figure, styled

__all__ = ["draw_growth"]

_LOOKS = {
    "drift": (COLOURS[0], "-"),
    "noise_curvature": (COLOURS[1], "-"),
    "diffusion": (COLOURS[3], "--"),
    "finite_step": (COLOURS[2], "-"),
    "decay": (COLOURS[4], "-"),
    "remainder": (COLOURS[6], ":"),
}


def draw_growth(seen: Growth, name: str) -> str:
    """Return the figure of ``seen`` as SVG."""
    with styled():
        drawn = figure(8.6, 2.9)
        axes = drawn.subplots()
        axes.axhline(0.0, color="#888888", linewidth=0.8)
        axes.plot(seen.step_T, seen.growth_T, color=COLOURS[7], linewidth=2.6, alpha=0.8, label="growth of Z")
        for part, value_T in seen.parts_T.items():
            colour, line = _LOOKS[part]
            axes.plot(seen.step_T, value_T, color=colour, linestyle=line, label=part.replace("_", " "))
        axes.set_xlabel("step")
        axes.set_ylabel("since the start (nats)")
        drawn.legend(loc="outside upper left", ncols=7, fontsize=8, columnspacing=1.2, handlelength=1.6)
        return as_svg(drawn, name)
