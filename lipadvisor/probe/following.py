"""What a tracker is for may change while it runs: the size of a convolution's maps, the type or device of the weights.

A convolution's norm is that of its true operator on maps of one size. Another size is taken up once it has been seen in
``SEEN`` measured steps in a row and was not taken up before: progressive resizing is followed, images of many sizes are
not, so that a series of norms stays one. Each start is counted, logged, and marked in the next record.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lipadvisor.probe.capture import Capture
from lipadvisor.probe.kinds import TrackedLayer
from lipadvisor.probe.pack import Pack

__all__ = ["SEEN", "Following"]

SEEN = 3  # measured steps in a row with maps of another size, after which that is the size
_log = logging.getLogger("lipadvisor")

Sizes = tuple[int, ...]


@dataclass(slots=True)
class Following:
    """State of one run.

    Attributes:
        layers: measured ones.
        capture: says what was seen, and keeps what sizes the operators are for.
        follows: whether new sizes are taken up; several processes would have to agree on them.
        restarts: layers that were started anew so far, each time.
        fresh: those since the last record.
    """

    layers: Sequence[TrackedLayer]
    capture: Capture
    follows: bool = True
    restarts: int = 0
    fresh: set[int] = field(default_factory=set)
    _types: list[tuple[torch.dtype, torch.device]] = field(default_factory=list)
    _other: dict[int, tuple[Sizes, int]] = field(default_factory=dict)  # a size seen lately, and how often in a row
    _past: dict[int, set[Sizes]] = field(default_factory=dict)  # sizes that operators were for
    _varied: bool = False

    def __post_init__(self) -> None:
        """Note the types of the weights."""
        self._types = self._types_now()

    def retyped(self) -> bool:
        """Return whether weights have another type or device than at the last look; all layers start anew then."""
        now = self._types_now()
        changed = [place for place, (old, new) in enumerate(zip(self._types, now, strict=True)) if old != new]
        if not changed:
            return False
        self._types = now
        self._start(range(len(self.layers)))
        dtype, device = now[changed[0]]
        _log.warning(
            "%s (and %d more): its weight is %s on %s now; the tracker starts anew", self.layers[changed[0]].name,
            len(changed) - 1, str(dtype).removeprefix("torch."), device,
        )  # fmt: skip
        return True

    def adopt(self, packs: Sequence[Pack]) -> None:
        """Take what was seen last for the size that packs without an operator are for."""
        for pack in packs:
            if pack.operator is None:
                for index in pack.indices:
                    if index in self.capture.seen_shapes:
                        self.capture.input_shapes[index] = self.capture.seen_shapes[index]

    def look(self, packs: Sequence[Pack]) -> bool:
        """Have packs whose maps are of another size for good start anew at the next measurement; say if any has."""
        before = self.restarts
        self.fresh.clear()
        for pack in packs:
            if pack.operator is None or not self.follows:
                continue
            if new := [index for index in pack.indices if self._changed(index)]:
                self._say(new[0])
                pack.restart()
                self._start(pack.indices)
        return self.restarts > before

    def marked(self, gone: Sequence[bool]) -> tuple[bool, ...]:
        """Return which layers are ``gone``, or have begun anew since the last record."""
        return tuple(lost or index in self.fresh for index, lost in enumerate(gone))

    def sizes(self) -> dict[str, Sizes]:
        """Return the size (channels, ...) of the maps that each layer's norm is for, where there is one."""
        shapes = self.capture.input_shapes
        return {self.layers[i].name: _one(self.layers[i], shapes[i]) for i in self.capture.sized if i in shapes}

    def state_dict(self) -> dict[str, Any]:
        """Return the sizes that operators were for, those seen lately, and the number of starts: numbers and lists."""
        past = {index: [list(size) for size in sorted(sizes)] for index, sizes in self._past.items()}
        other = {index: [list(size), count] for index, (size, count) in self._other.items()}
        return {"past": past, "other": other, "restarts": self.restarts, "varied": self._varied}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`; what is not there is as at the start."""
        past, other = state.get("past", {}), state.get("other", {})
        self._past = {int(index): {tuple(size) for size in sizes} for index, sizes in past.items()}
        self._other = {int(index): (tuple(size), int(count)) for index, (size, count) in other.items()}
        self.restarts, self._varied = int(state.get("restarts", 0)), bool(state.get("varied", False))

    def _changed(self, index: int) -> bool:
        """Count a size that is not the operator's; return whether it is to be taken up."""
        seen, own = (shapes.get(index) for shapes in (self.capture.seen_shapes, self.capture.input_shapes))
        if seen is None or own is None or index not in self.capture.sized:
            return False
        new, old = _one(self.layers[index], seen), _one(self.layers[index], own)
        if new == old:
            self._other.pop(index, None)
            return False
        last, count = self._other.get(index, (new, 0))
        count = count + 1 if last == new else 1
        self._other[index] = (new, count)
        if last != new or new in self._past.get(index, ()):
            self._say_varied(index, old)
            return False
        return count >= SEEN

    def _start(self, indices: Sequence[int]) -> None:
        for index in indices:
            own = self.capture.input_shapes.get(index)
            if own is not None:
                self._past.setdefault(index, set()).add(_one(self.layers[index], own))
            self._other.pop(index, None)
        self.fresh.update(indices)
        self.restarts += len(indices)

    def _types_now(self) -> list[tuple[torch.dtype, torch.device]]:
        return [(layer.weight.dtype, layer.weight.device) for layer in self.layers]

    def _say(self, index: int) -> None:
        layer = self.layers[index]
        shapes = self.capture.input_shapes[index], self.capture.seen_shapes[index]
        old, new = ("x".join(map(str, _one(layer, shape)[1:])) for shape in shapes)
        _log.warning(
            "%s: its maps are %s now and were %s: its norm is that on %s from here on", layer.name, new, old, new
        )

    def _say_varied(self, index: int, own: Sizes) -> None:
        if not self._varied:
            self._varied = True
            size = "x".join(map(str, own[1:]))
            _log.info(
                "%s: its maps have several sizes: its norm is that on %s (said once)", self.layers[index].name, size
            )


def _one(layer: TrackedLayer, shape: Sizes) -> Sizes:
    """Return (channels, *sizes) of one map of a batch (B, C, ...) or (C, ...)."""
    return tuple(shape[1 - len(layer.weight.shape) :])
