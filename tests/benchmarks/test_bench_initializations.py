"""The comparison of initializations: what is scaled, and on which weights a scheme looks."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from lipadvisor.experiments.benchmarks.command import bench
from lipadvisor.experiments.benchmarks.initializations import (
    INITIALIZATION_TASKS,
    INITIALIZATIONS,
    _part,
    branches,
)
from lipadvisor.experiments.benchmarks.lists import DESIGN, TASKS
from lipadvisor.modules import lsuv
from lipadvisor.policies import PlannedInitialization

torch.set_num_threads(1)


def test_the_tasks_are_of_the_design_list_and_some_have_branches():
    assert {task.name for task in DESIGN} >= INITIALIZATION_TASKS
    joined = {name: len(branches(TASKS[name].model(0))) for name in INITIALIZATION_TASKS}
    assert sum(count > 0 for count in joined.values()) == 4
    assert joined["mlp_digits"] == 0


@pytest.mark.parametrize("name", ["mixer_digits", "residual_waves", "batchnorm_resnet"])
def test_branches_end_where_their_last_matrix_is(name):
    model = TASKS[name].model(0)
    ends = branches(model)
    assert set(ends.values()) == {len(ends)}
    with torch.no_grad():
        for end in ends:
            for parameter in model.get_submodule(end).parameters():
                parameter.zero_()
    x = TASKS[name].load().train.inputs[:8]
    for end in ends:  # with its last matrix at zero, a branch adds what no other weight of it can change
        first = model(x)
        holder = end.rpartition(".")[0]
        with torch.no_grad():
            for key, parameter in model.get_submodule(holder).named_parameters():
                if parameter.ndim >= 2 and f"{holder}.{key}" != f"{end}.weight":
                    parameter.mul_(3.0)
        torch.testing.assert_close(model(x), first)


def test_a_scheme_looks_at_the_weights_as_they_are_trained():
    task = TASKS["wine"]
    found = _part(INITIALIZATIONS["lsuv"], task, 3, 10.0)
    model = task.model(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.mul_(10.0)
    assert found == PlannedInitialization(lsuv(model, task.load().train.inputs[:64]).factors)


def test_the_command_prints_a_row_for_each():
    shown = CliRunner().invoke(bench, ["initializations", "--task", "wine", "--seeds", "1"])
    assert shown.exit_code == 0, shown.output
    assert all(f"| {name} | 1 |" in shown.output for name in INITIALIZATIONS if "depth" not in name)
    assert "depth-scaled" not in shown.output, "no branches"
    assert "must be positive" in CliRunner().invoke(bench, ["initializations", "--scale", "0"]).output
    assert "design list" in CliRunner().invoke(bench, ["initializations", "--task", "nowhere"]).output
