"""The cost bar: what it times, what it counts, and that it writes it down."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from lipadvisor.experiments.bars.command import bars
from lipadvisor.experiments.bars.probe_networks import WORKLOADS, deep_linear
from lipadvisor.experiments.bars.probe_rivals import RIVALS, rival_step
from lipadvisor.experiments.bars.probe_timing import LEVELS, _ratios, _Syncs, scaling


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_networks_take_their_batches(workload: object) -> None:
    x, y = workload.batch(torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
    model = workload.model()  # type: ignore[attr-defined]
    assert torch.isfinite(nn.functional.cross_entropy(model(x[:2]), y[:2]))


def test_vmap_gives_the_gradient_of_the_batch() -> None:
    workload = WORKLOADS[-1]
    model, (x, y) = workload.model(), workload.batch(torch.Generator().manual_seed(0))
    step, reason = rival_step("vmap(grad)", model, lambda m: torch.optim.SGD(m.parameters(), lr=0.1), (x, y))
    assert step is not None, reason
    step(x, y)  # of a copy
    nn.functional.cross_entropy(model(x), y).backward()
    per_sample = RIVALS["vmap(grad)"][1](model)
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    per_sample(x, y)
    for p, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-6)


def test_ratios_are_of_medians_and_by_round() -> None:
    found = _ratios({"plain": np.array([1.0, 2.0, 4.0]), "full": np.array([2.0, 3.0, 8.0])})["full"]
    assert found["ratio"] == 1.5
    assert found["extra_ms"] == 1000.0
    assert found["lower"] <= found["upper"]


def test_waiting_for_a_value_is_counted() -> None:
    x = torch.ones(3)
    with _Syncs() as syncs:
        float(x.sum())
        (x * 2).cpu()
        x.add(1)
    assert syncs.count == 2


def test_a_measured_step_of_many_layers_waits_no_more_often_than_one_of_few() -> None:
    few, many = scaling(10, 0), scaling(60, 0)
    assert many["syncs"] == few["syncs"]
    assert many["setup_s"] < 2.0
    assert len(deep_linear(60)) == 60  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_command_writes_the_table(tmp_path: Path) -> None:
    done = CliRunner().invoke(bars, ["probe-cost", "--quick", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "probe-cost" / "bar.json").read_text())
    assert all(written["figures"]["networks"]["digits-mlp"][level]["ratio"] > 1.0 for level in LEVELS)
    assert "vmap(grad)" in (tmp_path / "probe-cost" / "table.txt").read_text()
