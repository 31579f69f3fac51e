"""A three-layer perceptron on the digits, trained by AdamW."""

from __future__ import annotations

import torch
from torch import nn

from lipadvisor.experiments.workloads.digits import digits_vectors
from lipadvisor.experiments.workloads.workload import Workload

__all__ = ["digits_mlp"]


def _build() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)


digits_mlp = Workload(
    name="digits_mlp",
    summary="MLP 64-128-128-10 on digits, AdamW, batch 64",
    batch_size=64,
    optimizer_kind="adamw",
    build=_build,
    optimizer=_optimizer,
    load=digits_vectors,
)
