"""Small networks, batches and a plain training loop, for the tests of the advisor."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from lipadvisor import Advisor
from lipadvisor.policies import Decision


def network(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(8, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
        )


def convnet(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.Flatten(), nn.Linear(36, 3)
        )


def batches(steps: int, shape: tuple[int, ...] = (8,), start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(32, *shape, generator=generator)
        thirds = [part.flatten(1).sum(1) for part in x.tensor_split(3, dim=-1)]
        yield x, torch.stack(thirds, 1).argmax(1)


def optimizer_of(kind: str, model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=lr)
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9 if kind == "momentum" else 0.0)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    advisor: Advisor | None,
    steps: int,
    shape: tuple[int, ...] = (8,),
    start: int = 0,
) -> list[float]:
    losses = []
    for x, y in batches(steps, shape, start):
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if advisor is not None:
            assert isinstance(advisor.step(loss), Decision)
        losses.append(loss.item())
    return losses


def advised(
    model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int | None = 60, **more: object
) -> Advisor:
    return Advisor(model, optimizer, total_steps, interval=1, on_error="raise", **more)  # type: ignore[arg-type]
