"""What the inputs of a compiled model tell of the sizes of maps inside, where no hook sees them.

The sizes inside follow from those of what the model is given. Those are seen from outside; where they have been new in
a few measured steps in a row, the next one's batch goes through the model once more, as it was written, without
gradients and in eval mode.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lipadvisor.probe.capture import Capture
from lipadvisor.probe.hook import Hook, transformed
from lipadvisor.probe.input_sizes import input_sizes
from lipadvisor.probe.kinds import TrackedLayer

__all__ = ["Inside"]

IN_A_ROW = 3  # measured steps with inputs of unknown sizes, after which the model is run once more
LOOKS = 16  # in a run

Sizes = tuple[int, ...]


@dataclass(slots=True)
class Inside:
    """State of one run.

    Attributes:
        model: as it was written.
        root: what is called, compiled somewhere inside.
        layers: measured ones.
        capture: takes what is found as seen.
        known: shapes inside, by layer, for shapes of the inputs without the batch.
        asks: whether the next measured step is to look.
    """

    model: nn.Module
    root: nn.Module
    layers: Sequence[TrackedLayer]
    capture: Capture
    known: dict[tuple[Sizes, ...], dict[int, Sizes]] = field(default_factory=dict)
    asks: bool = False
    _shapes: tuple[Sizes, ...] | None = None  # of the inputs in the step under way
    _last: tuple[Sizes, ...] | None = None
    _count: int = 0
    _handle: RemovableHandle | None = None

    def attach(self) -> None:
        """Watch the inputs of a measured step."""
        self.detach()
        self._shapes, self.capture.seen_shapes = None, {}
        # Before others': a look puts shares back that fully_shard's own hook would have gathered by then.
        enter = Hook(self._enter)
        self._handle = self.root.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)

    def detach(self) -> None:
        """Watch no longer."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def note(self, arguments: Sequence[Any], keywords: Mapping[str, Any], found: Mapping[int, Sizes]) -> None:
        """Take down what sizes there are inside for such inputs."""
        self.known[_shapes_of(arguments, keywords)] = dict(found)

    def settle(self) -> None:
        """Say what sizes this step's maps had, as far as its inputs tell, and whether to look at the next."""
        shapes, self._shapes = self._shapes, None
        if shapes is None:
            return
        if shapes not in self.known and self.capture.seen_shapes:  # the hooks saw them: it ran as it was written
            self.known[shapes] = dict(self.capture.seen_shapes)
        found = self.known.get(shapes)
        self._count = self._count + 1 if shapes == self._last else 1
        self._last = shapes
        self.capture.seen_shapes = {} if found is None else dict(found)
        self.asks = found is None and (not self.known or self._count >= IN_A_ROW) and len(self.known) < LOOKS

    def _enter(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if transformed() or self.capture.asleep or self._shapes is not None or not torch.is_grad_enabled():
            return
        self._shapes = _shapes_of(arguments, keywords)
        if self.asks:  # all processes do, whatever each of them knows
            started = time.perf_counter()
            self.known[self._shapes] = input_sizes(self.model, self.layers, arguments, keywords)
            self.capture.spent_s += time.perf_counter() - started


def _shapes_of(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[Sizes, ...]:
    """Return the shapes of all tensors that are given, without the first dimension."""
    return tuple(tuple(x.shape[1:]) for x in (*arguments, *keywords.values()) if isinstance(x, Tensor))
