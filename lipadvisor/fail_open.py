"""Keeps an advisor's own errors from stopping a training, and lets them be seen; keeps its arithmetic its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch

__all__ = ["FailOpen"]

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
            if self.raises:
                raise
            self.count += 1
            if self.count == 1:
                _log.exception("lipadvisor failed; the training goes on with the knobs as they are (said once)")
            return None
