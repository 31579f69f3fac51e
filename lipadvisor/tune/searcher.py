"""Lets anything that asks and tells drive Ray Tune, so that Tune knows no search library and the search no Tune."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ray.tune.search import Searcher

from lipadvisor.trajectory.store import check_trial_name

__all__ = ["NAME_KEY", "RESULT_KEY", "AskTell", "AskTellSearcher"]

NAME_KEY = "trial_name"  # in a configuration: the trial's name
RESULT_KEY = "lipadvisor_result"  # in Tune's last report of a trial: its result as JSON text


class AskTell(Protocol):
    """A source of configurations. One process, the driver, calls it, and never two calls at once."""

    @property
    def finished(self) -> bool:
        """Whether nothing will be asked for any more, whatever is told."""
        ...

    def ask(self, trial_id: str) -> Mapping[str, Any] | None:
        """Return the next configuration (its key ``trial_name`` names the trial), ``None`` if there is none now."""
        ...

    def tell(self, trial_id: str, result: Mapping[str, Any] | None, failed: bool, pruned: bool) -> None:
        """Take the outcome of a trial: its result, or that it failed or was stopped early.

        Args:
            trial_id: What ``ask`` was called with.
            result: What the trial returned; the last reported metrics of a pruned trial; ``None`` of a failed one.
            failed: It raised, or its process died, more often than allowed.
            pruned: It was stopped early.
        """
        ...


class AskTellSearcher(Searcher):  # type: ignore[misc]  # Ray has no types
    """Tune's searcher around an :class:`AskTell`. It is not saved with the experiment: what it asks keeps itself."""

    def __init__(
        self, source: AskTell, result_of: Callable[[str], Mapping[str, Any] | None], stopping: Callable[[], bool]
    ) -> None:
        super().__init__()
        self._source, self._result_of, self._stopping = source, result_of, stopping

    def suggest(self, trial_id: str) -> Any:
        """Return the next configuration, ``None`` for later, or Tune's mark for the end."""
        if self._stopping():
            return None
        if self._source.finished:
            return Searcher.FINISHED
        config = self._source.ask(trial_id)
        if config is None:
            return Searcher.FINISHED if self._source.finished else None
        check_trial_name(config.get(NAME_KEY, trial_id))
        return {NAME_KEY: trial_id, **config}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the outcome; a trial cut off by a stop of the whole experiment is told nothing: it runs again."""
        whole = self._result_of(trial_id)
        if whole is not None:
            self._source.tell(trial_id, whole, failed=False, pruned=False)
        elif not self._stopping():
            self._source.tell(trial_id, None if error else dict(result or {}), failed=error, pruned=not error)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the source is durable by itself."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the source is durable by itself."""
