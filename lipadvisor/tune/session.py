"""Starts Ray on this machine, or joins a cluster: quiet, without a dashboard, behind a token, and ending cleanly."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

__all__ = ["StopSignals", "prepare_environment", "ray_session"]

_LOGGER = logging.getLogger("lipadvisor")

# Set unless the user has. The reasons: no usage reports; one writer of results, ours; a trial stays in the directory
# it was started from; a killed driver loses two seconds of Tune's own state, not ten; nothing but our own output.
_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "2",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def prepare_environment(*, local: bool) -> None:
    """Set the environment variables that Ray reads when it is imported or started, where the user has not.

    A local Ray listens on this machine's ports: it gets a token, made for this process and its children alone unless
    the user has one (``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH`` or ``~/.ray/auth_token``). Joining a cluster follows
    that cluster's own rule.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if not local or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if not given and not (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # RAY_AUTH_MODE is read when Ray is imported, by whomever; a local ``ray.init`` turns it on where it is unset.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)


@contextmanager
def ray_session(
    address: str | None = None, *, at_least_cpus: int = 1, object_store_bytes: int = 200_000_000
) -> Iterator[None]:
    """Run the body with Ray: one that is running in this process already, a cluster, or a new one on this machine.

    Args:
        address: Cluster to join; ``RAY_ADDRESS`` if ``None``, and a new local Ray if that is unset or ``"local"``.
        at_least_cpus: A local Ray counts this machine's CPUs, and at least so many.
        object_store_bytes: Size of a local Ray's object store.

    Raises:
        ConnectionError: the cluster cannot be reached.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    local = address == "local"
    prepare_environment(local=local)
    import ray  # reads the environment when imported

    if ray.is_initialized():
        yield
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if local:
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, at_least_cpus),
                include_dashboard=False,
                object_store_memory=object_store_bytes,
                **quiet,
            )
        else:
            ray.init(address=address, **quiet)
    except ConnectionError as error:
        raise ConnectionError(f"no Ray cluster could be joined at {address!r}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


class StopSignals:
    """Turns the first Ctrl-C or ``SIGTERM`` into Tune's orderly stop; the second Ctrl-C interrupts at once.

    A context manager around ``Tuner.fit``. Tune listens to ``SIGUSR1``; without this a ``SIGTERM`` is a kill. Outside
    the main thread, where Python takes no signal handlers, it does nothing.
    """

    _TUNES_OWN = "TUNE_DISABLE_SIGINT_HANDLER"

    def __init__(self) -> None:
        self.stopped = False
        self._before: dict[signal.Signals, object] = {}
        self._variable: str | None = None

    def __enter__(self) -> StopSignals:
        self._variable = os.environ.get(self._TUNES_OWN)
        os.environ[self._TUNES_OWN] = "1"
        if threading.current_thread() is threading.main_thread():
            self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._ignore)  # until Tune sets its own
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._variable is None:
            del os.environ[self._TUNES_OWN]
        else:
            os.environ[self._TUNES_OWN] = self._variable

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.stopped and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped = True
        signal.raise_signal(signal.SIGUSR1)

    @staticmethod
    def _ignore(number: int, frame: FrameType | None) -> None:
        return None
