"""The batched optimizers against PyTorch's own, one member at a time."""

from __future__ import annotations

import pytest
import torch

from lipadvisor.experiments.benchmarks.lists import TASKS
from lipadvisor.experiments.benchmarks.population import Population
from lipadvisor.experiments.benchmarks.task import batch_order
from lipadvisor.experiments.benchmarks.updates import Muon, orthogonalised


@pytest.mark.parametrize(
    ("task", "make"),
    [
        ("wine", lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
        ("diabetes", lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0)),
        ("gru_rows", lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0)),
        ("groupnorm_convnet", lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0)),
    ],
)
def test_a_member_trains_as_a_lone_pytorch_run_does(task, make):
    chosen, steps, seeds = TASKS[task], 12, (3, 4)
    population = Population(chosen, seeds, steps)
    lr = torch.full((2,), 0.05 if chosen.optimizer == "sgd" else 0.01)
    batched = []
    for step in range(steps):
        result = population.propose(step)
        batched.append(result.losses_B)
        population.move(result.directions, lr, torch.zeros(2))
    data = chosen.load()
    for member, seed in enumerate(seeds):
        model = chosen.model(seed)
        optimizer = make(model.parameters())
        for step, rows in enumerate(batch_order(len(data.train), chosen.batch_size, steps, seed)):
            optimizer.zero_grad()
            loss = chosen.loss(model(data.train.inputs[rows]), data.train.targets[rows])
            loss.backward()
            optimizer.step()
            assert float(batched[step][member]) == pytest.approx(float(loss), rel=2e-3, abs=2e-4)
        with torch.no_grad():
            alone = float(chosen.loss(model(data.test.inputs), data.test.targets))
        assert float(population.evaluate("test")[member]) == pytest.approx(alone, rel=5e-3)


def test_decay_shrinks_matrices_and_leaves_vectors_alone():
    population = Population(TASKS["wine"], (0, 1))
    before = {key: value.clone() for key, value in population.parameters.items()}
    still = {key: torch.zeros_like(value) for key, value in before.items()}
    population.move(still, torch.ones(2), torch.tensor([0.1, 0.0]))
    for key, value in population.parameters.items():
        factor = 0.9 if value.dim() >= 3 else 1.0
        torch.testing.assert_close(value[0], before[key][0] * factor)
        torch.testing.assert_close(value[1], before[key][1])


@pytest.mark.parametrize("shape", [(5, 8, 8), (3, 12, 5), (3, 5, 12)])
def test_orthogonalised_brings_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    s = torch.linalg.svdvals(orthogonalised(matrices))
    assert float(s[:, 0].min()) > 0.3
    assert float(s.max()) < 1.3


def test_muon_follows_torchs_own():
    weight = torch.nn.Parameter(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    theirs, ours = torch.optim.Muon([weight], lr=0.1, weight_decay=0.0), Muon()
    start = weight.detach().clone()
    for step in range(3):
        gradient = torch.randn(8, 4, generator=torch.Generator().manual_seed(step + 1))
        weight.grad = gradient.clone()
        theirs.step()
        start = start + 0.1 * ours.direction({"w": gradient[None]})["w"][0]
    torch.testing.assert_close(start, weight.detach(), atol=0.02, rtol=0.02)  # theirs iterates in bfloat16


def test_muon_refuses_vectors():
    with pytest.raises(ValueError, match="matrices"):
        Muon().direction({"b": torch.zeros(2, 5)})
