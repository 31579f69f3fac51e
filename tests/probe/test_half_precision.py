"""Weights in half precision: what counts is the step that was really made, most of which rounding may have eaten."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from layer_twins import dense, take_step
from torch import nn

from lipadvisor.probe import Probe

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=1e-3),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-4, eps=1e-4, weight_decay=0.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_change_is_that_of_the_weights_as_they_are_rounded(name: str, dtype: torch.dtype) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convs = nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 8, 2, stride=2)
        model = nn.Sequential(*convs, nn.Flatten(), nn.Linear(8 * 9, 3)).to(dtype)
    optimizer = OPTIMIZERS[name](model)
    probe = Probe(model, optimizer, interval=1)
    generator = torch.Generator().manual_seed(1)
    lr = optimizer.param_groups[0]["lr"]
    eaten = []
    for step in range(6):
        x, y = torch.randn(16, 2, 6, 6, generator=generator).to(dtype), torch.randint(0, 3, (16,), generator=generator)
        old = [layer.value().double().clone() for layer in probe.layers]
        terms = take_step(model, optimizer, probe, (x, y), step, nn.functional.cross_entropy)
        for index, layer in enumerate(probe.layers):
            made = layer.value().double() - old[index]
            if name == "sgd":
                eaten.append(float((made == 0).double().mean()))
            U, s, Vh = torch.linalg.svd(dense(probe, index, old[index]))
            first = float(U[:, 0] @ dense(probe, index, made) @ Vh[0] / s[0]) / lr
            size = float(torch.linalg.matrix_norm(dense(probe, index, made), 2) / s[0]) / lr
            assert terms.first_L[index] == pytest.approx(first, abs=2e-3 * size), (step, layer.name)
            after = float(torch.linalg.matrix_norm(dense(probe, index, old[index] + made), 2))
            rounding = 1e-6  # of a logarithm of singular values in float32
            assert terms.change_L[index] == pytest.approx(np.log(after / float(s[0])), abs=2e-2 * size * lr + rounding)
    if name == "sgd":
        assert max(eaten) > 0.5  # or the test would not show what it is about
