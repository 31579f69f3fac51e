"""Bar: what measuring every step takes in memory, over what the training itself takes.

Counted is all that torch's allocator hands out in a process of its own, from the making of the network on: weights,
gradients, the optimizer's state, activations, and what single operations need meanwhile. Its peak while measured is set
against the peak while not. The allocator's own slack, imported libraries and other networks are not in it. Arrays that
NumPy allocates itself, and Python's objects, are counted apart.
"""

from __future__ import annotations

import itertools
import multiprocessing
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from lipadvisor.experiments.bars import Bar, BarSettings
from lipadvisor.experiments.bars.probe_networks import WORKLOADS, Workload
from lipadvisor.experiments.bars.probe_timing import LEVELS, _drawn, _step
from lipadvisor.trajectory import read_json, write_json

__all__ = ["peak_bytes", "run"]

_BAR = 1.10
_STEPS = 10  # cold starts, pairs of steps and those after them


def run(settings: BarSettings) -> Bar:
    """Measure the bar. Each network's figures are kept: an interrupted measurement goes on with the next one."""
    workloads = WORKLOADS[-2:] if settings.quick else WORKLOADS
    found = {workload.name: _network(settings, workload) for workload in workloads}
    checks = []
    for workload in workloads:
        for level in LEVELS:
            ratio = found[workload.name][level]["tensors"] / found[workload.name]["plain"]["tensors"]
            checks.append((f"{workload.name}: memory, {level}", ratio, f"at most {_BAR:g}", ratio <= _BAR))
    return Bar("probe-memory", tuple(checks), found, _table(found))


def peak_bytes(workload: Workload, level: str | None, seed: int, steps: int = _STEPS) -> dict[str, int]:
    """Return the most that is held at once while the network is made and trained, in this process.

    Args:
        workload: the network.
        level: that every step is measured at; None measures nothing.
        seed: of the network and the batches.
        steps: to train.

    Returns:
        Bytes of ``tensors``; of ``objects``, Python's and NumPy's, beside what was there before.
    """
    torch.set_num_threads(1)
    tracemalloc.start()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            step = _step(workload, _drawn(workload.model, seed), level)
            generator = torch.Generator().manual_seed(seed)
            for _ in range(steps):
                step(*workload.batch(generator))
            objects = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    results: Any = seen.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    sizes = [int(event.nbytes()) for event in sorted(events, key=lambda event: event.start_ns())]
    return {"tensors": max(itertools.accumulate(sizes)), "objects": objects}


def _network(settings: BarSettings, workload: Workload) -> dict[str, dict[str, int]]:
    """Return the peaks of one network, plain and at each level, each of a fresh process; or those kept from before."""
    kept = settings.out / "networks" / f"{workload.name}.json"
    if kept.exists():
        before: dict[str, dict[str, int]] = read_json(kept)
        return before
    found = {}
    context = multiprocessing.get_context("spawn")
    for name, level in (("plain", None), *((level, level) for level in LEVELS)):
        with ProcessPoolExecutor(1, context) as pool:
            found[name] = pool.submit(_by_name, workload.name, level, settings.seed).result()
    ratios = (f"{level} {found[level]['tensors'] / found['plain']['tensors']:.3f}" for level in LEVELS)
    settings.progress(f"{workload.name}: " + ", ".join(ratios))
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, found)
    return found


def _by_name(name: str, level: str | None, seed: int) -> dict[str, int]:
    return peak_bytes(next(one for one in WORKLOADS if one.name == name), level, seed)


def _table(networks: dict[str, dict[str, dict[str, int]]]) -> str:
    lines = ["Peak of the tensors of a training with every step measured, over a plain one; MB of Python's and NumPy's"]
    lines.append(f"{'network':20} {'plain MB':>9}" + "".join(f" {level:>16}" for level in LEVELS))
    for name, found in networks.items():
        plain = found["plain"]
        cells = []
        for level in LEVELS:
            more = (found[level]["objects"] - plain["objects"]) / 1e6
            cells.append(f"{found[level]['tensors'] / plain['tensors']:.3f} ({more:+.2f} MB)")
        lines.append(f"{name:20} {plain['tensors'] / 1e6:9.2f}" + "".join(f" {cell:>16}" for cell in cells))
    return "\n".join(lines)
