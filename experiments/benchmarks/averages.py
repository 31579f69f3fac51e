"""The running averages of a population's weights, as the advisor keeps one: see :mod:`lipadvisor.average`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lipadvisor.experiments.benchmarks.population import Population
from lipadvisor.policies import Decision

__all__ = ["Averages"]

_UPDATES = 200  # in a run, as with the advisor, which takes up the weights at each decision


class Averages:
    """One exponential average a member, for those whose policy asks for it.

    Args:
        population: whose weights are averaged; changed by :meth:`end` alone.
    """

    def __init__(self, population: Population) -> None:
        members = len(population)
        self._population, self._stride = population, max(1, population.steps // _UPDATES)
        self._memory_B = torch.zeros(members)  # steps; 0: none
        self._taken_B, self._step_B = torch.zeros(members), torch.zeros(members)
        self._mean: dict[str, Tensor] = {}

    def take(self, member: int, decision: Decision) -> None:
        """Take over the memory that ``decision`` asks for."""
        memory = decision.averaging
        if memory is not None and math.isfinite(memory) and memory > 0.0:
            self._memory_B[member] = memory

    def restart(self, members: Sequence[int]) -> None:
        """Forget the weights of ``members`` so far."""
        self._taken_B[list(members)] = 0.0

    def follow(self, step: int) -> None:
        """Take up the weights as they are after ``step`` steps, where that is due."""
        if (step % self._stride and step != self._population.steps) or not bool(self._memory_B.any()):
            return
        asked_B = self._memory_B > 0.0
        self._taken_B += asked_B
        elapsed_B = (step - self._step_B) / self._memory_B.clamp_min(1e-9)
        fresh_B = torch.maximum(1.0 / self._taken_B.clamp_min(1.0), -torch.expm1(-elapsed_B))
        fresh_B[~asked_B] = 1.0
        self._step_B.fill_(step)
        for key, value in self._population.parameters.items():
            mean = self._mean.setdefault(key, value.clone())
            mean.lerp_(value, _spread(fresh_B, value))

    def end(self) -> None:
        """Put the averages in the place of the weights of those who asked."""
        asked_B = self._memory_B > 0.0
        for key, mean in self._mean.items():
            value = self._population.parameters[key]
            value.copy_(torch.where(_spread(asked_B, value), mean, value))


def _spread(values_B: Tensor, like: Tensor) -> Tensor:
    """Return ``values_B`` so that they meet the first dimension of ``like``."""
    return values_B.view(-1, *([1] * (like.dim() - 1)))
