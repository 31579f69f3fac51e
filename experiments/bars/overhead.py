"""Bar: what an advisor with its default settings adds to a training, and whether it reports that rightly.

Six trainings: the two workloads of the demo and the four networks of ordinary size that the cost of measuring is told
on. Each is kept as it is finished.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict

import torch
from torch import Tensor, nn

from lipadvisor.experiments.bars import Bar, BarSettings
from lipadvisor.experiments.bars import probe_networks as networks
from lipadvisor.experiments.bars.twins import Subject, Twins, run_twins
from lipadvisor.experiments.workloads import WORKLOADS, Workload
from lipadvisor.trajectory import write_json

__all__ = ["run"]

MAX_OVERHEAD = 0.03
_LAST = 0.0005  # the last measurement may end a little above
_ORDINARY_MS = 1.0  # a step, below which the 20 us of an idle one are most of the allowance
_HONEST = 0.01  # share of the run's time by which the advisor's own account may be off
_SECONDS, _LARGE_SECONDS, _QUICK_SECONDS = 120.0, 240.0, 3.0  # process CPU time of an advised training
_BATCHES = 16  # of the networks without data of their own, again and again


def run(settings: BarSettings) -> Bar:
    """Measure the bar on all six."""
    rows = {}
    for subject in _subjects(settings.quick):
        rows[subject.name] = _kept(subject, settings)
    checks = [(f"{name}: share as reported", row.reported, *_within(row.reported)) for name, row in rows.items()]
    ordinary = {name: row for name, row in rows.items() if row.step_ms >= _ORDINARY_MS}
    checks += [(f"{name}: share by the clock", row.clock, *_within(row.clock)) for name, row in ordinary.items()]
    off = max(abs(row.reported - row.clock) for row in ordinary.values())
    checks.append(("reported and by the clock, largest difference", off, f"at most {_HONEST}", off <= _HONEST))
    others = sum(not row.same for row in rows.values())
    checks.append(("twins that computed other numbers", float(others), "none", others == 0))
    lines = [f"{'training':20} {'steps':>7} {'step ms':>8} {'measured':>9} {'reported':>9} {'by the clock':>18}"]
    lines += [
        f"{name:20} {row.steps:7d} {row.step_ms:8.3f} {row.measurements:9d} {row.reported:9.2%} "
        f"{row.clock:9.2%} +- {row.clock_error:.2%}"
        for name, row in rows.items()
    ]
    figures = {"max_overhead": MAX_OVERHEAD, "trainings": {name: asdict(row) for name, row in rows.items()}}
    return Bar("overhead", tuple(checks), figures, "\n".join(lines))


def _within(share: float) -> tuple[str, bool]:
    return f"at most {MAX_OVERHEAD}", share <= MAX_OVERHEAD + _LAST


def _kept(subject: Subject, settings: BarSettings) -> Twins:
    path = settings.out / f"{subject.name}-{settings.seed}{'-quick' if settings.quick else ''}.json"
    if path.exists():
        settings.progress(f"{subject.name}: kept from an earlier run ({path.name}; remove it to measure anew)")
        return Twins(**json.loads(path.read_text()))
    twins = run_twins(subject, settings.seed, MAX_OVERHEAD, settings.progress)
    write_json(path, asdict(twins))
    return twins


def _subjects(quick: bool) -> list[Subject]:
    small = [_of_workload(one, _QUICK_SECONDS if quick else _SECONDS) for one in WORKLOADS.values()]
    return small if quick else small + [_of_network(one) for one in networks.WORKLOADS if one.full_bar is not None]


def _of_workload(workload: Workload, seconds: float) -> Subject:
    data = workload.load()
    return Subject(
        workload.name,
        workload.model,
        workload.optimizer,
        lambda seed: workload.batches(data, seed),
        seconds,
    )


def _of_network(network: networks.Workload) -> Subject:
    return Subject(
        network.name,
        _seeded(network.model),
        network.optimizer,
        lambda seed: _again(network.batch, seed),
        _LARGE_SECONDS,
    )


def _seeded(model: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def make(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return model()

    return make


def _again(draw: Callable[[torch.Generator], tuple[Tensor, Tensor]], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return itertools.cycle([draw(generator) for _ in range(_BATCHES)])
