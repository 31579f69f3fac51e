"""Batched measurement against dense singular values, and against the real advisor."""

from __future__ import annotations

import math

import pytest
import torch

from lipadvisor import Advisor
from lipadvisor.experiments.benchmarks.drive import drive
from lipadvisor.experiments.benchmarks.lists import TASKS
from lipadvisor.experiments.benchmarks.operators import find_operators, refresh
from lipadvisor.experiments.benchmarks.population import Population
from lipadvisor.experiments.benchmarks.task import batch_order
from lipadvisor.policies import Lipschitz


@pytest.mark.parametrize("task", ["wine", "plain_convnet"])
def test_power_iteration_finds_the_operators_norm(task):
    population = Population(TASKS[task], (0, 1))
    for operator in find_operators(population):
        weight = population.parameters[operator.key]
        start = torch.randn(2, operator.inputs, generator=torch.Generator().manual_seed(0))
        pair = refresh(operator, weight, start, 200)
        basis = torch.eye(operator.inputs)
        for member in range(2):
            rows = weight[member].expand(operator.inputs, *weight.shape[1:])
            dense = operator.apply(rows.contiguous(), basis).T.double()
            assert float(pair.s[member]) == pytest.approx(float(torch.linalg.svdvals(dense)[0]), rel=2e-3)
            back = operator.adjoint(weight[member : member + 1], pair.u[member : member + 1])
            torch.testing.assert_close(back[0].double(), dense.T @ pair.u[member].double(), atol=1e-4, rtol=1e-4)


class Listener:
    """A policy that keeps what it is shown."""

    name = "lipschitz"

    def __init__(self):
        self.inner, self.seen, self.rates = Lipschitz(), [], []

    def init(self):
        return self.inner.init()

    def decide(self, observation, state):
        decision, state = self.inner.decide(observation, state)
        self.seen.append(observation)
        self.rates.append(decision.knobs_for(0).lr)
        return decision, state


def test_policies_see_and_decide_what_they_would_under_the_real_advisor():
    task, steps, seed = TASKS["mlp_digits"], 40, 0
    batched = Listener()
    drive(task, [batched], [seed], steps=steps)
    model, data = task.model(seed), task.load()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    real = Listener()
    advisor = Advisor(model, optimizer, steps, policy=real, max_overhead=1.0, interval=1, on_error="raise")
    for rows in batch_order(len(data.train), task.batch_size, steps, seed):
        optimizer.zero_grad()
        loss = task.loss(model(data.train.inputs[rows]), data.train.targets[rows])
        loss.backward()
        optimizer.step()
        advisor.step(loss)
    advisor.close()
    assert [seen.step for seen in real.seen if seen.step > 0] == list(range(1, steps + 1))
    assert len(batched.seen) >= 16
    theirs = {observation.step: (observation, lr) for observation, lr in zip(real.seen, real.rates, strict=True)}
    mine_last = {
        observation.step: (observation, lr) for observation, lr in zip(batched.seen, batched.rates, strict=True)
    }
    for ours, lr in mine_last.values():  # step 0 is decided twice: again on the rescaled weights
        if ours.step > 10:  # from here on small differences of the rate have made two different runs
            break
        other, their_lr = theirs[ours.step]
        assert lr == pytest.approx(their_lr, rel=0.05)
        assert [layer.name for layer in ours.layers] == [layer.name for layer in other.layers]
        for mine, layer in zip(ours.layers, other.layers, strict=True):
            assert mine.shape == layer.shape
            assert mine.log_norm == pytest.approx(
                layer.log_norm, abs=0.12
            )  # one vector lags where singular values cross
            assert mine.log_gain == pytest.approx(layer.log_gain, abs=0.08)  # theirs is of the weights before the step
            if ours.step > 0:
                assert math.log(mine.update_ratio / layer.update_ratio) == pytest.approx(0.0, abs=0.15)
