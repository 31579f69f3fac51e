"""What a tracker is for may change while it runs: the size of a convolution's maps, the type or device of the weights.

A convolution's norm is that of its true operator on maps of one size. Another size is taken up once it has been seen in
``SEEN`` measured steps in a row, ``AGAIN`` times as many for each time that it was left before: a size that stays is
followed in the end, images of many sizes are not, so that a series of norms stays one. Each start is counted, logged,
and marked in the next record.

Processes that train together see sizes of their own. What counts is what all of them saw, which they tell each other
with the next step to measure.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lipadvisor.probe.capture import Capture
from lipadvisor.probe.compiled import is_compiled, outside
from lipadvisor.probe.inside import Inside
from lipadvisor.probe.kinds import TrackedLayer
from lipadvisor.probe.kinds.kind import kind_of
from lipadvisor.probe.pack import Pack
from lipadvisor.probe.ranks import ALONE, Ranks

__all__ = ["AGAIN", "SEEN", "Following", "following"]

SEEN = 3  # measured steps in a row with maps of another size, after which that is the size
AGAIN = 4  # times as many for a size that was left before
MOST = 6  # times that this is multiplied in
_BITS = 60  # of a number that stands for a size
_log = logging.getLogger("lipadvisor")

Sizes = tuple[int, ...]


@dataclass(slots=True)
class Following:
    """State of one run.

    Attributes:
        layers: measured ones.
        capture: says what was seen, and keeps what sizes the operators are for.
        ranks: processes that must agree.
        inside: of a compiled model, what its inputs tell of the maps inside; None where the maps are seen.
        restarts: layers that were started anew so far, each time.
        fresh: those since the last record.
    """

    layers: Sequence[TrackedLayer]
    capture: Capture
    ranks: Ranks = ALONE
    inside: Inside | None = None
    restarts: int = 0
    fresh: set[int] = field(default_factory=set)
    _types: list[tuple[torch.dtype, torch.device]] = field(default_factory=list)
    _other: dict[int, tuple[Sizes, int]] = field(default_factory=dict)  # a size seen lately, and how often in a row
    _left: dict[int, dict[Sizes, int]] = field(default_factory=dict)  # sizes that operators were for, times
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
        """Take what was seen last for the size that packs without an operator are for; all processes do at once."""
        wanting = [index for pack in packs if pack.operator is None for index in pack.indices]
        if not wanting:
            return
        seen = self.capture.seen_shapes
        if self.ranks.size > 1:  # the largest of what the processes saw, where that is not the same
            largest = self.ranks.largest(*self.numbers())[: len(self.capture.sized)]
            seen = {i: self._shape(i, n) for i, n in zip(self.capture.sized, largest, strict=True) if n}
        for index in wanting:
            if index in seen:
                self.capture.input_shapes[index] = seen[index]

    def told(self, found: Mapping[int, Sizes], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        """Take what a batch has told of the sizes inside of the model; all processes do at once."""
        shapes = dict(found)
        if self.inside is not None:
            self.inside.note(arguments, keywords, shapes)
        if self.ranks.size > 1:
            seen, self.capture.seen_shapes = self.capture.seen_shapes, shapes
            largest = self.ranks.largest(*self.numbers())[: len(self.capture.sized)]
            self.capture.seen_shapes = seen
            shapes |= {i: self._shape(i, n) for i, n in zip(self.capture.sized, largest, strict=True) if n}
        self.capture.input_shapes.update(shapes)

    @property
    def knows(self) -> bool:
        """Whether sizes inside of a compiled model are known without its layers being watched."""
        return self.inside is not None and bool(self.inside.known)

    def begin(self) -> None:
        """Watch what goes into a compiled model in a measured step."""
        if self.inside is not None:
            self.inside.attach()

    def end(self) -> None:
        """Watch no longer, and see what it was."""
        if self.inside is not None:
            self.inside.detach()
            self.inside.settle()

    def numbers(self) -> tuple[int, ...]:
        """Return what each process has to tell the others of the sizes it saw, for the largest to be taken of each."""
        if self.ranks.size == 1:
            return ()
        own = [self._number(index) for index in self.capture.sized]
        asks = 0 if self.inside is None else int(self.inside.asks)
        return (*own, *(-number if number else -(1 << _BITS) for number in own), asks)

    def agreed(self, step: int, wait: int) -> tuple[int, int]:
        """Return the largest of two numbers over all processes, which tell each other on that occasion what they saw.

        Sizes that are not the same count as none.
        """
        step, wait, *largest = self.ranks.largest(step, wait, *self.numbers())
        if largest:
            self._take(largest)
        return step, wait

    def _take(self, largest: Sequence[int]) -> None:
        count = len(self.capture.sized)
        self.capture.seen_shapes = {
            index: self._shape(index, most)
            for index, most, least in zip(self.capture.sized, largest, largest[count:], strict=False)
            if most == -least
        }
        if self.inside is not None:
            self.inside.asks = bool(largest[-1])

    def look(self, packs: Sequence[Pack]) -> bool:
        """Have packs whose maps are of another size for good start anew at the next measurement; say if any has."""
        before = self.restarts
        self.fresh.clear()
        for pack in packs:
            if pack.operator is None:
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
        left = {i: [[list(size), times] for size, times in sorted(sizes.items())] for i, sizes in self._left.items()}
        other = {index: [list(size), count] for index, (size, count) in self._other.items()}
        return {"left": left, "other": other, "restarts": self.restarts, "varied": self._varied}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`; what is not there is as at the start."""
        once = {
            index: [[size, 1] for size in sizes] for index, sizes in state.get("past", {}).items()
        }  # as it was once
        left, other = state.get("left", once), state.get("other", {})
        self._left = {int(i): {tuple(size): int(times) for size, times in sizes} for i, sizes in left.items()}
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
        times = self._left.get(index, {}).get(new, 0)
        if last != new or times:
            self._say_varied(index, old)
        needed: int = SEEN * AGAIN ** min(times, MOST)
        return count >= needed

    def _start(self, indices: Sequence[int]) -> None:
        for index in indices:
            own = self.capture.input_shapes.get(index)
            if own is not None:
                left, size = self._left.setdefault(index, {}), _one(self.layers[index], own)
                left[size] = left.get(size, 0) + 1
            self._other.pop(index, None)
        self.fresh.update(indices)
        self.restarts += len(indices)

    def _types_now(self) -> list[tuple[torch.dtype, torch.device]]:
        return [kind_of(layer.weight) for layer in self.layers]

    def _number(self, index: int) -> int:
        """Return one number for the size that was seen of a layer's maps; 0 for none."""
        shape = self.capture.seen_shapes.get(index)
        if shape is None:
            return 0
        number, (_, *sizes) = 0, _one(self.layers[index], shape)
        for size in sizes:
            number = (number << (_BITS // len(sizes))) + size
        return number

    def _shape(self, index: int, number: int) -> Sizes:
        """Return the size (channels, ...) that a number stands for."""
        layer = self.layers[index]
        dimensions = len(layer.form.kernel_shape) - 2
        bits = _BITS // dimensions
        sizes = tuple((number >> bits * place) % (1 << bits) for place in reversed(range(dimensions)))
        channels = layer.module.in_channels
        assert isinstance(channels, int)
        return (channels, *sizes)

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


def following(
    model: nn.Module, root: nn.Module, layers: Sequence[TrackedLayer], capture: Capture, ranks: Ranks
) -> Following:
    """Return the state of a run that begins.

    Args:
        model: as it was written.
        root: what is called: the same, or that in its wrappers.
        layers: measured ones.
        capture: of the same layers.
        ranks: processes that train together.
    """
    unseen = is_compiled(root) and outside(root) and bool(capture.sized)
    return Following(layers, capture, ranks, Inside(model, root, layers, capture) if unseen else None)


def _one(layer: TrackedLayer, shape: Sizes) -> Sizes:
    """Return (channels, *sizes) of one map of a batch (B, C, ...) or (C, ...)."""
    return tuple(shape[1 - len(layer.form.kernel_shape) :])
