"""Which layers are tracked together.

Shapes: ``L`` layers of the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from lipadvisor.probe.kinds import Plain
from lipadvisor.probe.kinds.convolution import ConvolutionForm
from lipadvisor.probe.layers import TrackedLayer
from lipadvisor.probe.pack import LARGE, Pack

__all__ = ["make_packs", "pack_up", "rows_of_layers", "saved_packs", "state_of_packs"]

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
        elif math.prod(sides) >= LARGE and weight.device.type == "cpu":
            key = (index,)
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


def state_of_packs(packs: Sequence[Pack]) -> dict[str, Any]:
    """Return what :func:`saved_packs` makes packs of: tensors and numbers."""
    return {
        "packs": [list(pack.indices) for pack in packs],
        "vectors": [None if pack.start_RN is None else pack.start_RN.clone() for pack in packs],
        "update_vectors": [None if pack.update_KN is None else pack.update_KN.clone() for pack in packs],
        "scouts": [None if pack.scout_1N is None else pack.scout_1N.clone() for pack in packs],
        "blocks": [pack.standing() for pack in packs],
    }


def saved_packs(
    layers: Sequence[TrackedLayer],
    state: Mapping[str, Any],
    input_shapes: Mapping[int, tuple[int, ...]],
    generator: torch.Generator,
) -> tuple[Pack, ...]:
    """Return packs that go on from ``state``, with the weights as they are now.

    Args:
        layers: of the probe.
        state: see :func:`state_of_packs`.
        input_shapes: that the layers' operators are for.
        generator: of the probe.
    """
    packs = pack_up(layers, state["packs"], generator)
    for number, pack in enumerate(packs):
        saved = (state.get(name) for name in ("vectors", "update_vectors", "blocks", "scouts"))
        vectors = [None if one is None else one[number] for one in saved]  # earlier versions had no scouts
        pack.load(input_shapes.get(pack.indices[0]), *vectors)
    return packs
