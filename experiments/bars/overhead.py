"""Bar: what an advisor with its default settings adds to a training, and whether it reports that rightly.

Every advised training has a plain twin: the same batches, initial weights and, step by step, learning rate and weight
decay, so that both compute the same numbers (the bar says whether they did) and differ by the advisor's own work alone.
Process CPU time; the twins take turns in who goes first.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from lipadvisor import Advisor
from lipadvisor.experiments.bars import Bar, BarSettings
from lipadvisor.experiments.workloads import WORKLOADS, Data, Workload

__all__ = ["run"]

MAX_OVERHEAD = 0.03
_TURNS = 2
_HONEST = 0.01  # share of the run's time by which the advisor's own account may be off
_SECONDS = 30.0  # of process CPU time, an advised training
_STEPS_BLOCK = 200


@dataclass(slots=True)
class _Script:
    """What an advised training did, for its twin."""

    start: dict[str, torch.Tensor] = field(default_factory=dict)
    lr: list[float] = field(default_factory=list)
    weight_decay: list[float] = field(default_factory=list)
    spent_s: float = 0.0
    reported: float = 0.0
    measurements: int = 0
    last_loss: float = float("nan")


def run(settings: BarSettings) -> Bar:
    """Measure the bar on both workloads of the demo; the ConvNet is the one that is judged."""
    seconds = 1.0 if settings.quick else _SECONDS
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = {name: _row(workload, settings, seconds) for name, workload in WORKLOADS.items()}
    finally:
        torch.set_num_threads(threads)
    conv = rows["digits_convnet"]
    off = max(abs(row["reported"] - row["measured"]) for row in rows.values())
    within = f"at most {MAX_OVERHEAD}"
    checks = (
        ("share of the ConvNet's training, as reported", conv["reported"], within, _within(conv)),
        (
            "share of the MLP's training, as reported",
            rows["digits_mlp"]["reported"],
            within,
            _within(rows["digits_mlp"]),
        ),
        ("reported and measured share, largest difference", off, f"at most {_HONEST}", off <= _HONEST),
        ("twins that computed other numbers", sum(r["differ"] for r in rows.values()), "none", _same(rows)),
    )
    lines = [f"{'workload':16} {'steps':>7} {'step ms':>8} {'measured steps':>14} {'reported':>9} {'by the clock':>12}"]
    lines += [
        f"{name:16} {row['steps']:7.0f} {row['step_ms']:8.3f} {row['measurements']:14.0f} {row['reported']:9.2%} "
        f"{row['measured']:12.2%}"
        for name, row in rows.items()
    ]
    return Bar("overhead", checks, {"max_overhead": MAX_OVERHEAD, "workloads": rows}, "\n".join(lines))


def _within(row: dict[str, float]) -> bool:
    return row["reported"] <= MAX_OVERHEAD + 0.0005  # the last measurement may end a little above


def _same(rows: dict[str, dict[str, float]]) -> bool:
    return all(row["differ"] == 0 for row in rows.values())


def _row(workload: Workload, settings: BarSettings, seconds: float) -> dict[str, float]:
    data = workload.load()
    steps = _steps(workload, data, settings.seed, seconds)
    scripts, plain = [], []
    differ = 0
    for turn in range(_TURNS):
        seed = settings.seed + turn
        settings.progress(f"{workload.name}: turn {turn + 1} of {_TURNS}, {steps} steps advised and as many plain")
        script = _advised(workload, data, seed, steps)
        again = [_plain(workload, data, seed, script)]
        if turn % 2:  # the plain one first, so that neither always has the warm machine
            script.spent_s = _advised(workload, data, seed, steps).spent_s
        scripts.append(script)
        plain += [spent for spent, _ in again]
        differ += sum(loss != script.last_loss for _, loss in again)
    step_s = float(np.sum(plain)) / (steps * _TURNS)
    return {
        "steps": float(steps),
        "step_ms": 1e3 * step_s,
        "measurements": float(np.mean([script.measurements for script in scripts])),
        "reported": max(script.reported for script in scripts),
        "measured": 1.0 - float(np.sum(plain)) / sum(script.spent_s for script in scripts),
        "differ": float(differ),
    }


def _steps(workload: Workload, data: Data, seed: int, seconds: float) -> int:
    """Return the number of steps that a plain training takes in ``seconds``."""
    script = _Script(lr=[1e-3] * _STEPS_BLOCK, weight_decay=[0.0] * _STEPS_BLOCK)
    script.start = workload.model(seed).state_dict()
    spent, _ = _plain(workload, data, seed, script)
    return max(_STEPS_BLOCK, int(seconds / spent * _STEPS_BLOCK))


def _advised(workload: Workload, data: Data, seed: int, steps: int) -> _Script:
    script = _Script()
    model = workload.model(seed)
    optimizer = workload.optimizer(model)
    batches = workload.batches(data, seed)
    group = optimizer.param_groups[0]
    begun = time.process_time()
    with Advisor(model, optimizer, steps, max_overhead=MAX_OVERHEAD, seed=seed, record_limit=1000) as advisor:
        for step in range(steps):
            x, y = next(batches)
            loss = workload.loss(model(x), y)
            loss.backward()
            if step == 0:
                script.start = {name: value.clone() for name, value in model.state_dict().items()}
                first = advisor.trajectory.decisions.weight_decay_applied.iloc[0]
                script.weight_decay.append(float(first))
            script.lr.append(float(group["lr"]))
            optimizer.step()
            optimizer.zero_grad()
            decision = advisor.step(loss)
            knobs = decision.knobs[0] if decision is not None and decision.knobs else None
            held = knobs is None or knobs.weight_decay is None
            script.weight_decay.append(script.weight_decay[-1] if held else knobs.weight_decay)  # type: ignore[union-attr, arg-type]
        script.reported, script.measurements = advisor.overhead, advisor.measurements
    script.spent_s = time.process_time() - begun
    script.last_loss = float(loss.detach())
    return script


def _plain(workload: Workload, data: Data, seed: int, script: _Script) -> tuple[float, float]:
    """Return the process CPU seconds of the twin, and its last loss."""
    model = workload.model(seed)
    model.load_state_dict(script.start)
    optimizer = workload.optimizer(model)
    batches = workload.batches(data, seed)
    group = optimizer.param_groups[0]
    group["weight_decay"] = 0.0
    matrices = [p for p in group["params"] if p.ndim >= 2]
    begun = time.process_time()
    for lr, weight_decay in zip(script.lr, script.weight_decay, strict=False):
        x, y = next(batches)
        loss = workload.loss(model(x), y)
        loss.backward()
        group["lr"] = lr
        if lr * weight_decay:
            with torch.no_grad():
                torch._foreach_mul_(matrices, 1.0 - lr * weight_decay)
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - begun, float(loss.detach())
