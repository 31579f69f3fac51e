"""The bench's averages of a population are those that an advisor keeps of each member alone."""

from __future__ import annotations

import math

import torch

from lipadvisor.experiments.benchmarks.averages import Averages
from lipadvisor.experiments.benchmarks.lists import DESIGN
from lipadvisor.experiments.benchmarks.population import Population
from lipadvisor.policies import Decision

TASK = next(task for task in DESIGN if task.name == "wine")


def test_each_member_has_its_own_memory_and_its_own_beginning() -> None:
    population, steps = Population(TASK, (0, 1, 2)), TASK.steps
    averages = Averages(population)
    memories = (10.0, None, 30.0)
    for member, memory in enumerate(memories):
        averages.take(member, Decision(0, "test", "asks", averaging=memory))
    key = next(iter(population.parameters))
    value = population.parameters[key]
    twin = torch.zeros(3, *value.shape[1:], dtype=torch.float64)
    taken = [0, 0, 0]
    generator = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        value.add_(0.1 * torch.randn(value.shape, generator=generator))
        if step == steps // 2:
            averages.restart([2])
            taken[2] = 0
        averages.follow(step)
        for member, memory in enumerate(memories):
            taken[member] += 1
            fresh = max(1.0 / taken[member], 1.0 - math.exp(-1.0 / (memory or 1.0)))
            twin[member] += fresh * (value[member].double() - twin[member])
    last = value.clone()
    averages.end()
    twin[1] = last[1].double()  # asked for none
    assert torch.equal(value[1], last[1])
    assert (value.double() - twin).abs().max() < 1e-5
    assert (value[0] - last[0]).abs().max() > 1e-2
