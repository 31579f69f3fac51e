"""What may happen to a run at half its length: other labels, or a learning rate written from outside."""

from __future__ import annotations

import torch

from lipadvisor.experiments.benchmarks.drive import Shock
from lipadvisor.experiments.benchmarks.population import Population
from lipadvisor.experiments.workloads import Data, Split

__all__ = ["LABEL_NOISE", "LR_FACTOR", "label_noise", "written_lr"]

LABEL_NOISE = 0.4  # share of the training labels drawn anew
LR_FACTOR = 10.0
_SEED = 60_013


def label_noise(share: float = LABEL_NOISE) -> Shock:
    """Return the shock that draws a ``share`` of the training labels anew, for good; the held-out ones stay clean."""

    def shock(population: Population, lr: list[float]) -> None:
        clean = population.data
        labels = clean.train.targets
        generator = torch.Generator().manual_seed(_SEED)
        wrong = torch.rand(labels.shape, generator=generator) < share
        drawn = torch.randint(0, int(labels.max()) + 1, labels.shape, generator=generator)
        noisy = Split(clean.train.inputs, torch.where(wrong, drawn, labels))
        population.data = Data(noisy, clean.validation, clean.test)

    return shock


def written_lr(factor: float = LR_FACTOR) -> Shock:
    """Return the shock that multiplies the learning rates in force; they hold until somebody decides again."""

    def shock(population: Population, lr: list[float]) -> None:
        lr[:] = [value * factor for value in lr]

    return shock
