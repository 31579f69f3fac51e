"""The three sizes of a step that the default policy votes on, along a real training."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from training_loop import advised, convnet, network, optimizer_of, train

from lipadvisor import Advisor


@pytest.mark.parametrize("kind", ["momentum", "adamw"])
@pytest.mark.parametrize("conv", [False, True])
def test_the_default_votes_on_three_measured_sizes_of_the_step(kind: str, conv: bool) -> None:
    model, shape = (convnet(), (1, 8, 8)) if conv else (network(), (8,))
    optimizer = optimizer_of(kind, model)
    weight = next(model.parameters())
    before: list[torch.Tensor] = []

    def note(*_: object) -> None:
        before.append(weight.detach().double().flatten(1).clone())

    optimizer.register_step_pre_hook(note)  # before the advisor's, which applies the decay
    with advised(model, optimizer) as advisor:
        train(model, optimizer, advisor, 12, shape)
        frames = advisor.trajectory
    layer = frames.observations[(frames.observations.layer == "0") & (frames.observations.step == 12)].iloc[0]
    applied = frames.decisions[frames.decisions.step == 11].iloc[0]
    old = before[-1]
    kept = 1.0 - applied.lr_applied * applied.weight_decay_applied
    moved = (weight.detach().double().flatten(1) - old * kept) / applied.lr_applied
    assert layer.frobenius_ratio == pytest.approx(float(moved.norm() / old.norm()), rel=1e-2)
    assert layer.row_ratio == pytest.approx(float(moved.norm(dim=1).max() / old.norm(dim=1).max()), rel=1e-2)
    told = frames.decisions.read[frames.decisions.step > 0]
    assert told.str.contains("median_over_spectral").all()


class Drawing(nn.Module):
    """Draws from Python's and numpy's generators, in training or not, and counts its passes."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.passes = first, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        y: torch.Tensor = self.first(x) * (1.0 + random.random() + float(np.random.rand()))
        return y


@pytest.mark.parametrize("convolution", [False, True])
def test_beginning_draws_no_numbers_and_runs_matrices_no_more_often(convolution: bool) -> None:
    model = Drawing(nn.Conv2d(1, 2, 3) if convolution else nn.Linear(5, 3))
    x = torch.ones(2, 1, 5, 5)
    advisor = Advisor(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=5, mode="shadow")
    python, legacy = random.getstate(), np.random.get_state()
    model(x)
    after = random.random(), np.random.rand()
    assert model.passes == 1 + convolution
    random.setstate(python)
    np.random.set_state(legacy)
    random.random(), np.random.rand()  # what the one pass drew
    assert after == (random.random(), np.random.rand())
    advisor.close()
