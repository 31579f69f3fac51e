"""Steps too small for float32 weights are read from the optimizer's state, whichever of torch's loops made them."""

import numpy as np
import pytest
import torch
from torch import nn

from lipadvisor.probe import Probe


def first_terms(foreach: bool, maximize: bool) -> list[np.ndarray]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 4))
    options = {"lr": 1e-7, "momentum": 0.9, "nesterov": True, "foreach": foreach, "maximize": maximize}
    optimizer = torch.optim.SGD(model.parameters(), **options)
    probe = Probe(model, optimizer, interval=1)
    found = []
    for step in range(5):
        x = torch.randn(16, 12, generator=torch.Generator().manual_seed(step))
        probe.arm(step)
        model(x).square().mean().backward()
        probe.before_update()
        optimizer.step()
        probe.after_update({0: 1e-7}, {0: 0.0})
        optimizer.zero_grad()
        terms = probe.collect(step)
        assert terms is not None
        found.append(terms.first_L)
    probe.close()
    return found


@pytest.mark.parametrize("maximize", [False, True])
def test_both_loops_of_sgd_with_nesterov_give_the_same_first_order(maximize: bool) -> None:
    for one, other in zip(first_terms(False, maximize), first_terms(True, maximize), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)
