"""Optimizers that need no tuning of their own, with their packages' defaults: Schedule-Free AdamW and Prodigy.

They are not vectorised: each member is an ordinary PyTorch training run on the same initialization and batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from lipadvisor.experiments.benchmarks.task import Task, batch_order

__all__ = ["FOREIGN", "ForeignName", "train_foreign"]

ForeignName = Literal["schedule_free", "prodigy"]
FOREIGN: tuple[ForeignName, ...] = ("schedule_free", "prodigy")


def train_foreign(
    task: Task, name: ForeignName, seed: int, tick: Callable[[int], None] = lambda step: None
) -> dict[str, float]:
    """Return the final losses of one run, by split.

    Schedule-Free takes no schedule; Prodigy gets cosine annealing, as its authors advise.

    Raises:
        ImportError: the optimizer's package is not installed (extra ``dev``).
    """
    data, model = task.load(), task.model(seed)
    optimizer = _optimizer(name, model)
    annealed = name == "prodigy"
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.steps) if annealed else None
    _mode(optimizer, "train")
    for step, rows in enumerate(batch_order(len(data.train), task.batch_size, task.steps, seed)):
        optimizer.zero_grad()
        task.loss(model(data.train.inputs[rows]), data.train.targets[rows]).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        tick(step)
    _mode(optimizer, "eval")
    with torch.no_grad():
        return {
            name: float(task.loss(model(part.inputs), part.targets))
            for name, part in (("train", data.train), ("validation", data.validation), ("test", data.test))
        }


def _optimizer(name: ForeignName, model: nn.Module) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer
    if name == "schedule_free":
        from schedulefree import AdamWScheduleFree

        optimizer = AdamWScheduleFree(model.parameters())
    else:
        from prodigyopt import Prodigy

        optimizer = Prodigy(model.parameters())
    return optimizer


def _mode(optimizer: Any, mode: Literal["train", "eval"]) -> None:
    """Switch the weights of an optimizer that trains at one point and evaluates at another."""
    if hasattr(optimizer, mode):
        getattr(optimizer, mode)()
