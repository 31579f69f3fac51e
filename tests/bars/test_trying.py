"""Rehearsals at a branch point: the bar's own stage, and how often they are right."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lipadvisor.experiments.bars.trying import Tried, shares, tried
from lipadvisor.experiments.reproduce.images import load_images
from lipadvisor.experiments.reproduce.run_log import RunLog
from lipadvisor.experiments.reproduce.training import Recipe, train


def _build() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


def test_a_plan_that_breaks_the_run_is_lost_and_one_that_goes_on_is_not() -> None:
    images, recipe = load_images("digits"), Recipe("momentum", 31, interval=5)
    log = RunLog(recipe.identity)
    done = train(recipe, images, _build, lambda step, loss, terms: log.add(loss, terms))
    before = copy.deepcopy((done.model.state_dict(), done.optimizer.state_dict()["param_groups"]))
    plans = {"on": (1.0, 0.0), "decay": (1.0, 1e-3), "far too fast": (1e4, 0.0)}
    found = tried(done, log, images, recipe.base_lr, 16, plans, {10: 2, 3: 1})
    assert {plan: [one["steps"] for one in own] for plan, own in found.items()} == {key: [10, 10, 3] for key in plans}
    for plan, own in found.items():
        for one in own:
            assert bool(one["lost"]) == (plan == "far too fast"), (plan, one)
            assert len(one["loss_RT"]) == 4
            assert all(len(loss_T) == one["steps"] for loss_T in one["loss_RT"])
    assert all(one["refused"] for one in found["far too fast"])
    assert found["on"][0]["loss_RT"] != found["on"][1]["loss_RT"], "batches of their own"
    after = done.model.state_dict(), done.optimizer.state_dict()["param_groups"]
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1] == after[1]


def test_shares_are_of_rehearsals_by_what_became_of_the_plan() -> None:
    def own(*lost: bool, steps: int = 10) -> list[Tried]:
        return [Tried(steps, "a replica is lost" if one else "", True) for one in lost]

    cases = [(False, own(True, False)), (False, own(False, False)), (True, own(True)), (True, own(False, True, True))]
    cases.append((True, own(False, steps=50)))
    ten, fifty = shares(cases)
    assert (ten["steps"], ten["healthy"], ten["destabilising"]) == (10.0, 4.0, 4.0)
    assert (ten["false"], ten["hit"], ten["refused"]) == (0.25, 0.75, 1.0)
    assert (fifty["steps"], fifty["healthy"], fifty["hit"]) == (50.0, 0.0, 0.0)
    assert fifty["false"] != fifty["false"]
    assert shares([(False, [])]) == []
    assert pytest.approx(1.0) == fifty["refused"]
