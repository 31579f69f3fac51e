"""The bar of the probe's memory: what it counts."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from lipadvisor.experiments.bars.command import bars
from lipadvisor.experiments.bars.live_storages import LiveStorages
from lipadvisor.experiments.bars.probe_memory import peak_bytes
from lipadvisor.experiments.bars.probe_networks import WORKLOADS
from lipadvisor.experiments.bars.probe_timing import LEVELS


def test_peaks_are_those_of_the_tensors_of_a_training() -> None:
    workload = WORKLOADS[-1]
    plain, measured = peak_bytes(workload, None, 0, steps=3), peak_bytes(workload, "full", 0, steps=3)
    weights = 4 * sum(p.numel() for p in workload.model().parameters())
    assert 3 * weights <= plain["tensors"] < measured["tensors"]  # weights, gradients, momenta
    assert peak_bytes(workload, None, 0, steps=3)["tensors"] == plain["tensors"]


def test_storages_count_once_and_until_they_are_gone() -> None:
    with LiveStorages() as seen:
        x = torch.zeros(1000)
        views = [x[:500], x.reshape(10, 100)]
        assert seen.look() == 4000
        y = x + 1.0
        assert seen.look() == seen.peak_bytes == 8000
        del x, views
        assert seen.look() == 4000
        seen.restart()
        y.add_(1.0)
        assert seen.peak_bytes == 4000
        del y
        assert seen.look() == 0


def test_what_a_backward_pass_keeps_is_counted() -> None:
    with LiveStorages() as seen:
        layer = nn.Linear(100, 50)
        x = torch.zeros(8, 100, requires_grad=True)
        before = seen.look()
        y = torch.tanh(layer(x))
        assert seen.look() == before + 8 * 50 * 4  # tanh's result is its own context
        y.sum().backward()
        del y
        gc.collect()
        assert seen.look() == before + 4 * (8 * 100 + 5050)


@pytest.mark.slow
def test_the_command_writes_ratios(tmp_path: Path) -> None:
    done = CliRunner().invoke(bars, ["probe-memory", "--quick", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "probe-memory" / "bar.json").read_text())["figures"]
    for levels in figures.values():
        assert levels["plain"]["tensors"] < levels["drift"]["tensors"]
        assert levels["plain"]["objects"] > 0
        assert all(level in levels for level in LEVELS)
