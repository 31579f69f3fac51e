"""Keeps an advisor's own errors from stopping a training, and lets them be seen."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

__all__ = ["FailOpen"]

T = TypeVar("T")
_log = logging.getLogger("lipadvisor")


class FailOpen:
    """Runs actions; an exception is logged with its traceback the first time, and counted every time.

    Args:
        raises: raise instead, for tests and development.
    """

    def __init__(self, *, raises: bool = False) -> None:
        self.raises = raises
        self.count = 0

    def guard(self, action: Callable[[], T]) -> T | None:
        """Return what ``action`` returns, ``None`` if it failed."""
        try:
            return action()
        except Exception:
            if self.raises:
                raise
            self.count += 1
            if self.count == 1:
                _log.exception("lipadvisor failed; the training goes on with the knobs as they are (said once)")
            return None
