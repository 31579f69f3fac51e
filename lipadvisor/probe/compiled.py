"""Compiled models: their names without the compiler's, and running them for a moment as if they were not compiled.

A compiler that traces the hooks would bake them in. They do nothing under a compiler, so that a compiled part of a
model shows no samples (its noise is measured from successive steps) and computes what it always does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["EagerStep", "bare", "eagerly", "is_compiled", "outside"]


def bare(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers that only run it otherwise: ``torch.compile``, ``DistributedDataParallel``."""
    while True:
        inner = model._modules.get("_orig_mod")
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def is_compiled(model: nn.Module) -> bool:
    """Return whether the model or a part of it is compiled; compiling a function around it does not show."""
    return any(
        "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def outside(model: nn.Module) -> bool:
    """Return whether what is called of a model that is compiled somewhere is itself not: its own hooks then fire."""
    return getattr(model, "_compiled_call_impl", None) is None


@contextmanager
def eagerly(model: nn.Module) -> Iterator[None]:
    """Run compiled parts as they were written."""
    if not is_compiled(model):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class EagerStep:
    """One step in which nothing compiled is used, so that hooks fire: for what cannot be known otherwise."""

    def __init__(self) -> None:
        """Nothing is changed yet."""
        self._stance: Any = None
        self._taken = False

    @staticmethod
    def possible() -> bool:
        """Return whether there is a compiler at work in this process."""
        return "torch._dynamo" in sys.modules

    def begin(self) -> None:
        """Use nothing compiled from now on; once in a run, and only where there is a compiler at work."""
        if not self._taken and self.possible():
            self._stance, self._taken = torch.compiler.set_stance("force_eager"), True

    def end(self) -> None:
        """Go back to what was before."""
        stance, self._stance = self._stance, None
        if stance is not None:
            stance.__exit__(None, None, None)
