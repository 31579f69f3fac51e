"""Layers that begin at zero under the default: adapters of low rank, residual branches and heads."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lipadvisor import Advisor


class Adapted(nn.Module):
    """A frozen layer and a matrix of low rank beside it, which begins at zero (LoRA)."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.up(self.down(x))
        return y


class Branch(nn.Module):
    """A residual branch whose last layer begins at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(torch.relu(self.up(x)))
        return y


def adapted(teacher: nn.Sequential) -> nn.Sequential:
    """Return the teacher, each of its matrices moved by one of rank two, to be moved back."""
    network = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
    network.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, nn.Linear):
                rows, columns = layer.weight.shape
                moved = torch.randn(rows, 2) @ torch.randn(2, columns)
                layer.weight += 0.4 * layer.weight.std() * moved
    return nn.Sequential(*[Adapted(layer) if isinstance(layer, nn.Linear) else layer for layer in network])


def residual(_: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 64), Branch(64), Branch(64), Branch(64), nn.Linear(64, 4))


def headed(_: nn.Sequential) -> nn.Sequential:
    network = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
    nn.init.zeros_(network[-1].weight)
    return network


def unexplained(build: object, steps: int, seed: int) -> float:
    """Return the share of the teacher's variance that is left after training to imitate it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
        with torch.no_grad():
            for layer in teacher:
                if isinstance(layer, nn.Linear):
                    layer.weight *= 2.0
        network = build(teacher)  # type: ignore[operator]
        x = torch.randn(1024, 16)
        y = teacher(x).detach()
        optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad])
        advisor = Advisor(network, optimizer, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(0, len(x), (64,))
            optimizer.zero_grad()
            loss = ((network(x[rows]) - y[rows]) ** 2).mean()
            loss.backward()
            optimizer.step()
            advisor.step(loss=loss.detach())
        advisor.close()
        with torch.no_grad():
            return float(((network(x) - y) ** 2).mean() / y.var())


@pytest.mark.parametrize(("build", "most"), [(adapted, 0.25), (residual, 0.25), (headed, 0.25)])
def test_a_layer_that_begins_at_zero_does_not_hold_the_run_down(build: object, most: float) -> None:
    found = [math.log(unexplained(build, 60, seed)) for seed in range(2)]
    assert math.exp(sum(found) / 2) < most
