"""Runs the lists through a suite and writes what came out: one results file, one table, one figure."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lipadvisor.experiments.benchmarks.bench import zero_tuning_policies
from lipadvisor.experiments.benchmarks.foreign import FOREIGN
from lipadvisor.experiments.benchmarks.frozen import frozen_hash
from lipadvisor.experiments.benchmarks.lists import (
    CONFIRMATION,
    DESIGN,
    HORIZON_TASKS,
    INTERVAL_TASKS,
    QUICK,
    SHOCK_TASKS,
    TASKS,
)
from lipadvisor.experiments.benchmarks.profile_figure import profile_figure
from lipadvisor.experiments.benchmarks.progress import Progress
from lipadvisor.experiments.benchmarks.runs import ZERO_ARMS
from lipadvisor.experiments.benchmarks.score import table
from lipadvisor.experiments.benchmarks.side_by_side import Plan, side_by_side
from lipadvisor.experiments.benchmarks.store import Results
from lipadvisor.experiments.benchmarks.suites import (
    INIT_SCALES,
    INTERVAL_STARTS,
    INTERVALS,
    LR_FACTORS,
    WEIGHT_DECAY_FACTORS,
    perturbed_constants,
)
from lipadvisor.experiments.benchmarks.task import Task
from lipadvisor.experiments.benchmarks.variants import VARIANTS
from lipadvisor.policies import named_policy

__all__ = ["run_lists"]


def run_lists(
    out: Path,
    *,
    suite: str = "zero",
    which: str = "both",
    quick: bool = False,
    policy: str = "lipschitz",
    only: Sequence[str] = (),
    seeds: int | None = None,
    trials: int | None = None,
    decide_every: int = 5,
    threads: int = 1,
    arms: Sequence[str] = ZERO_ARMS,
    workers: int = 1,
) -> str:
    """Run ``suite`` on the lists and return the table; ``out`` gets ``results.json``, ``SUITE.md`` and ``SUITE.svg``.

    Raises:
        ValueError: a task or the policy is unknown.
        WorkerError: one of several workers did.
    """
    unknown = sorted(set(only) - set(TASKS))
    if unknown:
        raise ValueError(f"--task must be one of {', '.join(TASKS)}, got {unknown[0]!r}.")
    tested = {name: named_policy(name) for name in ((policy, "predictive") if suite == "interval" else (policy,))}
    torch.set_num_threads(threads)
    seeds = seeds or (3 if quick else 5)
    trials = trials or (32 if quick else 64)
    if suite == "variants" and which != "design":
        raise ValueError(f"--suite variants is for the design list alone (--list design), got --list {which}.")
    lists = _lists(which, quick, only, suite)
    if not lists:
        raise ValueError(f"no task is left by --list {which}, --task {' '.join(only) or 'any'} and --suite {suite}.")
    results = Results(out / "results.json")
    listed = [task for tasks in lists.values() for task in tasks]
    work = sum(_work(task, suite, seeds, trials, policy) for task in listed)
    if "searched" in arms and suite in ("zero", "baselines"):
        work += sum(2.0 * trials * task.steps for task in listed)
    progress = Progress(work)
    _announce(lists, seeds, trials, results)
    panels: dict[str, dict[str, dict[str, float]]] = {}
    plan = Plan(suite, seeds, trials, decide_every, policy, tuple(arms), threads)
    benches = {title: plan.bench(results, [task.name for task in tasks], progress) for title, tasks in lists.items()}
    if suite not in NO_BASELINE:
        progress.skip(sum(bench.known_baselines() for bench in benches.values()))
    notes = []
    for title, bench in benches.items():
        if title == "confirmation" and suite != "baselines":
            notes += [_freeze(results, name, frozen_hash(constants)) for name, constants in tested.items()]
        if min(workers, len(bench.tasks)) > 1:
            side_by_side(results, [task.name for task in bench.tasks], plan, workers, progress)
            bench.progress = Progress(1.0, every_s=math.inf)  # all of it is there, and has been counted
        panels[title] = getattr(bench, suite)()
    progress.close()
    text = "\n".join([*(table(arms, f"{title}, suite {suite}") for title, arms in panels.items()), *notes])
    _write_whole(out / f"{suite}.md", text)
    against = f"the best of {trials} tuned trials" if suite not in AGAINST_ITSELF else f"{policy} as it is"
    profile_figure(panels, out / f"{suite}.svg", against=against)
    return text


AGAINST_ITSELF = frozenset({"constants", "interval"})  # suites that compare the policy with itself


NO_BASELINE = AGAINST_ITSELF | {"horizon"}  # suites without the baseline of the task's own length


def _announce(lists: Mapping[str, Sequence[Task]], seeds: int, trials: int, results: Results) -> None:
    """Say what is about to run, and where it is kept."""
    plan = ", ".join(f"{len(tasks)} {title} tasks" for title, tasks in lists.items())
    known = f", {len(results.records)} records there already" if results.records else ""
    sys.stderr.write(f"{plan}; {seeds} seeds, baselines of {trials} trials; records in {results.path}{known}\n")


SUITE_TASKS = {
    "horizon": HORIZON_TASKS,
    "interval": INTERVAL_TASKS,
    "shocks": SHOCK_TASKS,
}  # the others run on whole lists


def _lists(which: str, quick: bool, only: Sequence[str], suite: str) -> dict[str, tuple[Task, ...]]:
    lists = {"design": DESIGN, "confirmation": CONFIRMATION}
    chosen = {name: tasks for name, tasks in lists.items() if which in (name, "both")}

    def wanted(task: Task) -> bool:
        if only:
            return task.name in only
        if suite in SUITE_TASKS:
            return task.name in SUITE_TASKS[suite]
        return task.name in QUICK or not quick

    kept = {name: tuple(task for task in tasks if wanted(task)) for name, tasks in chosen.items()}
    return {name: tasks for name, tasks in kept.items() if tasks}


def _work(task: Task, suite: str, seeds: int, trials: int, default: str) -> float:
    """Return the member-steps that a task takes: what the bench counts while it runs."""
    baseline = 2 * trials
    arms: Mapping[str, float] = {
        "zero": baseline + 2 * (trials // 3) + (len(zero_tuning_policies()) + 4 * len(FOREIGN) + 3) * seeds,
        "baselines": baseline + 2 * (trials // 3) + 4 * len(FOREIGN) * seeds,
        "grid": baseline + len(INIT_SCALES) * (seeds + len(LR_FACTORS) * len(WEIGHT_DECAY_FACTORS)),
        "init": baseline + seeds,
        "constants": (1 + len(perturbed_constants(named_policy(default)))) * seeds,
        "horizon": 30 * (2 * 16 + seeds),
        "variants": baseline + len(VARIANTS) * seeds,
        "interval": (1 + 5 * sum(every < task.steps for every in INTERVALS)) * len(INTERVAL_STARTS) * seeds,
        "shocks": baseline + (4 if task.loss_kind == "mse" else 6) * seeds,
    }
    return arms[suite] * task.steps


def _freeze(results: Results, policy: str, constants: str) -> str:
    """Record the constants before the confirmation list is run with them; say whether they changed since the first."""
    spec: dict[str, Any] = {"arm": "frozen", "policy": policy}
    known = list(results.record(spec)["hashes"]) if results.has(spec) else []
    if constants not in known:
        known.append(constants)
        results.add(spec, {"hashes": known})
        results.write()
    place = known.index(constants) + 1
    return f"Constants of `{policy}`: version {place} of {len(known)} that saw the confirmation list: `{constants}`.\n"


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
