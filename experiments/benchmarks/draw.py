"""The numbers of drawn tasks: ranges are named by whoever writes a list, a seeded generator picks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from torch import nn

from lipadvisor.experiments.benchmarks.task import OptimizerKind

__all__ = ["Draw", "under_muon"]

T = TypeVar("T")


class Draw:
    """The numbers of one task: the same in every process, whatever else is drawn.

    Args:
        seed: of the list.
        name: of the task.
    """

    def __init__(self, seed: int, name: str) -> None:
        self._random = random.Random(f"{seed} {name}")

    def of(self, options: Sequence[T]) -> T:
        """Return one of ``options``."""
        return self._random.choice(options)

    def batch(self) -> int:
        """Return a batch size."""
        return self.of((8, 12, 16, 24, 32, 48, 64))

    def steps(self, low: int, high: int) -> int:
        """Return the length of a run, a multiple of ten."""
        return self.of(range(low, high + 1, 10))

    def width(self, low: int, high: int) -> int:
        """Return a multiple of four."""
        return self.of(range(low, high + 1, 4))

    def optimizer(self) -> OptimizerKind:
        """Return AdamW twice as often as SGD."""
        return self.of(("adamw", "adamw", "sgd"))

    def matrices_only(self, muon: bool) -> tuple[OptimizerKind, bool]:
        """Return the optimizer and whether there are biases: under ``muon``, whatever is drawn, there are none."""
        drawn = self.optimizer()
        return ("muon", False) if muon else (drawn, True)

    def activation(self) -> type[nn.Module]:
        """Return a kind of activation."""
        return self.of((nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Tanh, nn.SiLU, nn.GELU))


def under_muon(seed: int, names: Sequence[str], count: int) -> frozenset[str]:
    """Return ``count`` of ``names``: the tasks that are trained by Muon, and so have matrices alone."""
    return frozenset(random.Random(f"{seed} muon").sample(names, count))
