"""From the weights before a step to those after it, all packs that can be worked together at once.

A small operation costs its call, whatever the number of layers: packs whose vectors are short, whose blocks have one
size and whose steps are followed alike are joined, see :mod:`lipadvisor.spectra.joined`.

Shapes: ``l`` layers of a pack or of those that are joined, ``R`` block, ``M`` outputs, ``N`` inputs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lipadvisor.probe.carried import Carried, CarriedResolvent, CarriedSteps
from lipadvisor.probe.joining import each, factor, join
from lipadvisor.probe.light import LightKind, LightSteps, refreshed
from lipadvisor.probe.noise import NoiseImages
from lipadvisor.probe.pack import Pack
from lipadvisor.probe.response import Passage, noise_form, relative_sizes, respond, seen_alone, waved
from lipadvisor.probe.strides import Strides
from lipadvisor.probe.update_start import update_start
from lipadvisor.spectra import CgResolvent, GramResolvent, LayerOperator, Resolvent, TrackedBlock
from lipadvisor.spectra.before import Before, BeforeOperator
from lipadvisor.spectra.conv2d import roughly
from lipadvisor.spectra.joined import JoinedGram, JoinedOperator, filled
from lipadvisor.spectra.rows import Rows, log, quiet, row_lengths, rows, tensor
from lipadvisor.spectra.sharded import ShardedOperator

__all__ = ["Came", "follow", "looked_at", "move", "noise_columns"]


@dataclass(frozen=True, slots=True)
class Came:
    """What became of a pack.

    Attributes:
        columns_l6: ``u' U v``, ``q(U)``, predicted change of ``ln s_1``, ``s_1(U)``, two more sizes of ``U``.
        resolvent: of the weights before the step, for the noise; None after a light one, and where nothing is known.
        complement_l: see :class:`~lipadvisor.probe.response.Response`.
    """

    columns_l6: Tensor
    resolvent: Resolvent | None
    complement_l: Rows | None = None


def move(
    packs: Sequence[Pack],
    strides: Strides,
    often: bool = True,
    light: LightSteps | None = None,
    carried: CarriedSteps | None = None,
) -> list[Came | None]:
    """Bring packs to the weights after the step; return what it did to each that can be measured.

    Args:
        packs: all layers.
        strides: the step.
        often: see :meth:`~lipadvisor.probe.pack.Pack.resolvent`.
        light: says which blocks are renewed and which are not; None renews all.
        carried: says of which complements something is known without a solve; None solves with all.
    """
    groups: dict[Hashable, list[int]] = {}
    came: dict[int, Came] = {}
    holds: dict[int, Carried] = {}
    with quiet():
        for number, pack in enumerate(packs):
            if pack.old is None:
                continue
            kind: Hashable = None if light is None else light.kind(number, pack, strides)
            if kind is None:
                pack.move()
                hold = None if carried is None else carried.due(pack, strides, often)
                if hold is not None:
                    holds[number] = hold
                kind = _kind(number, pack, strides, often, hold is not None)
            groups.setdefault(kind, []).append(number)
        for kind, numbers in groups.items():
            members = [packs[one] for one in numbers]
            if light is not None and isinstance(kind, LightKind):
                columns = light.step(members, strides, kind)
                came.update((one, Came(found, None)) for one, found in zip(numbers, columns, strict=True))
                continue
            known = tuple(holds[one] for one in numbers if one in holds)
            came.update(zip(numbers, _move(members, strides, often, known), strict=True))
            for one in numbers:
                if light is not None:
                    light.renewed(packs[one], came[one].complement_l, one)
                if carried is not None:
                    carried.moved(packs[one], holds.get(one), came[one].complement_l, strides)
    return [came.get(one) for one in range(len(packs))]


def follow(packs: Sequence[Pack], strides: Strides) -> list[Came | None]:
    """Bring packs to the weights after the step: their spectra alone."""
    with quiet():
        for pack in packs:
            if pack.old is None:
                continue
            pack.move()
            assert pack.moved is not None
            block = pack.old.block.rows() if pack.short else pack.old.block
            degree = max(2, strides.degree(pack))
            pack.take(*refreshed(pack.operator, pack.moved.kernel, block, degree, pack.moved.image_RM))
    return [None] * len(packs)


def noise_columns(
    packs: Sequence[Pack], came: Sequence[Came | None], noises: Sequence[NoiseImages | None], carried: CarriedSteps
) -> list[Tensor]:
    """Return the form q (l, 1) of each pack's noise; nan where there is none.

    Args:
        packs: all layers.
        came: of them.
        noises: of them.
        carried: takes down what a solve has found.
    """
    columns = []
    for pack, one, noise in zip(packs, came, noises, strict=True):
        if one is None or one.resolvent is None or noise is None or noise.image_KM is None:
            columns.append(torch.full_like(pack.spectrum(pack.old)[:, :1], float("nan")))
            continue
        form_l1, ratio_l = noise_form(pack, one.resolvent, noise)
        carried.note_noise(pack, ratio_l)
        columns.append(form_l1)
    return columns


def _kind(number: int, pack: Pack, strides: Strides, often: bool, held: bool) -> Hashable:
    """Return what is the same for packs that can be worked together."""
    assert pack.old is not None
    assert pack.operator is not None
    block = pack.old.block
    if block.complete or not pack.short or hasattr(pack.operator, "top"):  # whose vectors are no iteration's
        return number
    wave = waved(pack.operator)
    if held:
        return wave, block.s_R.dtype, block.s_R.shape[1], strides.degree(pack)
    system = pack.iterations(often)
    alike = wave, system, _merges(pack), block.s_R.dtype, block.s_R.shape[1]
    return (*alike, strides.degree(pack), strides.pace(pack).turned)


def _move(packs: Sequence[Pack], strides: Strides, often: bool, holds: Sequence[Carried] = ()) -> list[Came]:
    """Bring packs of one kind to the weights after the step; ``holds`` of all of them, or of none."""
    steps = [strides.step(pack) for pack in packs]
    directions, signs = [direction for direction, _ in steps], [sign for _, sign in steps]
    lengths = [row_lengths(direction) for direction in directions]
    for pack, direction, length_lr in zip(packs, directions, lengths, strict=True):
        assert pack.operator is not None
        assert pack.update_KN is not None
        pack.update_KN = update_start(pack.operator, direction, length_lr, pack.update_KN, strides.first(pack))
    step, resolvents = _passage(packs, strides, directions, signs, often, holds)
    paces = [strides.pace(pack) for pack in packs]
    operators = [pack.operator for pack in packs]
    places = step.operator.places if isinstance(step.operator, JoinedOperator) else [slice(None)]

    def stretches(size_l: Rows, norm_l: Rows) -> int:
        if isinstance(step.operator, ShardedOperator):
            size_l = None  # by what all processes know alike
        return max(
            pace.stretches(None if size_l is None else size_l[place], norm_l[place])
            for pace, place in zip(paces, places, strict=True)
        )

    response = seen_alone(step) if holds else respond(step, paces[0].turned, stretches)
    if response is None:
        return [came for pack in packs for came in _move([pack], strides, often)]
    degree = strides.degree(packs[0])
    start_RM = step.image_RM if degree else response.ahead(step.image_RM)
    block, residual_l1 = refreshed(step.operator, step.moved, step.block, degree, start_RM)
    if holds:
        response.columns_l4[:, 2] = log((block.s_R[:, :1] / step.block.s_R[:, :1])[..., None] / step.kept)[:, 0, 0]
    columns_l4, came_l = tensor(response.columns_l4), (step.block.u_RM[:, 0] * step.image_RM[:, 0]).sum(-1)
    came = []
    parts = zip(packs, operators, places, lengths, signs, resolvents, strict=True)
    for pack, operator, place, length_lr, sign, resolvent in parts:
        assert operator is not None
        assert pack.old is not None
        own_l4 = columns_l4[place]
        if sign < 0.0:  # it was -U
            own_l4[:, 0] *= sign
        if pack.known and not strides.agrees(pack, float(own_l4[0, 0]), float(came_l[place][0])):
            own_l4 = torch.full_like(own_l4, float("nan"))
        pack.update_KN = tensor(response.update_KN[place, :, : operator.inputs])
        pack.take(_own(block, place, operator), residual_l1[place])
        sizes_l2 = relative_sizes(operator, length_lr, pack.old.length_lr)
        complement_l = None if response.complement_l is None else response.complement_l[place]
        came.append(Came(torch.cat([own_l4, sizes_l2], 1), resolvent, complement_l))
    return came


def _own(block: TrackedBlock, place: slice, operator: LayerOperator) -> TrackedBlock:
    """Return one pack's part of a joined block."""
    u_RM, v_RN = block.u_RM[place, :, : operator.outputs], block.v_RN[place, :, : operator.inputs]
    return TrackedBlock(u_RM, block.s_R[place], v_RN, block.complete)


def _passage(
    packs: Sequence[Pack],
    strides: Strides,
    directions: Sequence[Tensor],
    signs: Sequence[float],
    often: bool,
    holds: Sequence[Carried],
) -> tuple[Passage, tuple[Resolvent | None, ...]]:
    """Return the step of packs of one kind, and the resolvent of each for the noise."""
    pack = packs[0]
    if len(packs) == 1:
        assert pack.old is not None
        assert pack.moved is not None
        assert pack.operator is not None
        assert pack.update_KN is not None
        short, old, moved = pack.short, pack.weights_before(), pack.moved
        block, update_KN = pack.old.block, pack.update_KN
        if short:
            block, update_KN = block.rows(), rows(update_KN)
        renew = partial(pack.resolvent, often=often)
        resolvent = CarriedResolvent(block.s_R[:, 0], holds[0].change_l) if holds else renew(old, block)
        length, kept = factor(strides.length(pack) * signs[0], short), factor(strides.kept(pack), short)
        rough = roughly(pack.operator, moved.kernel)
        return Passage(
            pack.operator, rough, resolvent, renew, block, old, moved.kernel, moved.image_RM, directions[0],
            length, kept, update_KN, _merges(pack),
        ), (CarriedResolvent.of(block, holds[0].noise_l) if holds else resolvent,)  # fmt: skip
    return _joined_passage(packs, strides, directions, signs, often, holds)


def _joined_passage(
    packs: Sequence[Pack],
    strides: Strides,
    directions: Sequence[Tensor],
    signs: Sequence[float],
    often: bool,
    holds: Sequence[Carried],
) -> tuple[Passage, tuple[Resolvent | None, ...]]:
    counts = tuple(len(pack.layers) for pack in packs)
    states = [pack.old for pack in packs if pack.old is not None]
    ends = [pack.moved for pack in packs if pack.moved is not None]
    old, moved = tuple(pack.weights_before() for pack in packs), tuple(end.kernel for end in ends)
    parts = tuple(pack.operator for pack in packs if pack.operator is not None)
    operator = join(parts, counts)
    rough_parts = tuple(roughly(part, kernel) for part, kernel in zip(parts, moved, strict=True))
    rough = join(rough_parts, counts)
    blocks = [state.block.rows() for state in states]
    u_RM = filled([block.u_RM for block in blocks], operator.outputs)
    v_RN = filled([block.v_RN for block in blocks], operator.inputs)
    s_R: Rows = np.concatenate([block.s_R for block in blocks])
    block = TrackedBlock(u_RM, s_R, v_RN, False)
    resolvent, resolvents = _solved(packs, operator, rough_parts, old, block, blocks, often, holds)
    length = each([strides.length(pack) * sign for pack, sign in zip(packs, signs, strict=True)], counts, u_RM.dtype)
    kept = each([strides.kept(pack) for pack in packs], counts, u_RM.dtype)
    image_RM = filled([end.image_RM for end in ends], operator.outputs)
    update_KN = filled([rows(pack.update_KN) for pack in packs if pack.update_KN is not None], operator.inputs)
    return Passage(
        operator, rough, resolvent, None, block, old, moved, image_RM, tuple(directions), length, kept,
        update_KN, _merges(packs[0]),
    ), resolvents  # fmt: skip


def _solved(
    packs: Sequence[Pack],
    operator: JoinedOperator,
    rough_parts: Sequence[LayerOperator],
    old: tuple[Tensor | Before, ...],
    block: TrackedBlock,
    blocks: Sequence[TrackedBlock],
    often: bool,
    holds: Sequence[Carried],
) -> tuple[Resolvent, tuple[Resolvent | None, ...]]:
    """Return what is asked of all complements at once, and that of each for the noise."""
    if holds:
        each_of = tuple(CarriedResolvent.of(one, hold.noise_l) for one, hold in zip(blocks, holds, strict=True))
        return CarriedResolvent(block.s_R[:, 0], np.concatenate([hold.change_l for hold in holds])), each_of
    resolvents = tuple(pack.resolvent(kernel, one, often) for pack, kernel, one in zip(packs, old, blocks, strict=True))
    grams = tuple(one for one in resolvents if isinstance(one, GramResolvent))
    if grams:
        return JoinedGram(operator, grams), resolvents
    assert isinstance(resolvents[0], CgResolvent)
    ways = (BeforeOperator(r) if isinstance(w, Before) else r for r, w in zip(rough_parts, old, strict=True))
    whole = join(tuple(ways), operator.counts)
    return CgResolvent(whole, old, block, resolvents[0].iterations), resolvents


def _merges(pack: Pack) -> bool:
    """Return whether one solve does for the pair and for what it turns into: of what is too large to be factorised."""
    assert pack.old is not None
    return not pack.exact and not pack.old.block.complete and pack.old.block.s_R.dtype != torch.float64


@contextmanager
def looked_at(packs: Iterable[Pack]) -> Iterator[None]:
    """Look once whether weights have been written to; nothing writes to them meanwhile."""
    try:
        with torch.no_grad():
            for pack in packs:
                pack.look()
        yield
    finally:
        for pack in packs:
            pack.seen = None
