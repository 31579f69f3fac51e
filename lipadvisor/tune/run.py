"""Runs trials through Ray Tune: each streams to the hub, each result is durable, the same call again resumes."""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lipadvisor.trajectory import TrajectoryStore
from lipadvisor.trajectory.store import check_trial_name
from lipadvisor.tune.session import StopSignals, prepare_environment, ray_session

prepare_environment(local=False)  # before Ray is imported

import ray  # noqa: E402
from ray import tune  # noqa: E402
from ray.tune.logger import JsonLoggerCallback  # noqa: E402

from lipadvisor.tune.hub import start_hub  # noqa: E402
from lipadvisor.tune.ledger import Ledger, Progress, finished  # noqa: E402
from lipadvisor.tune.searcher import NAME_KEY, AskTell, AskTellSearcher  # noqa: E402
from lipadvisor.tune.trial import JSON_STATE, StateFormat, Trainable, TrialSetup, run_trial  # noqa: E402

__all__ = ["Outcome", "run_trials"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run."""

    out: Path
    results: Mapping[str, Mapping[str, Any]]  # of the finished trials, those of former starts included
    failures: Mapping[str, str]  # by trial: the last line of its error
    unfinished: tuple[str, ...]  # started, and cut off by the stop
    interrupted: bool

    @property
    def account(self) -> str:
        """One or two sentences: what was done and what is kept."""
        text = f"{len(self.results)} trials finished"
        if self.failures:
            text += f", {len(self.failures)} failed ({', '.join(sorted(self.failures)[:3])})"
        text += f"; results and trajectories are in {self.out}."
        if self.interrupted:
            cut = f" {len(self.unfinished)} were cut off." if self.unfinished else ""
            text += f" Stopped before the end.{cut} The same command goes on from here."
        return text


class _Listed:
    """Hands out the configurations of a mapping, in order."""

    def __init__(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        self._left = list(configs.items())

    @property
    def finished(self) -> bool:
        return not self._left

    def ask(self, trial_id: str) -> Mapping[str, Any] | None:
        if not self._left:
            return None
        name, config = self._left.pop(0)
        return {**config, NAME_KEY: name}

    def tell(self, trial_id: str, result: Mapping[str, Any] | None, failed: bool, pruned: bool) -> None:
        return None


def run_trials(
    trainable: Trainable,
    trials: Mapping[str, Mapping[str, Any]] | AskTell,
    *,
    out: str | os.PathLike[str],
    metric: str | None = None,
    total: int | Callable[[], int | None] | None = None,
    concurrent: int = 2,
    cpus_per_trial: int = 1,
    address: str | None = None,
    policy_at: Literal["trial", "hub"] = "trial",
    patience_s: float = 0.25,
    max_failures: int = 2,
    state_format: StateFormat = JSON_STATE,
    on_progress: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Run trials until there are no more, or until Ctrl-C or ``SIGTERM`` asks to stop.

    A trial that has a result in ``out`` is not run again; one that was cut off goes on from its last
    checkpoint, or starts anew.

    Args:
        trainable: Called with a :class:`TrialContext` in a process of its own; returns the trial's result, a mapping
            that JSON can hold.
        trials: Configurations by trial name, or a source of them (see :class:`AskTell`), which must leave out by itself
            what ``finished(out)`` holds.
        out: Directory of the run, made if missing.
        metric: Figure of the results that is best when lowest, for the progress.
        total: Number of trials of the whole run, where known, or a function that returns it.
        concurrent: Trials at the same time, at least 1.
        cpus_per_trial: CPUs, and threads, of each, at least 1.
        address: Cluster to join; see :func:`ray_session`.
        policy_at: Where ``TrialContext.policy`` lets policies decide.
        patience_s: How long a trial waits for a decision of the hub's.
        max_failures: How often a trial is started again after an error or a killed process.
        state_format: How checkpoints are written.
        on_progress: Told about each change.

    Returns:
        What became of the run.

    Raises:
        ValueError: an argument is out of range or a trial's name may not name a folder.
        OSError: ``out`` cannot be written.
        ConnectionError: the cluster cannot be reached.
    """
    directory = Path(out).resolve()
    _check(concurrent, cpus_per_trial, max_failures, patience_s, policy_at)
    TrajectoryStore(directory).close()  # says at once whether the place can be written
    with _alone(directory):
        done = finished(directory)
        if isinstance(trials, Mapping):
            source: AskTell = _Listed({check_trial_name(n): c for n, c in trials.items() if n not in done})
            total = len({*trials, *done}) if total is None else total
        else:
            source = trials
        ledger = Ledger(directory, metric, total, on_progress)
        if source.finished:
            return Outcome(directory, ledger.results, {}, (), False)
        with ray_session(address, at_least_cpus=cpus_per_trial), _hub(directory) as hub, StopSignals() as signals:
            setup = TrialSetup(directory, hub, policy_at, patience_s, cpus_per_trial, state_format)
            searcher = AskTellSearcher(source, ledger.result_of, lambda: signals.stopped)
            function = tune.with_resources(functools.partial(_entry, setup, trainable), {"cpu": cpus_per_trial})
            _fit(function, searcher, ledger, directory, concurrent, max_failures)
        with TrajectoryStore(directory) as store:
            for name in (*ledger.results, *ledger.failures):
                store.seal(name)
    unfinished = tuple(sorted(ledger.started - set(ledger.results) - set(ledger.failures)))
    return Outcome(directory, ledger.results, ledger.failures, unfinished, signals.stopped)


def _entry(setup: TrialSetup, trainable: Trainable, config: dict[str, Any]) -> None:
    run_trial(setup, trainable, config)


def _fit(
    function: Any, searcher: AskTellSearcher, ledger: Ledger, directory: Path, concurrent: int, max_failures: int
) -> None:
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    (directory / "ray").mkdir(exist_ok=True)
    tuner = tune.Tuner(
        function,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=-1,
            max_concurrent_trials=concurrent,
            reuse_actors=True,
            trial_dirname_creator=_dirname,
            trial_name_creator=_dirname,
        ),
        run_config=tune.RunConfig(
            name=Path(tempfile.mkdtemp(dir=directory / "ray", prefix="fit-")).name,
            storage_path=str(directory / "ray"),
            callbacks=[ledger, JsonLoggerCallback()],
            failure_config=tune.FailureConfig(max_failures=max_failures),
            verbose=0,
        ),
    )
    tuner.fit()


def _dirname(trial: Any) -> str:
    return str(trial.config[NAME_KEY])


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the run's lock: two writers would mix their trajectories. It goes with the process, however that ends."""
    with open(directory / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another process is working on the run in {directory}.") from None
        yield


@contextmanager
def _hub(directory: Path) -> Iterator[str]:
    name = f"lipadvisor-hub-{uuid.uuid4().hex[:12]}"
    hub = start_hub(directory, name)
    try:
        yield name
    finally:
        ray.kill(hub, no_restart=True)


def _check(concurrent: int, cpus_per_trial: int, max_failures: int, patience_s: float, policy_at: str) -> None:
    for name, value, least in (
        ("concurrent", concurrent, 1),
        ("cpus_per_trial", cpus_per_trial, 1),
        ("max_failures", max_failures, 0),
    ):
        if value < least:
            raise ValueError(f"run_trials({name}=...) must be at least {least}, got {value}.")
    if not patience_s > 0:
        raise ValueError(f"run_trials(patience_s=...) must be positive, got {patience_s}.")
    if policy_at not in ("trial", "hub"):
        raise ValueError(f"run_trials(policy_at=...) must be 'trial' or 'hub', got {policy_at!r}.")
