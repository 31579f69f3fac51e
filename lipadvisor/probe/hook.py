"""Hooks that stay where they were put: a copied or pickled model takes none of an observer along."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Self

import torch

__all__ = ["Hook", "transformed"]


def transformed() -> bool:
    """Return whether the model is being run for a transformation of it: a compiler's trace, or ``torch.func``'s.

    What a hook would see there are stand-ins for tensors, which must not be kept.
    """
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def _nothing(*_: Any, **__: Any) -> None:
    """Stand in a copy where the original has a hook."""


class Hook:
    """Calls ``action``; its copies do nothing, so that the copy of a watched model is a model that nobody watches.

    Args:
        action: what torch calls.
    """

    __slots__ = ("action",)

    def __init__(self, action: Callable[..., Any]) -> None:
        self.action = action

    def __call__(self, *arguments: Any) -> Any:
        """Do the action."""
        return self.action(*arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a hook that does nothing."""
        return type(self)(_nothing)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle as something of Python's own that takes anything and does nothing: it is read without this package."""
        return getattr, (nullcontext(), "__exit__")
