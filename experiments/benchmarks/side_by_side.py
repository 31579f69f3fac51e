"""Several tasks of a suite at once: each process runs one task at a time and hands its records to the one that writes.

A task's runs are made together and in the same order whoever makes them, so the records are those of a single process.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from lipadvisor.experiments.benchmarks.bench import Bench
from lipadvisor.experiments.benchmarks.lists import TASKS
from lipadvisor.experiments.benchmarks.progress import Progress
from lipadvisor.experiments.benchmarks.store import Results, content_key

__all__ = ["Plan", "WorkerError", "serve", "side_by_side"]

_TOLD_EVERY_S = 0.5  # how often a worker says how far it is


class WorkerError(RuntimeError):
    """A task failed in another process, or the process was ended."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What all tasks are run with: the arguments of :class:`Runs`, and the CPU threads of one process."""

    suite: str
    seeds: int
    trials: int
    decide_every: int
    default: str
    arms: tuple[str, ...]
    threads: int = 1

    def bench(self, results: Results, tasks: Sequence[str], progress: Progress) -> Bench:
        """Return the bench over the tasks of these names."""
        options = {key: value for key, value in asdict(self).items() if key not in ("suite", "threads")}
        return Bench(results, [TASKS[name] for name in tasks], progress=progress, **options)


class _Handed(Results):
    """Records that are handed over instead of written.

    Args:
        to: who writes.
        known: records of the task that are there already.
    """

    def __init__(self, to: Connection, known: Mapping[str, dict[str, Any]]) -> None:
        self._to, self.records = to, dict(known)
        self._fresh: dict[str, dict[str, Any]] = {}

    def add(self, spec: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Keep one record; :meth:`write` hands it over."""
        key = content_key(spec)
        self.records[key] = self._fresh[key] = {"spec": dict(spec), **values}

    def write(self) -> None:
        """Hand over what was added since."""
        self._to.send(("records", self._fresh))
        self._fresh = {}


class _Told(Progress):
    """Units of work that are told now and then.

    Args:
        to: who counts them.
    """

    def __init__(self, to: Connection) -> None:
        super().__init__(1.0)
        self._to, self._what = to, ""

    def skip(self, units: float) -> None:
        """Count work that was found done."""
        self._done += units

    def add(self, units: float, what: str) -> None:
        """Count work just done under the name ``what``."""
        self._worked, self._what = self._worked + units, what
        if time.monotonic() - self._said >= _TOLD_EVERY_S:
            self.tell()

    def tell(self) -> None:
        """Hand over what was counted since."""
        self._to.send(("progress", (self._done, self._worked, self._what)))
        self._done = self._worked = 0.0
        self._said = time.monotonic()


def serve(connection: Connection, plan: Plan) -> None:
    """Run the tasks whose names and known records come in, one after the other, until ``None`` does."""
    try:
        for name, known in iter(connection.recv, None):
            try:
                told = _Told(connection)
                getattr(plan.bench(_Handed(connection, known), [name], told), plan.suite)()
                told.tell()
                connection.send(("finished", name))
            except Exception:
                connection.send(("failed", f"{name}: {traceback.format_exc()}"))
    except (EOFError, BrokenPipeError):
        return  # whoever asked has gone


def _process(connection: Connection, plan: Plan) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process is interrupted too, and ends this one
    torch.set_num_threads(plan.threads)
    serve(connection, plan)


def side_by_side(results: Results, names: Sequence[str], plan: Plan, workers: int, progress: Progress) -> None:
    """Run ``plan.suite`` on the tasks ``names`` in ``workers`` processes, writing each record as it comes.

    Raises:
        WorkerError: a task failed, or a process was ended from outside; what is there is kept.
    """
    waiting = list(names)[::-1]
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(min(workers, len(names))):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(target=_process, args=(theirs, plan), daemon=True)
            process.start()
            theirs.close()
            processes[ours] = process
            _give(ours, waiting, results)
        busy = set(processes)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                if _take(connection, processes[connection], results, progress) and not _give(
                    connection, waiting, results
                ):
                    busy.discard(connection)
    finally:
        for connection, process in processes.items():
            connection.close()
            process.terminate()
        for process in processes.values():
            process.join()


def _give(connection: Connection, waiting: list[str], results: Results) -> bool:
    """Send the next task and what is known of it; return whether there was one."""
    if not waiting:
        return False
    name = waiting.pop()
    known = {key: record for key, record in results.records.items() if record["spec"].get("task") == name}
    connection.send((name, known))
    return True


def _take(connection: Connection, process: BaseProcess, results: Results, progress: Progress) -> bool:
    """Take in one message; return whether the process has finished its task."""
    try:
        kind, content = connection.recv()
    except (EOFError, ConnectionError):
        process.join()
        raise WorkerError(f"a worker ended with exit code {process.exitcode}") from None
    if kind == "records":
        for record in content.values():
            results.add(record["spec"], {key: value for key, value in record.items() if key != "spec"})
        results.write()
    elif kind == "progress":
        done, worked, what = content
        progress.skip(done)
        if worked:
            progress.add(worked, what)
    elif kind == "failed":
        raise WorkerError(content)
    return bool(kind == "finished")
