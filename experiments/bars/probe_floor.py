"""Bar: whether the bars for measuring every step can be met at all: the least work that it takes, beside ours.

For each network copies train in turn, in one process: one left alone, some with the array work of
:mod:`lipadvisor.experiments.bars.floor_work` around each step, and some with a probe. Process CPU time, one thread;
means over the rounds, since a probe that renews its vectors now and then has dear steps and cheap ones.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from lipadvisor.experiments.bars import Bar, BarSettings
from lipadvisor.experiments.bars.floor_work import ITEMS, BareWork
from lipadvisor.experiments.bars.one_thread import one_thread
from lipadvisor.experiments.bars.probe_networks import WORKLOADS, Workload
from lipadvisor.experiments.bars.probe_rivals import Step
from lipadvisor.experiments.bars.probe_timing import _WARM, _drawn, _rounds, _step
from lipadvisor.trajectory import read_json, write_json

__all__ = ["run"]

FLOORS = ("hooks", "drift", "noise", "full")
RENEW_EVERY = 8
OURS = ("ours drift", "ours noise", "ours light", "ours full")


def run(settings: BarSettings) -> Bar:
    """Measure the bar. Each network's figures are kept: an interrupted measurement goes on with the next one."""
    with one_thread():
        workloads = WORKLOADS[-2:] if settings.quick else WORKLOADS
        networks = {workload.name: _network(settings, workload) for workload in workloads}
    checks = []
    for workload in workloads:
        for level, bar in (("noise", workload.drift_bar), ("full", workload.full_bar)):
            if bar is not None:
                ratio = networks[workload.name]["ratios"][level]
                checks.append((f"{workload.name}: floor of {level}", ratio, f"at most {bar:g}", ratio <= bar))
    bars = {workload.name: (workload.drift_bar, workload.full_bar) for workload in workloads}
    return Bar("probe-floor", tuple(checks), {"networks": networks}, _table(networks, bars))


def _network(settings: BarSettings, workload: Workload) -> dict[str, Any]:
    """Return the figures of one network, taken now or kept from before."""
    kept = settings.out / "networks" / f"{workload.name}.json"
    if kept.exists() and not settings.quick:
        found: dict[str, Any] = read_json(kept)
        return found
    found = _measured(workload, 4 if settings.quick else _rounds_for(workload), settings.seed)
    ratios = ", ".join(f"{name} {ratio:.3f}" for name, ratio in found["ratios"].items())
    settings.progress(f"{workload.name}: {ratios}")
    if not settings.quick:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, found)
    return found


def _rounds_for(workload: Workload) -> int:
    """Return how many rounds, a multiple of those from one renewal to the next."""
    return RENEW_EVERY * (20 if workload.name.startswith("digits") else 10 if workload.name.startswith("mlp") else 3)


def _measured(workload: Workload, rounds: int, seed: int) -> dict[str, Any]:
    model = _drawn(workload.model, seed)
    bare = {level: BareWork(workload, copy.deepcopy(model), level) for level in FLOORS}
    kinds: dict[str, Step] = {"plain": _step(workload, model, None)}
    kinds |= {level: one.step for level, one in bare.items()}
    for name in OURS:
        level = name.removeprefix("ours ")
        light = level == "light"
        kinds[name] = _step(workload, model, "noise" if light else level, RENEW_EVERY if light else 1)

    def begin() -> None:
        for one in bare.values():
            one.spent_s = dict.fromkeys(ITEMS, 0.0)

    spent = _rounds(workload, kinds, rounds, seed, after_warm=begin)
    plain_s = float(np.mean(spent["plain"]))
    items = {level: {item: 1e3 * bare[level].spent_s[item] / rounds for item in ITEMS} for level in FLOORS}
    return {
        "plain_ms": 1e3 * plain_s,
        "ratios": {name: float(np.mean(values)) / plain_s for name, values in spent.items() if name != "plain"},
        "items_ms": items["full"] | {"samples": items["noise"]["samples"], "curvature": _curvature(items)},
        "rounds": rounds,
        "warm": _WARM,
    }


def _curvature(items: dict[str, dict[str, float]]) -> float:
    """Return what curvature adds, that which comes with the samples included."""
    return items["full"]["curvature"] + items["full"]["samples"] - items["noise"]["samples"]


def _table(networks: dict[str, dict[str, Any]], bars: dict[str, tuple[float | None, float | None]]) -> str:
    lines = ["The least work around each step, ms a step (hooks: by the ratio of whole steps)"]
    lines.append(f"{'network':20} {'plain':>9} {'hooks':>9}" + "".join(f" {item:>9}" for item in ITEMS))
    for name, found in networks.items():
        hooks_ms = (found["ratios"]["hooks"] - 1.0) * found["plain_ms"]
        cells = [found["plain_ms"], hooks_ms, *(found["items_ms"][item] for item in ITEMS)]
        lines.append(f"{name:20}" + "".join(f" {cell:9.2f}" for cell in cells))
    lines += ["", "Steps over plain ones, ratio of means: the bar, the floor, the probe"]
    columns = ("hooks", "drift", *(f"{level} {what}" for level in ("noise", "full") for what in ("bar", "floor")))
    lines.append(f"{'network':20}" + "".join(f" {one:>11}" for one in (*columns, *OURS)))
    for name, found in networks.items():
        ratios, (noise_bar, full_bar) = found["ratios"], bars[name]
        cells = [ratios["hooks"], ratios["drift"], noise_bar, ratios["noise"], full_bar, ratios["full"]]
        cells += [ratios[one] for one in OURS]
        lines.append(f"{name:20}" + "".join(f" {'-' if cell is None else f'{cell:.3f}':>11}" for cell in cells))
    return "\n".join(lines)
