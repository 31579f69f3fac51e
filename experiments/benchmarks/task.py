"""What a benchmark task is: data split in three, a tiny network as PyTorch initializes it, and an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipadvisor.experiments.workloads import Data

__all__ = ["Task", "batch_order"]

OptimizerKind = Literal["adamw", "sgd", "muon"]
LossKind = Literal["cross_entropy", "mse"]


@dataclass(frozen=True, slots=True)
class Task:
    """One row of the bench.

    A model is written so that ``torch.func.vmap`` can stack it: no buffers, no dropout, no data-dependent control
    flow. ``load`` is deterministic; a seed names one initialization and one order of batches.
    """

    name: str
    summary: str  # one line, for people
    optimizer: OptimizerKind
    steps: int
    batch_size: int
    loss_kind: LossKind
    build: Callable[[], nn.Module]  # draws from torch's default generator
    load: Callable[[], Data]
    small_table: bool = False  # overfits: reported separately as well

    def model(self, seed: int) -> nn.Module:
        """Return a fresh model whose initialization depends on ``seed`` alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss: nats a label or token, or the mean squared error."""
        if self.loss_kind == "mse":
            return functional.mse_loss(output, target)
        return functional.cross_entropy(output.flatten(0, -2), target.flatten())


def batch_order(rows: int, batch_size: int, steps: int, seed: int) -> Tensor:
    """Return row numbers (steps, batch_size): shuffled epochs one after the other, no batch cut short."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + 17)
    per_epoch = rows // batch_size
    epochs = [
        torch.randperm(rows, generator=generator)[: per_epoch * batch_size].view(per_epoch, batch_size)
        for _ in range(-(-steps // per_epoch))
    ]
    return torch.cat(epochs)[:steps]
