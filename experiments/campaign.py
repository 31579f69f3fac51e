"""Which run comes next: interleaves the searches of all arms on all workloads, then repeats what they selected.

Each search goes one configuration at a time as long as another one can fill the free place, so that its sampler sees
every result and the order of configurations does not depend on which run ends first. When a search has used its
budget, the configuration of lowest validation loss is repeated on fresh seeds, the same for every arm.

The state is the journal of the studies and the files of results, both durable: a campaign opened on the same folder
goes on where it stopped. A trial that failed to the end uses up one configuration of its search; a repetition that
failed is tried again by the next start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lipadvisor.experiments.records import REPLICATE, SEARCH, Job, Record, Results
from lipadvisor.experiments.space import Range
from lipadvisor.experiments.study import Study, open_journal

__all__ = ["Campaign"]

Pair = tuple[str, str]  # workload, arm


class Campaign:
    """Hands out jobs and takes their records.

    Args:
        folder: of the run, existing; the journal lives in it, and the results that trials leave.
        spaces: the search space of each (workload, arm); an empty one is not searched, its default is repeated.
        trials: configurations for each search, >= 1.
        replicates: fresh seeds for each selected configuration, >= 0.
        seed: searches use it for every trial, the repetitions use the ``replicates`` numbers after it.
    """

    def __init__(
        self, folder: Path, spaces: Mapping[Pair, Sequence[Range]], trials: int, replicates: int, seed: int
    ) -> None:
        self._trials, self._replicates, self._seed = trials, replicates, seed
        self.results = Results(folder)
        journal = open_journal(folder / "study.journal")
        self._studies = {pair: Study("/".join(pair), space, journal, seed) for pair, space in spaces.items() if space}
        self.pairs = tuple(spaces)
        self._reconcile()
        self._running: dict[str, Job] = {}

    @property
    def total(self) -> int:
        """Jobs of the whole campaign, as far as is known: a search without any finite result has no repetitions."""
        return sum(self._planned(pair) for pair in self.pairs)

    @property
    def done(self) -> int:
        """Jobs that have ended."""
        return len(self.results)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return not self._running and all(self._next(pair, peek=True) is None for pair in self.pairs)

    def ask(self) -> Job | None:
        """Return the next job, or None when nothing can start before a running one ends."""
        for pair in sorted(self.pairs, key=self._urgency):
            job = self._next(pair)
            if job is not None:
                self._running[job.name] = job
                return job
        return None

    def tell(self, record: Record) -> None:
        """Keep the record of a job that ended, then tell its study. Telling twice does nothing."""
        self._running.pop(record.job.name, None)
        if self.results.add(record):
            self._tell_study(record)

    def best(self, pair: Pair) -> Mapping[str, float] | None:
        """Return the parameters that the search selected by validation; None while it runs or if all diverged."""
        study = self._studies.get(pair)
        if study is None:
            return {}
        if study.asked < self._trials or study.running:
            return None
        best = study.best()
        return None if best is None else best.parameters

    def _planned(self, pair: Pair) -> int:
        searched = self._trials if pair in self._studies else 0
        hopeless = searched and self._searched(pair) and self.best(pair) is None
        return searched + (0 if hopeless else self._replicates)

    def _searched(self, pair: Pair) -> bool:
        study = self._studies[pair]
        return study.asked >= self._trials and not study.running

    def _urgency(self, pair: Pair) -> tuple[int, int, int]:
        running = sum((job.workload, job.arm) == pair for job in self._running.values())
        study = self._studies.get(pair)
        searching = study is not None and study.asked < self._trials
        return (not searching, running, study.asked if study is not None else 0)

    def _next(self, pair: Pair, peek: bool = False) -> Job | None:
        study = self._studies.get(pair)
        if study is not None and study.asked < self._trials:
            if peek:
                return Job(*pair, SEARCH, 0, self._seed)
            proposal = study.ask()
            return Job(*pair, SEARCH, proposal.number, self._seed, proposal.parameters)
        parameters = self.best(pair)
        if parameters is None:
            return None
        for number in range(self._replicates):
            job = Job(*pair, REPLICATE, number, self._seed + 1 + number, dict(parameters))
            if job.name not in self.results and job.name not in self._running:
                return job
        return None

    def _tell_study(self, record: Record) -> None:
        job = record.job
        study = self._studies.get((job.workload, job.arm))
        if study is None or job.stage != SEARCH:
            return
        if record.status == "failed":
            study.fail(job.number)
        else:
            study.tell(job.number, math.inf if record.validation_loss is None else record.validation_loss)

    def _reconcile(self) -> None:
        """Tell the studies what was recorded just before the process died, then queue what was running again."""
        for record in self.results.all():
            self._tell_study(record)
        for study in self._studies.values():
            study.requeue_orphans()
