"""The performance profile: an arm is drawn where its ratios are, and looks the same wherever it is."""

from __future__ import annotations

import re

from lipadvisor.experiments.benchmarks.profile_figure import profile_figure


def _strokes(svg: str) -> list[str]:
    """Return the look of each line drawn in a colour of the cycle, with its dashes: curves, then legend."""
    styles = re.findall(r'style="fill: none; ([^"]*stroke: #[0-9a-f]{6}[^"]*)"', svg)
    return [style for style in styles if "stroke-width: 1.5" in style]


def test_no_two_arms_look_alike_and_an_arm_looks_the_same_in_both_panels(tmp_path):
    many = {f"arm {index}": {"a": 0.8 + 0.02 * index, "b": 1.1} for index in range(23)}
    later = {"a later one": {"c": 1.0}, "arm 7": {"c": 1.2}}
    path = profile_figure({"first": many, "second": later}, tmp_path / "profile.svg")
    strokes = _strokes(path.read_text())
    assert len(strokes) == 23 + 2 + 24
    curves, legend = strokes[:25], strokes[25:]
    assert len(set(legend)) == 24
    assert curves[:23] == legend[:23]
    assert curves[23:] == [legend[23], legend[7]]
