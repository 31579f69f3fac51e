"""A plain five-layer ConvNet on the digits, trained by SGD with momentum."""

from __future__ import annotations

import torch
from torch import nn

from lipadvisor.experiments.workloads.digits import digits_images
from lipadvisor.experiments.workloads.workload import Workload

__all__ = ["digits_convnet"]


def _build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


digits_convnet = Workload(
    name="digits_convnet",
    summary="five-layer ConvNet (3 convolutions, 2 linear) on digits, SGD with momentum 0.9, batch 64",
    batch_size=64,
    optimizer_kind="sgd",
    build=_build,
    optimizer=_optimizer,
    load=digits_images,
)
