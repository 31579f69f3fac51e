"""The driver's account of a run: a durable file for each finished trial, and the progress that people see."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune import Callback

from lipadvisor.trajectory import read_json, write_json
from lipadvisor.trajectory.run import RESULTS
from lipadvisor.tune.searcher import NAME_KEY, RESULT_KEY
from lipadvisor.tune.trial import CHECKPOINTS

__all__ = ["Ledger", "Progress", "finished"]

_HEARTBEAT_S = 10.0


def finished(out: str | Path) -> dict[str, dict[str, Any]]:
    """Return the results of the finished trials of a run, by trial; each has ``config`` and ``result``."""
    return {path.stem: read_json(path) for path in sorted((Path(out) / RESULTS).glob("*.json"))}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    done: int  # trials finished, those of former starts included
    running: int
    failed: int
    total: int | None  # trials of the whole run, where known
    best: float | None  # lowest metric of a finished trial
    best_trial: str
    elapsed_s: float
    left_s: float | None  # estimate from this start's finished trials

    def __str__(self) -> str:
        whole = "" if self.total is None else f"/{self.total}"
        parts = [f"{self.done}{whole} trials done", f"{self.running} running"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.best is not None:
            parts.append(f"best {self.best:.4g} ({self.best_trial})")
        parts.append(f"{_clock(self.elapsed_s)} elapsed")
        if self.left_s is not None:
            parts.append(f"about {_clock(self.left_s)} left")
        return ", ".join(parts)


class Ledger(Callback):  # type: ignore[misc]  # Ray has no types
    """Tune's callback: writes ``results/<trial>.json`` as soon as a trial hands in its result.

    Args:
        out: The run's directory.
        metric: Name of the figure of a result that is best when lowest; ``None`` for none.
        total: Number of trials of the whole run, where known, or a function that returns it.
        on_progress: Told after each change.
    """

    def __init__(
        self,
        out: Path,
        metric: str | None,
        total: int | Callable[[], int | None] | None,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._out, self._metric, self._total, self._on_progress = out, metric, total, on_progress
        self._began = time.monotonic()
        self._first_start: float | None = None
        self._last_told = self._began
        self.results = {name: entry["result"] for name, entry in finished(out).items()}
        self._before = len(self.results)
        self._result_by_id: dict[str, dict[str, Any]] = {}
        self.running: set[str] = set()
        self.failures: dict[str, str] = {}
        self.started: set[str] = set()

    def result_of(self, trial_id: str) -> Mapping[str, Any] | None:
        """Return the result that the trial with this Tune id handed in, ``None`` if it has not."""
        return self._result_by_id.get(trial_id)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a trial runs."""
        name = trial.config[NAME_KEY]
        self.running.add(name)
        self._first_start = self._first_start or time.monotonic()
        self.started.add(name)
        self._tell()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Keep the result, if this report is the one that carries it."""
        text = result.get(RESULT_KEY)
        if text is None or trial.trial_id in self._result_by_id:
            return
        name = trial.config[NAME_KEY]
        config = {key: value for key, value in trial.config.items() if key != NAME_KEY}
        outcome = json.loads(text)
        write_json(self._out / RESULTS / f"{name}.json", {"trial": name, "config": config, "result": outcome})
        self.results[name] = outcome
        self._result_by_id[trial.trial_id] = outcome
        shutil.rmtree(self._out / CHECKPOINTS / name, ignore_errors=True)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a trial has ended."""
        self.running.discard(trial.config[NAME_KEY])
        self._tell()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a trial has failed for good."""
        name = trial.config[NAME_KEY]
        self.running.discard(name)
        if name not in self.results:
            self.failures[name] = _last_error(trial)
        self._tell()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tell the progress now and then, where nothing else happens."""
        if time.monotonic() - self._last_told >= _HEARTBEAT_S:
            self._tell()

    def progress(self) -> Progress:
        """Return how far the run is."""
        done, elapsed = len(self.results), time.monotonic() - self._began
        total = self._total() if callable(self._total) else self._total
        here = done - self._before + len(self.failures)
        left = None
        if total is not None and here and self._first_start is not None:
            pace_s = (time.monotonic() - self._first_start) / here
            left = max(0, total - done - len(self.failures)) * pace_s
        best_trial, best = self._best()
        return Progress(done, len(self.running), len(self.failures), total, best, best_trial, elapsed, left)

    def _best(self) -> tuple[str, float | None]:
        if self._metric is None:
            return "", None
        figures = {name: result.get(self._metric) for name, result in self.results.items()}
        finite = {n: float(v) for n, v in figures.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        if not finite:
            return "", None
        name = min(finite, key=lambda key: (finite[key], key))
        return name, finite[name]

    def _tell(self) -> None:
        self._last_told = time.monotonic()
        if self._on_progress is not None:
            self._on_progress(self.progress())


def _last_error(trial: Any) -> str:
    error = trial.get_error()
    return "" if error is None else str(error).strip().splitlines()[-1]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
