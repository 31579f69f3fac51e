"""Which layers are tracked together.

Shapes: ``L`` layers of the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from lipadvisor.probe.kinds import Plain
from lipadvisor.probe.kinds.convolution import ConvolutionForm
from lipadvisor.probe.layers import TrackedLayer
from lipadvisor.probe.pack import Pack

__all__ = ["make_packs", "pack_up", "rows_of_layers"]

PADDED_SIDE = 128  # matrices up to this larger side may be padded to a common shape


def make_packs(layers: Sequence[TrackedLayer], generator: torch.Generator) -> tuple[Pack, ...]:
    """Sort layers into packs: matrices of one shape, small ones of similar size, like convolutions, others alone."""
    together: dict[tuple[object, ...], list[int]] = {}
    for index, layer in enumerate(layers):
        weight = layer.weight
        sides = layer.form.kernel_shape
        side = max(sides)
        form = getattr(layer.form, "whole", layer.form)  # processes that share weights must have the same packs
        if isinstance(form, ConvolutionForm) and isinstance(layer.source, Plain):
            key: tuple[object, ...] = (weight.dtype, weight.device, form, layer.shares, layer.group, layer.decays)
        elif layer.shares and form.matrix:
            key = (weight.dtype, weight.device, *sides, layer.shares, layer.flat)
        elif not layer.flat:
            key = (index,)
        elif side <= PADDED_SIDE:
            key = (weight.dtype, weight.device, 2 ** math.ceil(math.log2(max(side, 16))))
        else:
            key = (weight.dtype, weight.device, *sides)
        together.setdefault(key, []).append(index)
    return pack_up(layers, together.values(), generator)


def pack_up(
    layers: Sequence[TrackedLayer], groups: Iterable[Sequence[int]], generator: torch.Generator
) -> tuple[Pack, ...]:
    """Return a pack of each group of layers."""
    packs = []
    for indices in groups:
        members = tuple(layers[index] for index in indices)
        shape = tuple(max(sides) for sides in zip(*(layer.part_shape for layer in members), strict=True))
        packs.append(Pack(tuple(indices), members, shape, generator))
    return tuple(packs)


def rows_of_layers(packs: Sequence[Pack]) -> list[int]:
    """Return the row of each layer among those of all packs."""
    order = [index for pack in packs for index in pack.indices]
    return [row for _, row in sorted(zip(order, range(len(order)), strict=True))]
