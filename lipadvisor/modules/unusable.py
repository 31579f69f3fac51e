"""Weights that carry no signal whatever their scale: all zero, or not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from lipadvisor.modules.finding import Finding
from lipadvisor.modules.flow import Flow

__all__ = ["instances", "not_finite", "not_finite_findings", "zero_weights"]


def instances(model: nn.Module) -> dict[str, int]:
    """Return modules of which one instance stands in several places, by their first name, with the number of places."""
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(name)
    return {names[0]: len(names) for names in places.values() if len(names) > 1}


def not_finite(model: nn.Module) -> dict[str, str]:
    """Return the modules that own a parameter with an entry that is not finite, and that parameter's own name."""
    found: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter.detach()).all()):
            module, _, own = name.rpartition(".")
            found.setdefault(module, own)
    return found


def not_finite_findings(flow: Flow, broken: Mapping[str, str]) -> list[Finding]:
    """Name the modules with such parameters; else, of an output that is not finite, the first module that made one."""
    source = "arXiv 2306.09338"
    if broken:
        cure = "give it finite values: draw it anew, or load it again"
        return [
            Finding(module, "non_finite", cure, f"its {own} is not finite", source, 99.0)
            for module, own in broken.items()
        ]
    if flow.finite:
        return []
    inf = float("inf")
    first = next((name for name, met in flow.modules.items() if met.rms_in < inf and not met.rms_out < inf), "")
    reason = "the output is not finite" + (", and here it first is not" if first else "")
    return [Finding(first, "non_finite", "lsuv", reason, source, 99.0)]


def zero_weights(
    flow: Flow, sizes: Mapping[str, float], kinds: Mapping[str, str], line: Sequence[str]
) -> list[Finding]:
    """Matrices that are zero and that training does not simply lift from there.

    A zero matrix at the end of a residual branch, or as the head, is deliberate: it blocks no other path, or nothing
    behind it, and the gradient that reaches it moves it at the first step. One on the trunk keeps the gradient from
    everything before it; one that gets no gradient itself stays where it is.
    """
    trunk = [name for name in line if name in sizes]
    found = []
    for name, met in flow.weights.items():
        if sizes.get(name) != 0 or kinds.get(name) == "embedding":
            continue
        blocks = name in trunk[:-1]
        if blocks or not met.gradient > 0:
            why = "no gradient passes it" if blocks else "no gradient reaches it"
            reason = f"all entries of its weight are zero, and {why}; a scale changes nothing"
            found.append(Finding(name, "zero_weight", "draw_anew", reason, "arXiv 2306.09338 (initialization)", 50.0))
    return found
