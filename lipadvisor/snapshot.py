"""States of model and optimizer to go back to: the last one known to be good, and the one that validated best.

The first is for a loss that is no longer finite. A copy becomes good when the next loss, which was computed from it,
is finite. Copies are taken every ``every`` steps and live on the parameters' own device: up to four times the size of
the parameters for Adam-like optimizers (two copies of weights and moments while one waits to be confirmed), which is
why the advisor keeps them for small models only, unless asked. The copy with the lowest validation loss is one more,
and is kept only where validation losses are reported; another, of the weights alone, is the average that a run ends
with where its policy asks for one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch

from lipadvisor.average import WeightAverage

__all__ = ["SMALL_MODEL", "Snapshot"]

SMALL_MODEL = 5_000_000  # parameters; above it, snapshots are taken only when asked for


class Snapshot:
    """Keeps one confirmed and one validated copy of ``model`` and ``optimizer`` and restores them.

    Args:
        model: its parameters and buffers are copied.
        optimizer: its state is copied; the parameter groups' knobs are not touched.
        every: steps between copies, >= 1; ``None`` keeps none, and no average.

    Attributes:
        average: of the weights, to end with.
        restored: how often weights were put back.
    """

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, every: int | None) -> None:
        self.every = every
        self.restored = 0
        self.average = WeightAverage(model, optimizer, kept=every is not None)
        self._model, self._optimizer = model, optimizer
        self._waiting: dict[str, Any] | None = None
        self._good: dict[str, Any] | None = None
        self._spare: dict[str, Any] = {}  # the copy before the good one: its memory is written to again
        self._best: dict[str, Any] | None = None
        self._best_loss = math.inf

    def next_due(self, step: int) -> float:
        """Return the first step from ``step`` on at which :meth:`keep` has anything to do, infinity for none."""
        if self.every is None:
            return math.inf
        return step if self._waiting is not None else -(-step // self.every) * self.every

    def begin(self) -> None:
        """Take a copy at once, to be confirmed by the next finite loss: a run goes on from a checkpoint."""
        if self.every is not None:
            with torch.no_grad():
                self._waiting = _copied(self._state(), {})

    def keep(self, step: int) -> None:
        """Called after each step with a finite loss: confirm the waiting copy, and take a new one when it is due."""
        if self.every is None:
            return
        if self._waiting is not None:
            self._spare, self._good, self._waiting = self._good or {}, self._waiting, None
        if step % self.every == 0:
            with torch.no_grad():
                self._waiting, self._spare = _copied(self._state(), self._spare), {}

    def keep_validated(self, loss: float) -> None:
        """Called with each validation loss of the weights as they are: copy them if it is the lowest so far."""
        if self.every is None or not loss < self._best_loss:  # nan is never lower
            return
        self._best_loss = loss
        with torch.no_grad():
            self._best = _copied(self._state(), self._best)

    def restore(self) -> bool:
        """Put the confirmed copy back, in place. Returns whether there was one."""
        return self._put_back(self._good)

    def restore_validated(self) -> bool:
        """Put the copy with the lowest validation loss back, in place. Returns whether there was one."""
        return self._put_back(self._best)

    def _state(self) -> dict[str, Any]:
        return {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()["state"]}

    def _put_back(self, kept: dict[str, Any] | None) -> bool:
        if kept is None:
            return False
        self._waiting = None
        with torch.no_grad():
            for name, tensor in self._model.state_dict().items():
                tensor.copy_(kept["model"][name])
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": copy.deepcopy(kept["optimizer"]), "param_groups": groups})
        self.restored += 1
        return True


def _copied(value: Any, memory: Any) -> Any:
    """Return a copy of nested dicts of tensors, in the tensors of ``memory`` where they fit."""
    if isinstance(value, torch.Tensor):
        fits = isinstance(memory, torch.Tensor) and memory.shape == value.shape
        if fits and memory.dtype == value.dtype and memory.device == value.device:
            return memory.copy_(value)
        return value.detach().clone()
    if isinstance(value, Mapping):
        known = memory if isinstance(memory, Mapping) else {}
        return {key: _copied(item, known.get(key)) for key, item in value.items()}
    return copy.deepcopy(value)
