"""Keeps an advisor's own errors from stopping a training, and lets them be seen; keeps its arithmetic its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch

__all__ = ["FailOpen", "Patience"]

GIVE_UP = 5  # steps with errors and no decision in between

P = ParamSpec("P")
T = TypeVar("T")
_DEVICES = ("cpu", "cuda")
_log = logging.getLogger("lipadvisor")


class FailOpen:
    """Runs actions; an exception is logged with its traceback the first time, and counted every time.

    Actions run outside the user's autocast: what an advisor computes on the user's tensors keeps their precision.

    Args:
        raises: raise instead, for tests and development.
    """

    def __init__(self, *, raises: bool = False) -> None:
        self.raises = raises
        self.count = 0

    def guard(self, action: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T | None:
        """Return what ``action`` returns, ``None`` if it failed."""
        try:
            autocast = [device for device in _DEVICES if torch.is_autocast_enabled(device)]
            if not autocast:  # this is on the path of every step
                return action(*arguments, **keywords)
            with ExitStack() as stack:
                for device in autocast:
                    stack.enter_context(torch.autocast(device, enabled=False))
                return action(*arguments, **keywords)
        except Exception:
            self.caught()
            return None

    def caught(self) -> None:
        """Log and count the exception that is being handled, or raise it on; for what cannot afford :meth:`guard`."""
        if self.raises:
            raise
        self.count += 1
        if self.count == 1:
            _log.exception("lipadvisor failed; the training goes on with the knobs as they are (said once)")


class Patience:
    """Ends when ``GIVE_UP`` steps have failed and no decision was made in between."""

    def __init__(self) -> None:
        self._failed = self._errors = self._decisions = 0

    def tried(self, errors: int) -> bool:
        """Return whether a step has failed since the last decision, given the errors so far."""
        return self._failed > 0 or errors != self._errors

    def ends(self, errors: int, decisions: int) -> bool:
        """Take in the errors and decisions so far, once a step; return whether it is time to give up."""
        if errors > self._errors:
            self._failed = self._failed + 1 if decisions == self._decisions else 1
        elif decisions > self._decisions:
            self._failed = 0
        self._errors, self._decisions = errors, decisions
        if self._failed >= GIVE_UP:
            _log.error("lipadvisor failed in %d steps, no decision in between; you have the knobs back", GIVE_UP)
        return self._failed >= GIVE_UP
