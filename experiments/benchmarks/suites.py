"""What is perturbed: initialization, the user's knobs, the policy's own constants, the horizon."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch

from lipadvisor.experiments.benchmarks.population import Population
from lipadvisor.policies import Policy

__all__ = [
    "INIT_SCALES",
    "INTERVALS",
    "INTERVAL_STARTS",
    "LR_FACTORS",
    "WEIGHT_DECAY_FACTORS",
    "perturbed_constants",
    "scale_all",
    "scale_each",
]

LR_FACTORS = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)  # times the tuned learning rate
INIT_SCALES = (0.1, 0.3, 1.0, 3.0, 10.0)  # times every weight matrix
WEIGHT_DECAY_FACTORS = (0.01, 1.0, 100.0)  # times the tuned weight decay
INTERVALS = (50, 100, 200, 400, 500, 1000)  # steps between decisions
INTERVAL_STARTS = (1.0, 3.0)  # times every weight matrix, in the interval suite

Perturb = Callable[[Population], None]


def scale_all(factors_B: tuple[float, ...]) -> Perturb:
    """Return the change that multiplies all weight matrices of member ``i`` by ``factors_B[i]``."""

    def perturb(population: Population) -> None:
        factors = torch.tensor(factors_B, dtype=torch.float32)
        for key in population.matrices:
            value = population.parameters[key]
            value.mul_(factors.view(-1, *([1] * (value.dim() - 1))))

    return perturb


def scale_each(decades: float = 1.0) -> Perturb:
    """Return the change that multiplies each matrix by its own ``10^U(-decades, decades)``, drawn from the seed."""

    def perturb(population: Population) -> None:
        for member, seed in enumerate(population.seeds):
            generator = torch.Generator().manual_seed(seed * 7919 + 5)
            for key in population.matrices:
                exponent = decades * (2.0 * float(torch.rand((), generator=generator)) - 1.0)
                population.parameters[key][member] *= 10.0**exponent

    return perturb


def perturbed_constants(policy: Policy[Any], factor: float = 8.0) -> dict[str, Policy[Any]]:
    """Return the policy with each of its positive numeric constants multiplied and divided by ``factor``.

    A value that the constructor refuses (a share above 1, a zone turned inside out) is brought to the nearest one that
    it takes, in steps of ten per cent; a constant that cannot move at all is left out.
    """
    found: dict[str, Policy[Any]] = {}
    for field in dataclasses.fields(policy):  # type: ignore[arg-type]
        value = getattr(policy, field.name) if field.init else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0.0:
            continue
        for sign, label in ((1.0, "x"), (-1.0, "/")):
            changed = _nearest(policy, field.name, value, sign * math.log(factor))
            if changed is not None:
                found[f"{field.name}{label}{factor:g}"] = changed
    return found


def _nearest(policy: Any, name: str, value: float, log_factor: float) -> Policy[Any] | None:
    for share in range(10, 0, -1):
        wanted = value * math.exp(log_factor * share / 10.0)
        if isinstance(value, int):
            wanted = max(1, round(wanted))
        if wanted == value:
            return None
        try:
            changed: Policy[Any] = dataclasses.replace(policy, **{name: wanted})
        except ValueError:
            continue
        return changed
    return None
