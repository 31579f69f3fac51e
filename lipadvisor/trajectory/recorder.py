"""Collects the rows of one run in memory and hands them on in batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from lipadvisor.policies.contract import Band, Decision, Knobs, Observation
from lipadvisor.trajectory.rows import decision_rows, forecast_rows, observation_rows
from lipadvisor.trajectory.schema import TABLES, Batch, Row, Sink, as_frame, as_table

__all__ = ["Recorder", "Trajectory"]

_LOGGER = logging.getLogger(__name__)
_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The four tables of a run as pandas frames; the columns are those of ``lipadvisor.trajectory.schema``."""

    observations: pd.DataFrame
    forecasts: pd.DataFrame
    decisions: pd.DataFrame
    inspections: pd.DataFrame


class Recorder:
    """Keeps what was observed, forecast and decided; a step costs a few tuples.

    Args:
        sink: Called with batches of rows by table, in order, each row once. If it raises ``OSError`` (a full disk), the
            batch is kept and offered again with the next one; training goes on. A sink that has a method ``attach`` is
            given :meth:`flush`, to call when it needs what has not been handed on, e.g. before a checkpoint.
        limit: Rows of each table to keep in memory, at least 1; ``None`` keeps all. What the sink gets is not limited.
        batch_rows: Rows that make a batch.
        batch_s: Seconds after which a smaller batch is handed on, so that a live run can be followed.

    Raises:
        ValueError: ``limit`` or ``batch_rows`` is below 1, or ``batch_s`` is negative.
    """

    def __init__(
        self,
        sink: Sink | None = None,
        *,
        limit: int | None = None,
        batch_rows: int = 512,
        batch_s: float = 2.0,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"Recorder(limit=...) must be at least 1 or None, got {limit}.")
        if batch_rows < 1:
            raise ValueError(f"Recorder(batch_rows=...) must be at least 1, got {batch_rows}.")
        if not batch_s >= 0:
            raise ValueError(f"Recorder(batch_s=...) must be at least 0, got {batch_s}.")
        self._sink = sink
        self._limit = limit
        self._batch_rows = batch_rows
        self._batch_s = batch_s
        self._rows: dict[str, list[Row]] = {name: [] for name in TABLES}
        self._pending: dict[str, list[Row]] = {name: [] for name in TABLES}
        self._unsent: list[Batch] = []
        self._last_flush = time.monotonic()
        self.sink_failures = 0
        attach = getattr(sink, "attach", None)
        if attach is not None:
            attach(self.flush)

    def add_observation(
        self,
        observation: Observation,
        extras: Mapping[str, Sequence[float]] | None = None,
        *,
        measure_s: float = _NAN,
        step_s: float = _NAN,
        alarm: str = "",
        input_sizes: Sequence[tuple[int, ...]] = (),
    ) -> None:
        """Record an observation, its bands included (as forecasts of ``"*"`` under the present knobs).

        Args:
            observation: What was seen.
            extras: Columns ``predicted``, ``predicted_paper``, ``change``, ``curvature``, ``interval``, any of them,
                each with ``L + 1`` numbers: the layers' in order, then the network's.
            measure_s: Seconds spent on measuring this step.
            step_s: Seconds of the whole step, measuring included.
            alarm: Signs that the run may be about to diverge, where two of them were there.
            input_sizes: Of the maps that the layers' norms are for, () for those that have none.

        Raises:
            ValueError: an extra has an unknown name or the wrong length.
        """
        rows = observation_rows(observation, extras, measure_s, step_s, alarm, input_sizes)
        present = next((knobs for knobs in observation.knobs if knobs.group == 0), Knobs(0))
        bands = {"*": observation.bands}
        self._add("forecasts", forecast_rows(observation.step, bands, "present", present.lr, present.weight_decay))
        self._add("observations", rows)

    def add_forecasts(
        self,
        step: int,
        bands_by_layer: Mapping[str, Iterable[Band]],
        lr: float | None = None,
        weight_decay: float | None = None,
        *,
        plan: str = "present",
    ) -> None:
        """Record further forecasts: those of the layers, or of the network under a plan of another name.

        The bands of an observation are recorded with it; do not add them here again.
        """
        self._add("forecasts", forecast_rows(step, bands_by_layer, plan, lr, weight_decay))

    def add_decision(
        self,
        decision: Decision,
        before: Sequence[Knobs] = (),
        after: Sequence[Knobs] = (),
        *,
        mode: str = "",
        refused: str | Sequence[str] = (),
    ) -> None:
        """Record a decision and what became of it: knobs before and after, and what was refused."""
        self._add("decisions", decision_rows(decision, mode, before, after, refused))

    def add_inspection(self, step: int, readings: Iterable[tuple[str, float, float, str, float]]) -> None:
        """Record what was measured because it was asked for: quantity, value, residual, status and seconds of each."""
        self._add("inspections", [(step, *reading) for reading in readings])

    def frames(self) -> Trajectory:
        """Return what is in memory as pandas frames, with all columns even where there is no row."""
        return Trajectory(**{name: as_frame(as_table(name, self._kept(name))) for name in TABLES})

    def truncate(self, step: int) -> None:
        """Forget the rows of ``step`` and later: training goes on from a checkpoint made before that step.

        What a sink has been given already stays there; a store keeps attempts apart instead.
        """
        for tables in (self._rows, self._pending):
            for name in tables:
                tables[name] = [row for row in tables[name] if row[0] < step]

    def flush(self) -> bool:
        """Hand the rows not yet handed on to the sink; return whether it took all of them."""
        self._last_flush = time.monotonic()
        if self._sink is None:
            return True
        if any(self._pending.values()):
            self._unsent.append({name: tuple(rows) for name, rows in self._pending.items() if rows})
            self._pending = {name: [] for name in TABLES}
        while self._unsent:
            try:
                self._sink(self._unsent[0])
            except OSError as error:
                self.sink_failures += 1
                _LOGGER.warning("the trajectory could not be stored and is kept in memory: %s", error)
                return False
            del self._unsent[0]
        return True

    def close(self) -> None:
        """Hand on what is left; logs an error if the sink does not take it. The frames stay readable."""
        if not self.flush():
            _LOGGER.error("the last %d batches of the trajectory could not be stored", len(self._unsent))

    def _kept(self, name: str) -> list[Row]:
        return self._rows[name] if self._limit is None else self._rows[name][-self._limit :]

    def _add(self, name: str, rows: list[Row]) -> None:
        kept = self._rows[name]
        kept.extend(rows)
        if self._limit is not None and len(kept) > 2 * self._limit:
            del kept[: -self._limit]
        if self._sink is None:
            return
        self._pending[name].extend(rows)
        # An observation ends a step's line of thought only with its decision: batches may split a step, readers cope.
        waiting = sum(len(pending) for pending in self._pending.values())
        if waiting >= self._batch_rows or time.monotonic() - self._last_flush >= self._batch_s:
            self.flush()
