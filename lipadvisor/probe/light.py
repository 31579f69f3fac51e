"""Light steps: between two renewals of a pack's block only its top pair is followed.

The pair turns within the block as it was left, by first-order perturbation with all that couples it there, and then
takes one plain iteration with the moved weights: seven applications to one vector each instead of some thirty.
``u' U v`` is exact, and s_1 a Ritz value. The update's size is that of its last top vector after one power. Carried
from the last renewal is the complement's part of q, as a ratio to the parts of the change that leave the block; the
other singular values stay what they were.

Where a pair cannot be followed so (long ways since the block was brought up to the weights, pairs that turn far, values
that overtake each other) the whole block takes an iteration with the moved weights, and the rest stays as it is. Packs
of short vectors are worked together, whatever their geometry.

Shapes: ``l`` layers of a pack, ``R`` block, ``M`` outputs, ``N`` inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lipadvisor.probe.carried import still_known
from lipadvisor.probe.joining import each, factor, filled_blocks, join
from lipadvisor.probe.pack import Pack, Refreshed
from lipadvisor.probe.response import relative_sizes
from lipadvisor.probe.strides import Strides
from lipadvisor.spectra import TrackedBlock, refresh, residual
from lipadvisor.spectra.curvature import block_form, outside
from lipadvisor.spectra.rows import (
    TINY,
    Kernel,
    Operator,
    Rows,
    adjoint,
    apply,
    at_least,
    joined,
    log,
    root,
    row_lengths,
    rows,
    squares,
    tensor,
    unit,
)
from lipadvisor.spectra.sharded import ShardedOperator

__all__ = ["Held", "LightKind", "LightSteps", "refreshed"]

WAY = 0.03  # relative steps, added up, that a block may be behind the weights
AHEAD = 3e-5  # relative distance up to which another value, as it was left, may stand above s_1
TURN = 0.3  # how far the pair may turn within the stale block
NEAR = 2e-3  # relative gap below which a pair of the block counts as that far away


@dataclass(frozen=True, slots=True)
class Held:
    """What a light step goes on from.

    Attributes:
        state: weights and block that it belongs to; of any other it says nothing.
        image_1M: the weights' image of the top right vector.
        complement_l: the complement's part of q, over ``(|p|^2 + |y|^2) / s_1``, at the last renewal.
        age: light steps since.
    """

    state: Refreshed
    image_1M: Rows
    complement_l: Rows
    age: int


@dataclass(frozen=True, slots=True)
class LightKind:
    """What is the same for packs that make a light step together.

    Attributes:
        number: of the one pack; None for all that have short vectors.
        whole: whether the whole block takes an iteration.
    """

    number: int | None
    whole: bool


@dataclass(slots=True)
class LightSteps:
    """Says at which steps which packs are renewed; state of one run.

    Attributes:
        every: steps from one renewal of a block to the next, at most.
        holds: of each pack, by its layers.
    """

    every: int
    holds: dict[tuple[int, ...], Held] = field(default_factory=dict)

    def kind(self, number: int, pack: Pack, strides: Strides) -> LightKind | None:
        """Return with which others the pack may make a light step; None where its block is to be renewed.

        Args:
            number: of the pack.
            pack: with ``old`` set.
            strides: the step.
        """
        hold = self.holds.get(pack.indices)
        if hold is None or hold.state is not pack.old or hold.age + 1 >= self.every:
            return None
        s_R = rows(hold.state.block.s_R)
        overtaken = not bool((s_R[:, 0] > s_R[:, 1] * (1.0 - AHEAD)).all())
        # Looked at a step ahead: from WAY on a filter of twice the degree would be needed.
        far = pack.way + 2.0 * strides.relative(pack) >= WAY
        return LightKind(None if pack.short else number, overtaken or far)

    def step(self, packs: Sequence[Pack], strides: Strides, kind: LightKind) -> list[Tensor]:
        """Make a light step of packs; return the columns of each as :class:`~lipadvisor.probe.together.Came` has them.

        Args:
            packs: of one kind, with ``old`` set.
            strides: the step.
            kind: theirs.
        """
        for pack in packs:
            pack.copy()
        steps, holds = [strides.step(pack) for pack in packs], [self.holds[pack.indices] for pack in packs]
        group = _Group.of(packs, holds, steps, strides)
        seen = _seen(group)
        found = None if kind.whole else _followed(group, seen)
        columns = []
        for pack, hold, (direction, sign), place in zip(packs, holds, steps, group.places, strict=True):
            good = found is not None and float(abs(found.turn_1R[place]).max()) <= TURN
            step = _whole(pack, strides) if found is None or not good else _lightly(pack, found, place)
            pack.way = pack.way + strides.relative(pack) if good else 0.0
            block, off_l1, image_1M, change_l = step
            old, operator = pack.old, pack.operator
            assert old is not None
            assert operator is not None
            assert pack.update_KN is not None
            pack.take(block, off_l1)
            assert pack.new is not None
            self.holds[pack.indices] = Held(pack.new, image_1M, hold.complement_l, hold.age + 1)
            pack.update_KN[:, :1] = tensor(seen.update_1N[place, :, : operator.inputs])
            own = (seen.first_l[place] * sign, seen.q_l[place], change_l, seen.size_l[place])
            own_l4 = tensor(joined([x[:, None] for x in own], 1))
            if pack.known and not strides.agrees(pack, float(own[0][0]), float(seen.came_l[place][0])):
                own_l4 = torch.full_like(own_l4, float("nan"))
            sizes_l2 = relative_sizes(operator, row_lengths(direction), old.length_lr)
            columns.append(torch.cat([own_l4, sizes_l2], 1))
        return columns

    def renewed(self, pack: Pack, complement_l: Rows | None, number: int) -> None:
        """Take down what the steps after a renewal may go on from.

        Args:
            pack: with ``new`` set.
            complement_l: see :class:`Held`; None where that step was too long for it.
            number: of the pack; those of long vectors, which are worked one by one, begin at different ages, so that
                few are renewed at once.
        """
        age, pack.way = 0 if pack.short or pack.indices in self.holds else number % self.every, 0.0
        last = self.holds.pop(pack.indices, None)
        new, operator = pack.new, pack.operator
        if complement_l is None or new is None or operator is None or not _can_be_light(pack, new):
            return
        complement_l = still_known(pack, complement_l, None if last is None else last.complement_l)
        if complement_l is None:
            return
        block = new.block.rows() if pack.short else new.block
        self.holds[pack.indices] = Held(new, _image(block), complement_l, age)


def refreshed(
    operator: Operator, kernel: Kernel, before: TrackedBlock, degree: int, start_RM: Rows
) -> tuple[TrackedBlock, Rows]:
    """Return the block of moved weights, and how far its top pair is off (l, 1).

    Args:
        operator: of the layers.
        kernel: moved weights.
        before: block of those before the step.
        degree: of the filter.
        start_RM: the moved weights' images of its right vectors.
    """
    block = refresh(operator, kernel, before.v_RN, degree, start_RM)
    if degree >= 2:
        return block, residual(operator, kernel, block)
    # After a small step: how far the vector moved out of the block bounds how far it still has to go.
    off_l1N = outside(block.v_RN[:, :1], before.v_RN)
    return block, root(squares(off_l1N)) * (block.s_R[:, -1:] / block.s_R[:, :1])


@dataclass(frozen=True, slots=True)
class _Group:
    """Packs that make a light step together: their layers behind one another, vectors filled up with zeros."""

    operator: Operator
    moved: Kernel
    direction: Kernel
    block: TrackedBlock  # of the weights before
    update_1N: Rows  # top right vector of the last update
    image_1M: Rows  # of the top right vector, by the weights before
    complement_l: Rows
    length: float | Rows
    kept: float | Rows
    places: tuple[slice, ...]

    @classmethod
    def of(
        cls, packs: Sequence[Pack], holds: Sequence[Held], steps: Sequence[tuple[Tensor, float]], strides: Strides
    ) -> _Group:
        if len(packs) == 1:
            (pack,), (hold,), short = packs, holds, packs[0].short
            old, moved, update_KN = pack.old, pack.moved, pack.update_KN
            assert old is not None
            assert moved is not None
            assert update_KN is not None
            length, kept = factor(strides.length(pack) * steps[0][1], short), factor(strides.kept(pack), short)
            update_1N = (rows(update_KN) if short else update_KN)[:, :1]
            block = old.block.rows() if short else old.block
            return cls(
                pack.operator, moved.kernel, steps[0][0], block, update_1N, hold.image_1M, hold.complement_l, length,
                kept, (slice(None),),
            )  # fmt: skip
        counts = tuple(len(pack.layers) for pack in packs)
        operator = join(tuple(pack.operator for pack in packs if pack.operator is not None), counts)
        blocks = [pack.old.block.rows() for pack in packs if pack.old is not None]
        u_RM = filled_blocks([block.u_RM for block in blocks], operator.outputs)
        v_RN = filled_blocks([block.v_RN for block in blocks], operator.inputs)
        s_R = filled_blocks([block.s_R[:, None] for block in blocks], v_RN.shape[1])[:, 0]
        updates = [rows(pack.update_KN)[:, :1] for pack in packs if pack.update_KN is not None]
        lengths = [strides.length(pack) * sign for pack, (_, sign) in zip(packs, steps, strict=True)]
        length, kept = (each(x, counts, u_RM.dtype) for x in (lengths, [strides.kept(pack) for pack in packs]))
        return cls(
            operator, tuple(pack.moved.kernel for pack in packs if pack.moved is not None),
            tuple(direction for direction, _ in steps),
            TrackedBlock(u_RM, s_R, v_RN, False), filled_blocks(updates, operator.inputs),
            filled_blocks([hold.image_1M for hold in holds], operator.outputs),
            np.concatenate([hold.complement_l for hold in holds]), length, kept, operator.places,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the step is, as the top pair and the last update's vector see it."""

    within_1R: Rows  # U v in the block
    about_1R: Rows  # W'u in the block, of the moved weights
    came_l: Rows  # u'W v of these
    first_l: Rows
    q_l: Rows
    size_l: Rows
    update_1N: Rows


def _seen(group: _Group) -> _Seen:
    block = group.block
    u_1M, v_1N, s_R = block.u_RM[:, :1], block.v_RN[:, :1], block.s_R
    image_2M = apply(group.operator, group.direction, joined([v_1N, group.update_1N]))
    coimage_2N = adjoint(group.operator, group.direction, joined([u_1M, unit(image_2M[:, 1:])]))
    image_1M, coimage_1N, grown_1N = image_2M[:, :1], coimage_2N[:, :1], coimage_2N[:, 1:]
    a_1R, b_1R = image_1M @ block.u_RM.mT, coimage_1N @ block.v_RN.mT
    leaving_l = squares(image_1M) - squares(a_1R) + squares(coimage_1N) - squares(b_1R)
    q_l = block_form(s_R, a_1R, b_1R)[:, 0] + group.complement_l * at_least(leaving_l[:, 0], 0.0) / s_R[:, 0]
    size_l1 = root(squares(grown_1N))
    about_1R = adjoint(group.operator, group.moved, u_1M) @ block.v_RN.mT
    right_1N = grown_1N / at_least(size_l1, TINY)[..., None]
    return _Seen(a_1R, about_1R, about_1R[:, 0, 0], a_1R[:, 0, 0], q_l, size_l1[:, 0], right_1N)


@dataclass(frozen=True, slots=True)
class _Found:
    """Where the top pairs have gone."""

    turn_1R: Rows  # within the block
    right_1N: Rows
    reached_1M: Rows  # image of ``right_1N`` by the moved weights
    off_l1: Rows
    change_l: Rows
    left_RM: Rows  # the block with the pair in it
    s_R: Rows
    right_RN: Rows


def _followed(group: _Group, seen: _Seen) -> _Found:
    """Follow the top pairs: first-order turn within the block as it was left, then a plain iteration."""
    block, operator, moved = group.block, group.operator, group.moved
    # What couples the pair to others of the block is the step, and what the stale block had left.
    within_1R = group.image_1M @ block.u_RM.mT
    turn_1R = _turn(block.s_R, (within_1R + seen.within_1R * group.length) * group.kept, seen.about_1R)
    right_1N = adjoint(operator, moved, block.u_RM[:, :1] + turn_1R @ block.u_RM[:, 1:])
    lower_l1 = squares(right_1N) / (1.0 + squares(turn_1R))
    right_1N = unit(right_1N)
    reached_1M = apply(operator, moved, right_1N)
    power_l1 = squares(reached_1M)
    # A Ritz value is off by half the square of its vector: so is its rise over half a power.
    off_l1, top_l1 = root(at_least(power_l1 / at_least(lower_l1, TINY) - 1.0, 0.0)), root(power_l1)
    change_l = log((top_l1 / block.s_R[:, :1])[..., None] / group.kept)[:, 0, 0]
    left_RM, right_RN = _beside(unit(reached_1M), block.u_RM), _beside(right_1N, block.v_RN)
    s_R = joined([top_l1, block.s_R[:, 1:]], -1)
    return _Found(turn_1R, right_1N, reached_1M, off_l1, change_l, left_RM, s_R, right_RN)


def _lightly(pack: Pack, found: _Found, place: slice) -> tuple[TrackedBlock, Rows, Rows, Rows]:
    """Return one pack's block with its top pair followed, how far that is off, its image, and the change of ln s_1."""
    old, operator = pack.old, pack.operator
    assert old is not None
    assert operator is not None
    rank = old.block.s_R.shape[1]
    u_RM, v_RN = found.left_RM[place, :rank, : operator.outputs], found.right_RN[place, :rank, : operator.inputs]
    block = TrackedBlock(u_RM, found.s_R[place, :rank], v_RN, old.block.complete)
    return block, found.off_l1[place], found.reached_1M[place, :, : operator.outputs], found.change_l[place]


def _whole(pack: Pack, strides: Strides) -> tuple[TrackedBlock, Rows, Rows, Rows]:
    """Return the same of one pack after an iteration of its whole block."""
    old, operator = pack.old, pack.operator
    assert old is not None
    pack.move(copied=True)
    assert pack.moved is not None
    before = old.block.rows() if pack.short else old.block
    block, off_l1 = refreshed(operator, pack.moved.kernel, before, strides.degree(pack), pack.moved.image_RM)
    ratio_l11 = (block.s_R[:, :1] / before.s_R[:, :1])[..., None] / factor(strides.kept(pack), pack.short)
    return block, off_l1, _image(block), log(ratio_l11)[:, 0, 0]


def _image(block: TrackedBlock) -> Rows:
    """Return what stands for ``W v`` of the top pair of a new block: only its part in the block is ever read."""
    return block.u_RM[:, :1] * block.s_R[:, :1, None]


def _can_be_light(pack: Pack, state: Refreshed) -> bool:
    """Return whether the pack's layers are of a kind, and in a place, where light steps are understood."""
    operator, kernel = pack.operator, state.kernel
    if isinstance(operator, ShardedOperator) or hasattr(operator, "top") or pack.scout_1N is not None:
        return False
    return kernel.device.type == "cpu" and kernel.dtype == torch.float32 and state.block.s_R.shape[1] > 1


def _turn(s_R: Rows, a_1R: Rows, b_1R: Rows) -> Rows:
    """Return how far the left vector turns to others of the block (l, 1, R - 1), to first order."""
    top_11, ratio_1R = s_R[:, None, :1], s_R[:, None, 1:] / s_R[:, None, :1]
    apart_1R = at_least((1.0 - ratio_1R) * (1.0 + ratio_1R), NEAR)
    return (a_1R[..., 1:] + ratio_1R * b_1R[..., 1:]) / (apart_1R * top_11)


def _beside(top_1K: Rows, block_RK: Rows) -> Rows:
    """Return a block's rows with another top one, the others without their part along it."""
    rest_RK = block_RK[:, 1:]
    return joined([top_1K, rest_RK - (rest_RK @ top_1K.mT) @ top_1K])
