"""A trial's end of the stream to the hub: numbered batches, one push in flight, sent again until acknowledged."""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from lipadvisor.policies.contract import Decision, Observation, Policy
from lipadvisor.trajectory import Batch
from lipadvisor.tune.hub import Acknowledgement, Question, packed

__all__ = ["HubClient", "HubUnavailableError"]

_LOGGER = logging.getLogger("lipadvisor")
_BATCHES_PER_PUSH = 32
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


class HubUnavailableError(RuntimeError):
    """The hub has not answered for so long that going on would lose what is recorded."""


class HubClient:
    """Streams one attempt of one trial. It never waits, except when the backlog is full.

    It has no thread of its own: each ``put`` looks, without waiting, whether the last push was acknowledged, and sends
    the next. A push that died with the hub is sent again, with pauses of 0.05 to 2 s.

    Args:
        hub: Name of the hub's actor, or its handle.
        trial: Name of the trial.
        start_step: The step that this attempt starts from.
        config: The trial's configuration, kept with the trajectory.
        max_backlog_rows: Rows that may wait for their acknowledgement, at least 1. Beyond, ``put`` waits, warns and
            counts a stall.
        patience_s: Longest wait for a hub that is away, at the beginning, at a full backlog, and at the end.

    Raises:
        ValueError: an argument is out of range, or the trial's name may not name a folder.
        HubUnavailableError: the hub did not answer.
    """

    def __init__(
        self,
        hub: Any,
        trial: str,
        *,
        start_step: int = 0,
        config: Mapping[str, Any] | None = None,
        max_backlog_rows: int = 200_000,
        patience_s: float = 120.0,
    ) -> None:
        if max_backlog_rows < 1:
            raise ValueError(f"HubClient(max_backlog_rows=...) must be at least 1, got {max_backlog_rows}.")
        if not patience_s > 0:
            raise ValueError(f"HubClient(patience_s=...) must be positive, got {patience_s}.")
        self._hub = ray.get_actor(hub) if isinstance(hub, str) else hub
        self.trial = trial
        self._max_backlog_rows, self._patience_s = max_backlog_rows, patience_s
        self._backlog: deque[tuple[int, Batch]] = deque()
        self._backlog_rows = 0
        self._sequence = 0
        self._recorders: list[Callable[[], object]] = []
        self._in_flight: Any = None
        self._overdue = False  # the push under way has been waited for once already
        self._told_silent = False
        self._pause_s, self._not_before = _FIRST_PAUSE_S, 0.0
        self.rows, self.resends, self.stalls, self.late, self.asked = 0, 0, 0, 0, 0
        self.attempt = self._begin(start_step, dict(config or {}))

    @property
    def backlog_rows(self) -> int:
        """Rows not yet acknowledged."""
        return self._backlog_rows

    def counts(self) -> dict[str, int]:
        """Return what happened on this stream, for the trial's record.

        ``rows`` sent, ``unacknowledged`` among them, ``resends`` of a push, ``stalls`` at a full backlog, decisions
        ``asked`` for, and how many of the answers were ``late``.
        """
        return {
            "rows": self.rows,
            "unacknowledged": self._backlog_rows,
            "resends": self.resends,
            "stalls": self.stalls,
            "asked": self.asked,
            "late": self.late,
        }

    def attach(self, flush: Callable[[], object]) -> None:
        """Take note of a recorder's ``flush``, which hands on what it still holds."""
        self._recorders.append(flush)

    def settle(self, timeout_s: float) -> bool:
        """Have everything recorded so far acknowledged, ``timeout_s`` at most; return whether it is.

        To be called before a checkpoint: what a restart does not do again must not be lost with this process.
        """
        for flush in self._recorders:
            flush()
        return self.flush(timeout_s)

    def __call__(self, batch: Batch) -> None:
        """Take a batch of rows: the client is itself the sink of a :class:`lipadvisor.trajectory.Recorder`."""
        self.put(batch)

    def put(self, batch: Batch) -> None:
        """Take a batch of rows.

        Raises:
            ValueError: the hub refused an earlier batch for good; says why. That batch is dropped.
            HubUnavailableError: the backlog stayed full.
        """
        size = sum(len(rows) for rows in batch.values())
        if not size:
            return
        self._sequence += 1
        self._backlog.append((self._sequence, batch))
        self._backlog_rows += size
        self.rows += size
        self._turn()
        if self._backlog_rows > self._max_backlog_rows:
            self._stall()

    def ask(
        self, policy: Policy[Any], observation: Observation, state: Any, wait_s: float
    ) -> tuple[Decision, Any] | None:
        """Ask the hub to decide; return its decision and the policy's next state, or ``None`` if it is late.

        A hub that is away costs one ``wait_s``, not one for each step: until it answers, ``None`` comes at once.
        """
        self.asked += 1
        deadline = time.monotonic() + wait_s
        answer = self._ask(packed(Question(policy, observation, state)), deadline)
        if answer is None:
            self.late += 1
        return answer

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is acknowledged, ``timeout_s`` at most; return whether it is."""
        deadline = time.monotonic() + timeout_s
        while self._backlog or self._in_flight is not None:
            if not self._turn_until(deadline) and time.monotonic() >= deadline:
                return False
        return True

    def close(self) -> None:
        """Wait for the last acknowledgement.

        Raises:
            HubUnavailableError: it did not come.
        """
        if not self.flush(self._patience_s):
            raise HubUnavailableError(
                f"trial {self.trial!r}: the hub did not acknowledge the last {self._backlog_rows} rows "
                f"within {self._patience_s:g} s."
            )

    # -- details -----------------------------------------------------------------------------------------------------

    def _begin(self, start_step: int, config: dict[str, Any]) -> int:
        token, deadline = uuid.uuid4().hex, time.monotonic() + self._patience_s
        while True:
            try:
                reference = self._hub.begin.remote(self.trial, start_step, config, token)
                return int(ray.get(reference, timeout=max(0.1, deadline - time.monotonic())))
            except (RayError, GetTimeoutError) as error:
                if isinstance(getattr(error, "cause", None), ValueError):
                    raise ValueError(str(error.cause)) from error
                if time.monotonic() >= deadline:
                    raise HubUnavailableError(f"trial {self.trial!r}: no hub to stream to: {error}") from error
                time.sleep(_FIRST_PAUSE_S)

    def _ask(self, question: bytes, deadline: float) -> tuple[Decision, Any] | None:
        if not self._turn_until(0.0 if self._overdue else deadline, send=False):  # one push at a time
            self._overdue = True
            return None
        if time.monotonic() < self._not_before:
            return None
        self._send(question)
        if self._in_flight is None:
            return None
        ready, _ = ray.wait([self._in_flight], timeout=max(0.0, deadline - time.monotonic()))
        self._overdue = not ready
        if not ready:
            return None  # its acknowledgement still counts when it comes; its decision no longer does
        acknowledgement = self._collect()
        if acknowledgement is None:
            return None
        if acknowledgement.silent and not self._told_silent:
            self._told_silent = True
            _LOGGER.warning("trial %s decides by itself, the hub cannot: %s", self.trial, acknowledgement.silent)
        return acknowledgement.answer

    def _turn(self) -> None:
        """Look, without waiting, for an acknowledgement; send what waits."""
        self._turn_until(0.0)

    def _turn_until(self, deadline: float, send: bool = True) -> bool:
        """Wait for the push under way until ``deadline``, then send the next; return whether anything moved."""
        now = time.monotonic()
        if self._in_flight is not None:
            ready, _ = ray.wait([self._in_flight], timeout=max(0.0, deadline - now))
            if not ready:
                return False
            self._collect()
        if not send or not self._backlog:
            return True
        pause = self._not_before - time.monotonic()
        if pause > 0:
            if deadline <= now:
                return False
            time.sleep(min(pause, max(0.0, deadline - now)))
            if time.monotonic() < self._not_before:
                return False
        self._send(None)
        return True

    def _send(self, question: bytes | None) -> None:
        batches = [self._backlog[index] for index in range(min(len(self._backlog), _BATCHES_PER_PUSH))]
        try:
            self._in_flight = self._hub.push.remote(self.trial, self.attempt, batches, question)
        except RayError as error:
            self._away(error)

    def _collect(self) -> Acknowledgement | None:
        """Take the acknowledgement that is there; ``None`` if the push died with the hub."""
        reference, self._in_flight, self._overdue = self._in_flight, None, False
        try:
            acknowledgement: Acknowledgement = ray.get(reference)
        except RayError as error:
            self._away(error)
            return None
        self._pause_s, self._not_before = _FIRST_PAUSE_S, 0.0
        while self._backlog and self._backlog[0][0] <= acknowledgement.sequence:
            self._drop_first()
        if acknowledgement.refused:
            self._drop_first()
            raise ValueError(f"trial {self.trial!r}: the hub refused a batch: {acknowledgement.refused}")
        if acknowledgement.trouble:
            self._away(OSError(acknowledgement.trouble))
        return acknowledgement

    def _drop_first(self) -> None:
        _, batch = self._backlog.popleft()
        self._backlog_rows -= sum(len(rows) for rows in batch.values())

    def _away(self, error: Exception) -> None:
        self.resends += 1
        self._not_before = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        _LOGGER.info("trial %s: the hub is away, what it has not acknowledged is sent again: %s", self.trial, error)

    def _stall(self) -> None:
        self.stalls += 1
        _LOGGER.warning(
            "trial %s: the hub has not acknowledged %d rows; training waits for it", self.trial, self._backlog_rows
        )
        deadline = time.monotonic() + self._patience_s
        while self._backlog_rows > self._max_backlog_rows // 2:
            if not self._turn_until(deadline) and time.monotonic() >= deadline:
                raise HubUnavailableError(
                    f"trial {self.trial!r}: {self._backlog_rows} rows wait and the hub has not answered "
                    f"for {self._patience_s:g} s."
                )
