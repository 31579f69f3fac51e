"""What a trial's own function is given: its name and configuration, the stream to the hub, reports and checkpoints."""

from __future__ import annotations

import json
import logging
import os
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ray import tune

from lipadvisor.policies.contract import Policy
from lipadvisor.trajectory import Sink, write_json
from lipadvisor.trajectory.whole_files import finite, write_bytes
from lipadvisor.tune.client import HubClient
from lipadvisor.tune.placement import HubPolicy
from lipadvisor.tune.searcher import NAME_KEY, RESULT_KEY

__all__ = ["CHECKPOINTS", "JSON_STATE", "StateFormat", "Trainable", "TrialContext", "TrialSetup", "run_trial"]

_LOGGER = logging.getLogger("lipadvisor")
_SETTLE_S = 30.0  # how long a checkpoint may wait for the hub

CHECKPOINTS = "checkpoints"  # folder of the run: one folder for each unfinished trial


@dataclass(frozen=True, slots=True)
class StateFormat:
    """How a checkpoint's state is written to bytes and read back. Pickle has no place here.

    For tensors: ``torch.save`` into a buffer, and ``torch.load(..., weights_only=True)``.
    """

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


def _encode_json(state: Any) -> bytes:
    return json.dumps(state).encode()


def _decode_json(content: bytes) -> Any:
    return json.loads(content)


JSON_STATE = StateFormat(_encode_json, _decode_json)


@dataclass(frozen=True, slots=True)
class TrialSetup:
    """What all trials of a run share."""

    directory: Path
    hub: str  # name of the hub's actor
    policy_at: Literal["trial", "hub"] = "trial"
    patience_s: float = 0.25  # for a decision of the hub's
    threads: int = 1
    state_format: StateFormat = JSON_STATE
    max_backlog_rows: int = 200_000


class TrialContext:
    """A running attempt of a trial. Made by :func:`run_trial`, handed to the trial's function.

    Attributes:
        trial: The trial's name.
        attempt: 1 for the first start, one more after each restart.
        start_step: Step of the checkpoint that it goes on from, 0 if there is none.
        config: The trial's configuration, without its name.
    """

    def __init__(self, setup: TrialSetup, trial: str, config: Mapping[str, Any]) -> None:
        self.trial, self.config = trial, dict(config)
        self._setup = setup
        self._folder = setup.directory / CHECKPOINTS / trial
        self.start_step, self._state = _read_checkpoint(self._folder, setup.state_format)
        # The checkpoint's own step was recorded before it; what follows is done, and recorded, again.
        first = self.start_step + 1 if self.start_step else 0
        self._client = HubClient(
            setup.hub, trial, start_step=first, config=config, max_backlog_rows=setup.max_backlog_rows
        )
        self.attempt = self._client.attempt

    @property
    def sink(self) -> Sink:
        """Sink for a recorder, or for ``Advisor(sink=...)``: streams the rows to the hub."""
        return self._client

    def policy(self, policy: Policy[Any]) -> Policy[Any]:
        """Return ``policy`` as it is to be used here: itself, or one that asks the hub (``policy_at="hub"``)."""
        if self._setup.policy_at == "hub":
            return HubPolicy(policy, self._client, self._setup.patience_s)
        return policy

    def report(self, metrics: Mapping[str, float | int | str], checkpoint_state: Any = None) -> None:
        """Report a few scalars to Tune (at each evaluation, not at each step) and keep a checkpoint.

        Args:
            metrics: Numbers or short texts by name, ``step`` (steps taken so far) among them; with a checkpoint, the
                rows up to and including that step have been recorded.
            checkpoint_state: What :meth:`restore` gives back if the trial is started again; ``None`` keeps the
                checkpoint there is.

        Raises:
            ValueError: a metric is not a scalar, or ``step`` is missing.
        """
        for name, value in metrics.items():
            if not isinstance(value, (int, float, str)):
                raise ValueError(f"report(metrics=...) must be numbers or texts, got {name}={type(value).__name__}.")
        step = metrics.get("step")
        if not isinstance(step, int):
            raise ValueError(f"report(metrics=...) must have the whole number 'step', got {step!r}.")
        if checkpoint_state is not None and self._settled():
            _write_checkpoint(self._folder, step, self._setup.state_format.encode(checkpoint_state))
        tune.report(dict(metrics))

    def _settled(self) -> bool:
        settled = self._client.settle(_SETTLE_S)
        if not settled:
            _LOGGER.warning("trial %s: no checkpoint now, the hub has not stored what led to it", self.trial)
        return settled

    def restore(self) -> Any:
        """Return the state of the last checkpoint, or ``None`` if this is a fresh start."""
        return self._state

    def counts(self) -> dict[str, int]:
        """Return what happened on the stream so far; see ``HubClient.counts``."""
        return self._client.counts()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Wait until the hub has everything, then hand the result to the driver."""
        self._client.close()
        whole = {**result, "hub": self.counts(), "attempt": self.attempt}
        scalars = {name: value for name, value in result.items() if isinstance(value, (int, float, str))}
        tune.report({**scalars, RESULT_KEY: json.dumps(finite(whole))})


Trainable: TypeAlias = Callable[[TrialContext], Mapping[str, Any]]


def run_trial(setup: TrialSetup, trainable: Trainable, config: Mapping[str, Any]) -> None:
    """Run one attempt of one trial in this process.

    Raises:
        TypeError: the trainable returned something other than a mapping.
    """
    os.environ["OMP_NUM_THREADS"] = str(setup.threads)  # read by whatever is imported from here on
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(setup.threads)
    own = {key: value for key, value in config.items() if key != NAME_KEY}
    context = TrialContext(setup, config[NAME_KEY], own)
    result = trainable(context)
    if not isinstance(result, Mapping):
        raise TypeError(f"a trainable must return a mapping, its result; got {type(result).__name__}.")
    context.finish(result)


def _write_checkpoint(folder: Path, step: int, content: bytes) -> None:
    """Write the state under a name of its own, then the pointer to it: a crash leaves the former checkpoint whole."""
    name = f"{step}.state"
    write_bytes(folder / name, content)
    write_json(
        folder / "latest.json", {"step": step, "file": name, "bytes": len(content), "crc32": zlib.crc32(content)}
    )
    for old in folder.glob("*.state"):
        if old.name != name:
            old.unlink(missing_ok=True)


def _read_checkpoint(folder: Path, state_format: StateFormat) -> tuple[int, Any]:
    """Return step and state of the last checkpoint; ``(0, None)`` if there is none that is whole."""
    try:
        latest = json.loads((folder / "latest.json").read_text())
        content = (folder / Path(latest["file"]).name).read_bytes()
        if zlib.crc32(content) != latest["crc32"]:
            return 0, None
        return int(latest["step"]), state_format.decode(content)
    except (OSError, ValueError, KeyError):
        return 0, None
