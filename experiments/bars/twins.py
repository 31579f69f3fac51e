"""An advised training beside a plain twin that computes the same numbers: what the advisor's own work costs.

The twin has the same batches, initial weights and, step by step, learning rate and weight decay. The two take turns in
blocks of about a second, so that a machine that grows slower slows both. Process CPU time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lipadvisor import Advisor
from lipadvisor.experiments.bars.one_thread import one_thread

__all__ = ["Subject", "Twins", "run_twins"]

_BLOCK_S = 1.0  # process CPU seconds of one turn
_TRIAL_S = 1.0  # of the plain steps that say how many steps that is


@dataclass(frozen=True, slots=True)
class Subject:
    """A training to be advised.

    Args:
        name: of its row.
        model: makes it; the initialization depends on the seed alone.
        optimizer: makes its optimizer; the decay is the advisor's.
        batches: endless, their order depends on the seed alone.
        seconds: process CPU time of the advised training.
    """

    name: str
    model: Callable[[int], nn.Module]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    batches: Callable[[int], Iterator[tuple[Tensor, Tensor]]]
    seconds: float


@dataclass(frozen=True, slots=True)
class Twins:
    """What the two took.

    Attributes:
        steps: of each.
        step_ms: process CPU time of a plain step.
        measurements: steps that were measured.
        reported: share of its time that the advisor says it took.
        clock: share that it took by the clock, ``1 - plain / advised``.
        clock_error: standard error of ``clock``, from all blocks but the first, which has the early measurements.
        same: whether both computed the same numbers to the end.
    """

    steps: int
    step_ms: float
    measurements: int
    reported: float
    clock: float
    clock_error: float
    same: bool


class _Plain:
    """The twin without an advisor."""

    def __init__(self, subject: Subject, seed: int) -> None:
        self.model = subject.model(seed)
        self.optimizer = subject.optimizer(self.model)
        self.group = self.optimizer.param_groups[0]
        self.group["weight_decay"] = 0.0
        self.matrices = [p for p in self.group["params"] if p.ndim >= 2]
        self.batches = subject.batches(seed)
        self.last_loss = float("nan")

    def run(self, lr: list[float], weight_decay: list[float]) -> float:
        """Take a step for each pair of knobs; return the process CPU seconds."""
        begun = time.process_time()
        for rate, decay in zip(lr, weight_decay, strict=True):
            x, y = next(self.batches)
            loss = nn.functional.cross_entropy(self.model(x), y)
            loss.backward()
            self.group["lr"] = rate
            if rate * decay:
                with torch.no_grad():
                    torch._foreach_mul_(self.matrices, 1.0 - rate * decay)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.last_loss = float(loss.detach())
        return time.process_time() - begun


class _Advised:
    """The twin with one."""

    def __init__(self, subject: Subject, seed: int, steps: int, max_overhead: float) -> None:
        self.model = subject.model(seed)
        self.optimizer = subject.optimizer(self.model)
        self.batches = subject.batches(seed)
        self.advisor = Advisor(
            self.model, self.optimizer, steps, max_overhead=max_overhead, seed=seed, record_limit=1000
        )
        self.start: dict[str, Tensor] = {}  # the weights of the first forward pass
        self.decay = 0.0  # in force
        self.last_loss = float("nan")

        self._paused_at = time.perf_counter()

    def run(self, steps: int) -> tuple[float, list[float], list[float]]:
        """Take ``steps`` steps; return the process CPU seconds, the learning rates and the decays."""
        lr, weight_decay = [], []
        group = self.optimizer.param_groups[0]
        self.advisor._probe.leave_out(time.perf_counter() - self._paused_at)  # the twin's turn
        begun = time.process_time()
        for _ in range(steps):
            x, y = next(self.batches)
            loss = nn.functional.cross_entropy(self.model(x), y)
            loss.backward()
            if not self.start:
                self.start = {name: value.clone() for name, value in self.model.state_dict().items()}
                self.decay = float(self.advisor.trajectory.decisions.weight_decay_applied.iloc[0])
            lr.append(float(group["lr"]))
            weight_decay.append(self.decay)
            self.optimizer.step()
            self.optimizer.zero_grad()
            decision = self.advisor.step(loss)
            if decision is not None and decision.knobs and decision.knobs[0].weight_decay is not None:
                self.decay = decision.knobs[0].weight_decay
        self.last_loss = float(loss.detach())
        self._paused_at = time.perf_counter()
        return time.process_time() - begun, lr, weight_decay


def run_twins(subject: Subject, seed: int, max_overhead: float, progress: Callable[[str], None]) -> Twins:
    """Train ``subject`` advised and plain, on one thread; ``progress`` takes a line for every tenth of the way."""
    with one_thread():
        return _run(subject, seed, max_overhead, progress)


def _run(subject: Subject, seed: int, max_overhead: float, progress: Callable[[str], None]) -> Twins:
    block = _steps_of_a_block(subject, seed)
    blocks = max(3, round(subject.seconds / _BLOCK_S))
    advised = _Advised(subject, seed, blocks * block, max_overhead)
    plain = _Plain(subject, seed)
    advised_s, plain_s = [], []
    for number in range(blocks):
        spent_s, lr, weight_decay = advised.run(block)
        advised_s.append(spent_s)
        if number == 0:
            plain.model.load_state_dict(advised.start)
        plain_s.append(plain.run(lr, weight_decay))
        if (number + 1) % max(1, blocks // 10) == 0:
            progress(f"{subject.name}: {number + 1} of {blocks} blocks of {block} steps, advised and plain")
    twins = Twins(
        steps=blocks * block,
        step_ms=1e3 * sum(plain_s) / (blocks * block),
        measurements=advised.advisor.measurements,
        reported=advised.advisor.overhead,
        clock=1.0 - sum(plain_s) / sum(advised_s),
        clock_error=_standard_error(np.array(advised_s[1:]), np.array(plain_s[1:])),
        same=advised.last_loss == plain.last_loss,
    )
    advised.advisor.close()
    return twins


def _steps_of_a_block(subject: Subject, seed: int) -> int:
    plain, steps, begun = _Plain(subject, seed), 0, time.process_time()
    while time.process_time() - begun < _TRIAL_S:
        plain.run([1e-3], [0.0])
        steps += 1
    return max(1, round(steps * _BLOCK_S / (time.process_time() - begun)))


def _standard_error(advised_B: np.ndarray, plain_B: np.ndarray) -> float:
    """Return the standard error of ``1 - sum(plain) / sum(advised)`` over independent blocks (ratio estimator)."""
    ratio = plain_B.sum() / advised_B.sum()
    return float(np.sqrt(len(plain_B)) * np.std(plain_B - ratio * advised_B, ddof=1) / advised_B.sum())
