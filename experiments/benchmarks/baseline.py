"""The tuned baseline: the best of 64 trials over schedule, learning rate, weight decay and warmup."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy.stats import qmc

from lipadvisor.experiments.benchmarks.population import Population
from lipadvisor.experiments.benchmarks.task import Task
from lipadvisor.policies import Constant, Cosine, Linear, WarmupStableDecay
from lipadvisor.policies.schedules import Schedule

__all__ = ["LR_RANGES", "Trial", "draw_trials", "revalidated", "train_trials", "tuned"]

LR_RANGES = {"adamw": (3e-4, 1e-1), "sgd": (1e-3, 1.0), "muon": (2e-3, 0.5)}  # log-uniform
DECAY_TOTAL_RANGE = (3e-3, 3.0)  # lr * weight_decay * steps: nats the decay takes off a matrix at constant lr
WARMUP_RANGE = (2e-3, 0.3)  # share of the run
SELECTION_SEED = 1000  # initialization and batch order of all trials of a search
_SCHEDULES: tuple[type[Schedule], ...] = (Constant, Cosine, Linear, WarmupStableDecay)


@dataclass(frozen=True, slots=True)
class Trial:
    """One configuration of the baseline."""

    schedule: str
    lr: float
    weight_decay: float
    warmup_fraction: float

    def policy(self) -> Schedule:
        """Return the schedule as a policy."""
        kind = next(k for k in _SCHEDULES if k.title == self.schedule)
        return kind(lr=self.lr, weight_decay=self.weight_decay, warmup_fraction=self.warmup_fraction)

    def plan(self, steps: int) -> list[float]:
        """Return the learning rate of each step."""
        policy = self.policy()
        warmup = policy.warmup_fraction * steps
        shares = [
            min(1.0, (step + 1) / warmup if warmup > 0.0 else 1.0) * policy.factor(step, steps, warmup)
            for step in range(steps)
        ]
        return [self.lr * share for share in shares]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


def draw_trials(task: Task, count: int = 64, seed: int = 0, steps: int | None = None) -> tuple[Trial, ...]:
    """Return ``count`` trials from a scrambled Sobol sequence, the four schedules in turn."""
    points = qmc.Sobol(3, rng=seed).random(count)
    low, high = LR_RANGES[task.optimizer]
    steps = task.steps if steps is None else steps
    trials = []
    for index, (a, b, c) in enumerate(points):
        lr = _between(a, low, high)
        total = _between(b, *DECAY_TOTAL_RANGE)
        trials.append(Trial(_SCHEDULES[index % 4].title, lr, total / (lr * steps), _between(c, *WARMUP_RANGE)))
    return tuple(trials)


def _between(share: float, low: float, high: float) -> float:
    return math.exp(math.log(low) + float(share) * math.log(high / low))


def train_trials(
    task: Task,
    trials: Sequence[Trial],
    seeds: Sequence[int],
    tick: Callable[[int], None] = lambda step: None,
    steps: int | None = None,
) -> Population:
    """Train member ``i`` by ``trials[i]`` from ``seeds[i]``, all at once; return the trained population."""
    population = Population(task, seeds, steps)
    plans = torch.tensor([trial.plan(population.steps) for trial in trials], dtype=torch.float32)
    weight_decay = torch.tensor([trial.weight_decay for trial in trials], dtype=torch.float32)
    for step in range(population.steps):
        lr = plans[:, step]
        population.move(population.propose(step).directions, lr, lr * weight_decay)
        tick(step)
    return population


def tuned(
    task: Task,
    *,
    trials: int = 64,
    repeats: int = 5,
    seed: int = 0,
    tick: Callable[[int], None] = lambda step: None,
    steps: int | None = None,
) -> dict[str, Any]:
    """Return the baseline's record: the trial that validation selected, and its test losses on fresh seeds.

    Args:
        task: the task.
        trials: how many configurations are drawn.
        repeats: fresh seeds, 0 to ``repeats - 1``; the selection uses another one.
        seed: of the drawn configurations.
        tick: called after each step, of the search and of the repetitions.
        steps: length of the run; the task's own by default.
    """
    drawn = draw_trials(task, trials, seed, steps)
    searched = train_trials(task, drawn, [SELECTION_SEED] * trials, tick, steps)
    scores = searched.evaluate("validation").nan_to_num(nan=math.inf)
    best = drawn[int(scores.argmin())]
    repeated = train_trials(task, [best] * repeats, range(repeats), tick, steps)
    return {
        "best": best.as_dict(),
        "search": [
            {**trial.as_dict(), "validation": value}
            for trial, value in zip(drawn, searched.evaluate("validation").tolist(), strict=True)
        ],
        "validation": repeated.evaluate("validation").tolist(),
        "test": repeated.evaluate("test").tolist(),
        "train": repeated.evaluate("train").tolist(),
    }


def revalidated(
    task: Task,
    record: Mapping[str, Any],
    *,
    finalists: int = 6,
    rounds: int = 3,
    tick: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """Return the test losses of a harder baseline: the search's best few, each validated on more seeds first.

    A single seed flatters the trial that it was lucky with; this one was selected by its geometric mean over
    ``rounds`` further seeds.

    Args:
        task: the task.
        record: what :func:`tuned` returned for it.
        finalists: trials taken from the search, best validation loss first.
        rounds: further seeds that each is validated on.
        tick: called after each step.
    """
    searched = sorted(record["search"], key=lambda entry: _or_inf(entry["validation"]))[:finalists]
    drawn = [Trial(**{key: value for key, value in entry.items() if key != "validation"}) for entry in searched]
    seeds = [SELECTION_SEED + 1 + place for _ in drawn for place in range(rounds)]
    again = train_trials(task, [trial for trial in drawn for _ in range(rounds)], seeds, tick)
    losses = again.evaluate("validation").nan_to_num(nan=math.inf).clamp_min(1e-12).log().view(len(drawn), rounds)
    best = drawn[int(losses.mean(1).argmin())]
    repeats = len(record["test"])
    repeated = train_trials(task, [best] * repeats, range(repeats), tick)
    return {"best": best.as_dict(), "test": repeated.evaluate("test").tolist()}


def _or_inf(value: float) -> float:
    return value if math.isfinite(value) else math.inf
