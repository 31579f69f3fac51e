"""Shocks at half the run: with the real advisor, and the bench's own."""

from __future__ import annotations

import logging

import pytest
import torch

from lipadvisor import Advisor
from lipadvisor.experiments.benchmarks import runs as runs_module
from lipadvisor.experiments.benchmarks.bench import Bench
from lipadvisor.experiments.benchmarks.drive import drive
from lipadvisor.experiments.benchmarks.lists import TASKS
from lipadvisor.experiments.benchmarks.population import Population
from lipadvisor.experiments.benchmarks.shocks import label_noise, written_lr
from lipadvisor.experiments.benchmarks.store import Results
from lipadvisor.experiments.benchmarks.task import batch_order
from lipadvisor.policies import Constant

STEPS = 200


def train(seed=0, noise=False, factor=1.0):
    """Train an MLP on digits under the advisor; at half the run something happens. Return what came out."""
    task = TASKS["mlp_digits"]
    model, data = task.model(seed), task.load()
    labels = data.train.targets.clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    advisor = Advisor(model, optimizer, STEPS, max_overhead=1.0, interval=1, on_error="raise")
    in_step = []
    optimizer.register_step_post_hook(lambda o, args, kwargs: in_step.append(o.param_groups[0]["lr"]))
    generator = torch.Generator().manual_seed(3)
    for step, rows in enumerate(batch_order(len(data.train), 32, STEPS, seed)):
        if step == STEPS // 2:
            if noise:
                wrong = torch.rand(len(labels), generator=generator) < 0.4
                labels = torch.where(wrong, torch.randint(0, 10, labels.shape, generator=generator), labels)
            optimizer.param_groups[0]["lr"] *= factor
        optimizer.zero_grad()
        loss = task.loss(model(data.train.inputs[rows]), labels[rows])
        loss.backward()
        optimizer.step()
        advisor.step(loss)
    advisor.close()
    with torch.no_grad():
        test = float(task.loss(model(data.test.inputs), data.test.targets))
        right = float((model(data.test.inputs).argmax(1) == data.test.targets).float().mean())
    return {
        "test": test, "right": right, "lr": in_step, "decisions": advisor.trajectory.decisions,
        "weights": torch.cat([p.detach().flatten() for p in model.parameters()]),
    }  # fmt: skip


def test_a_learning_rate_written_from_outside_reaches_no_step_and_is_told(caplog):
    with caplog.at_level(logging.WARNING, logger="lipadvisor"):
        shocked = train(factor=10.0)
    assert "was written from outside" in caplog.text
    plain = train()
    assert shocked["lr"] == plain["lr"]
    assert torch.equal(shocked["weights"], plain["weights"])
    told = shocked["decisions"]
    steps = told.loc[told["refused"].str.contains("foreign_write"), "step"].tolist()
    assert steps == [STEPS // 2 + 1]
    assert not plain["decisions"]["refused"].str.contains("foreign_write").any()


def test_wrong_labels_from_half_the_run_on_are_told_and_the_network_still_learns():
    plain, shocked = train(), train(noise=True)
    told = shocked["decisions"]
    steps = told.loc[told["reason"].str.contains("shock:loss"), "step"].tolist()
    assert len(steps) == 1
    assert STEPS // 2 < steps[0] <= STEPS // 2 + 15
    assert not plain["decisions"]["reason"].str.contains("shock:loss").any()
    assert shocked["right"] > 0.85  # of clean labels, though 36 % of those it saw in the second half were wrong
    assert plain["right"] > 0.93


def test_the_shocks_change_what_they_say_and_nothing_else():
    task = TASKS["mlp_digits"]
    population = Population(task, [0])
    before = population.data
    label_noise(0.4)(population, [])
    changed = (population.data.train.targets != before.train.targets).float().mean()
    assert 0.3 < float(changed) < 0.42  # a tenth of those drawn anew come out as they were
    assert torch.equal(population.data.test.targets, before.test.targets)
    assert torch.equal(task.load().train.targets, before.train.targets)  # the task's own data stay
    rates = [0.1, 0.2]
    written_lr(10.0)(population, rates)
    assert rates == pytest.approx([1.0, 2.0])


def test_a_written_rate_holds_until_the_next_decision():
    task = TASKS["wine"]
    outcomes = {
        every: drive(task, [Constant(lr=0.01)], [0], steps=40, decide_every=every, shock=written_lr(50.0)).train[0]
        for every in (1, 40)
    }
    plain = drive(task, [Constant(lr=0.01)], [0], steps=40).train[0]
    assert outcomes[40] != pytest.approx(plain, rel=0.2)
    assert abs(outcomes[1] - plain) < abs(outcomes[40] - plain)


@pytest.mark.slow
def test_the_suite_compares_with_the_same_shock_and_counts_the_notices(tmp_path, monkeypatch):
    monkeypatch.setattr(runs_module, "_MOST_MEMBERS", 4)
    found = Bench(Results(tmp_path / "r.json"), [TASKS["mlp_digits"]], seeds=2, trials=4).shocks()
    assert found["labels 0.4, told"]["mlp_digits"] == 1.0
    assert found["false alarms"]["mlp_digits"] == 0.0
    assert set(found) >= {"labels 0.4", "lr x10", "lr x10, decided every 50"}
