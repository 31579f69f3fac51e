"""The last state of model and optimizer that is known to be good, to go back to when the loss is no longer finite.

A copy becomes good when the next loss, which was computed from it, is finite. Copies are taken every ``every`` steps
and live on the parameters' own device: up to four times the size of the parameters for Adam-like optimizers (two
copies of weights and moments while one waits to be confirmed), which is why the advisor keeps them for small models
only, unless asked.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["SMALL_MODEL", "Snapshot"]

SMALL_MODEL = 5_000_000  # parameters; above it, snapshots are taken only when asked for


class Snapshot:
    """Keeps one confirmed copy of ``model`` and ``optimizer`` and restores it.

    Args:
        model: its parameters and buffers are copied.
        optimizer: its state is copied; the parameter groups' knobs are not touched.
        every: steps between copies, >= 1; ``None`` keeps none.
    """

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, every: int | None) -> None:
        self.every = every
        self.restored = 0
        self._model, self._optimizer = model, optimizer
        self._waiting: dict[str, Any] | None = None
        self._good: dict[str, Any] | None = None
        self._spare: dict[str, Any] = {}  # the copy before the good one: its memory is written to again

    def due(self, step: int) -> bool:
        """Return whether :meth:`keep` has anything to do at this step."""
        return self._waiting is not None or (self.every is not None and step % self.every == 0)

    def keep(self, step: int) -> None:
        """Called after each step with a finite loss: confirm the waiting copy, and take a new one when it is due."""
        if self.every is None:
            return
        if self._waiting is not None:
            self._spare, self._good, self._waiting = self._good or {}, self._waiting, None
        if step % self.every == 0:
            state = {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()["state"]}
            with torch.no_grad():
                self._waiting, self._spare = _copied(state, self._spare), {}

    def restore(self) -> bool:
        """Put the confirmed copy back, in place. Returns whether there was one."""
        if self._good is None:
            return False
        self._waiting = None
        with torch.no_grad():
            for name, tensor in self._model.state_dict().items():
                tensor.copy_(self._good["model"][name])
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": copy.deepcopy(self._good["optimizer"]), "param_groups": groups})
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
