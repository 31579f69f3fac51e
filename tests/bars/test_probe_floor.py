"""The floor of measuring every step: that its bare work is the real one, and that it is written down."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from lipadvisor.experiments.bars.command import bars
from lipadvisor.experiments.bars.floor_work import ITEMS, BareWork
from lipadvisor.experiments.bars.probe_networks import WORKLOADS
from lipadvisor.experiments.bars.probe_timing import _drawn, _step

SMALL = {workload.name: workload for workload in WORKLOADS if workload.name.startswith("digits")}


@pytest.mark.parametrize("name", list(SMALL))
def test_the_work_changes_nothing_and_follows_the_norms(name: str) -> None:
    workload = SMALL[name]
    model = _drawn(workload.model, 0)
    left, worked = copy.deepcopy(model), copy.deepcopy(model)
    optimizer, work = workload.optimizer(left), BareWork(workload, worked, "full")
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        x, y = workload.batch(generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(left(x), y).backward()
        optimizer.step()
        work.step(x, y)
    assert all(torch.equal(p, q) for p, q in zip(left.parameters(), worked.parameters(), strict=True))
    assert all(work.spent_s[item] > 0 for item in ITEMS)
    for group in work._groups:
        if group.matrix:
            top = torch.linalg.matrix_norm(group.weights[0].detach(), 2)
            reached = (group.u_1M @ group.new @ group.v_1N.mT).flatten()
            assert 0.97 * top <= reached <= 1.0001 * top  # one power a step


def test_hooks_alone_do_no_work() -> None:
    workload = SMALL["digits-mlp"]
    work = BareWork(workload, _drawn(workload.model, 0), "hooks")
    work.step(*workload.batch(torch.Generator().manual_seed(0)))
    assert not any(work.spent_s.values())


def test_a_plain_step_is_that_of_the_copy() -> None:
    workload = SMALL["digits-mlp"]
    model = _drawn(workload.model, 0)
    before = [p.clone() for p in model.parameters()]
    _step(workload, model, None)(*workload.batch(torch.Generator().manual_seed(0)))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_the_command_writes_the_floor(tmp_path: Path) -> None:
    done = CliRunner().invoke(bars, ["probe-floor", "--quick", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "probe-floor" / "bar.json").read_text())
    found = written["figures"]["networks"]["digits-mlp"]
    assert set(found["items_ms"]) == set(ITEMS)
    assert 0 < found["ratios"]["noise"] < found["ratios"]["ours noise"]
    assert "floor" in (tmp_path / "probe-floor" / "table.txt").read_text()
