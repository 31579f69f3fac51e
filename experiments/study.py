"""Ask and tell: one Optuna study for each (workload, arm), kept in a journal that survives a killed process.

One process writes the journal. A trial that was asked for and never told (its process died) is an orphan:
``requeue_orphans`` closes it as failed and puts its configuration at the head of the queue, so that nothing waits for
it and nothing is lost. Telling a trial twice does nothing.

The sampler is made anew for each question, seeded by the study's seed and the number of configurations so far: an
interrupted search goes on with the configurations that the uninterrupted one would have tried.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from lipadvisor.experiments.space import Range

__all__ = ["Proposal", "Study", "open_journal"]

_RETRY = "retry_of"  # attribute of a queued trial: number of the configuration that is tried again
_RANDOM_FIRST = 4  # configurations before the sampler models anything: budgets here are about eight


@dataclass(frozen=True, slots=True)
class Proposal:
    """A configuration to try. ``value`` is the validation loss once it is known, ``inf`` for a diverged run."""

    number: int  # of the configuration in its study; the same when it is tried again
    parameters: dict[str, float]
    value: float | None = None


def open_journal(path: Path) -> JournalStorage:
    """Return the journal at ``path``, created when missing. Only one process may write to it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return JournalStorage(JournalFileBackend(str(path)))


class Study:
    """One search by ask and tell, over ``space``, minimising."""

    def __init__(self, name: str, space: Sequence[Range], storage: optuna.storages.BaseStorage, seed: int = 0) -> None:
        """Open the study called ``name``, new or as it was left; a new one starts from the space's defaults."""
        self.name, self.space = name, tuple(space)
        self._seed = seed
        self._study = optuna.create_study(
            study_name=name, storage=storage, load_if_exists=True, sampler=self._sampler(0), direction="minimize"
        )
        if not self._trials():
            self._study.enqueue_trial({item.name: item.default for item in self.space})

    def requeue_orphans(self) -> int:
        """Close the trials that nobody is running any more and queue their configurations again; return how many.

        Call it after opening a study that another process may have left, and after telling what is known of it.
        """
        orphans = [trial for trial in self._trials() if trial.state == TrialState.RUNNING]
        for orphan in orphans:
            self._study.tell(orphan.number, state=TrialState.FAIL)
            self._study.enqueue_trial(orphan.params, user_attrs={_RETRY: _number(orphan)})
        return len(orphans)

    def ask(self) -> Proposal:
        """Return the next configuration: a queued one first, else the sampler's."""
        self._study.sampler = self._sampler(self.asked)
        trial = self._study.ask()
        parameters = {
            item.name: trial.suggest_float(item.name, item.low, item.high, log=item.log) for item in self.space
        }
        return Proposal(int(trial.user_attrs.get(_RETRY, trial.number)), parameters)

    def tell(self, number: int, value: float) -> bool:
        """Record the outcome of configuration ``number``; a loss that is not a number counts as infinite.

        Returns:
            False if the trial had been finished before: then nothing changes.
        """
        return self._finish(number, math.inf if math.isnan(value) else value, TrialState.COMPLETE)

    def fail(self, number: int) -> bool:
        """Record that configuration ``number`` gave no result. Returns False if it had been finished before."""
        return self._finish(number, None, TrialState.FAIL)

    @property
    def asked(self) -> int:
        """Configurations tried or being tried; one that is tried again counts once, one that is queued not at all."""
        queued = {_number(trial) for trial in self._trials() if trial.state == TrialState.WAITING}
        return len({_number(trial) for trial in self._trials()} - queued)

    @property
    def running(self) -> tuple[int, ...]:
        """Numbers of the configurations asked for and not yet told."""
        return tuple(_number(trial) for trial in self._trials() if trial.state == TrialState.RUNNING)

    def finished(self) -> tuple[Proposal, ...]:
        """Return the trials that were told a value, in the order they were asked for."""
        return tuple(
            Proposal(_number(trial), dict(trial.params), trial.value)
            for trial in self._trials()
            if trial.state == TrialState.COMPLETE
        )

    def best(self) -> Proposal | None:
        """Return the finished trial of lowest value, the earlier one of a tie; None when none is finite."""
        finite = [trial for trial in self.finished() if trial.value is not None and math.isfinite(trial.value)]
        return min(finite, key=lambda trial: (trial.value, trial.number), default=None)

    def _finish(self, number: int, value: float | None, state: TrialState) -> bool:
        tried = [trial for trial in self._trials() if _number(trial) == number]
        if not tried or tried[-1].state.is_finished():
            return False
        self._study.tell(tried[-1].number, values=value, state=state)
        return True

    def _trials(self) -> list[FrozenTrial]:
        trials: list[FrozenTrial] = self._study.get_trials(deepcopy=False)
        return trials

    def _sampler(self, index: int) -> optuna.samplers.BaseSampler:
        seed = zlib.crc32(f"{self._seed}/{self.name}/{index}".encode())
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=_RANDOM_FIRST)


def _number(trial: FrozenTrial) -> int:
    """Return the number of a trial's configuration: its own, or that of the first trial that it repeats."""
    return int(trial.user_attrs.get(_RETRY, trial.number))
