"""Light steps: between two renewals of a pack's block only its top pair is followed.

The pair turns within the block as it was left, by first-order perturbation with all that couples it there, and then
takes one plain iteration with the moved weights: seven applications to one vector each instead of some thirty.
``u' U v`` is exact, and s_1 a Ritz value. The update's size is that of its last top vector after one power. Carried
from the last renewal is the complement's part of q, as a ratio to the parts of the change that leave the block; the
other singular values stay what they were.

A pack is renewed at once where a light step would not do: long ways since the last one, pairs that turn far.

Shapes: ``l`` layers of a pack, ``R`` block, ``M`` outputs, ``N`` inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipadvisor.probe.pack import Pack, Refreshed
from lipadvisor.probe.response import relative_sizes
from lipadvisor.probe.strides import Strides
from lipadvisor.spectra import LayerOperator, TrackedBlock
from lipadvisor.spectra.curvature import block_form
from lipadvisor.spectra.rows import (
    TINY,
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

__all__ = ["Held", "LightSteps"]

WAY = 0.03  # relative steps since the last renewal, added up, from which a block is renewed
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


@dataclass(slots=True)
class LightSteps:
    """Says at which steps which packs are renewed; state of one run.

    Attributes:
        every: steps from one renewal of a block to the next, at most.
        holds: of each pack, by its layers.
    """

    every: int
    holds: dict[tuple[int, ...], Held] = field(default_factory=dict)

    def due(self, pack: Pack, strides: Strides) -> Held | None:
        """Return what a light step of the pack may go on from; None where its block is to be renewed."""
        hold = self.holds.get(pack.indices)
        if hold is None or hold.state is not pack.old or hold.age + 1 >= self.every:
            return None
        s_R = hold.state.block.s_R
        if not bool((s_R[:, 0] > s_R[:, 1] * (1.0 - AHEAD)).all()):  # overtaken
            return None
        return hold if pack.way + strides.relative(pack) < WAY else None

    def step(self, pack: Pack, hold: Held, strides: Strides) -> Tensor | None:
        """Make a light step; return its columns as :class:`~lipadvisor.probe.together.Came` has them.

        None where the pair turns so far that the block must be renewed: the weights have been copied, and that is all.
        """
        found = _light_step(pack, hold, strides)
        if found is None:
            return None
        pack.way += strides.relative(pack)
        self.holds[pack.indices] = found[1]
        return found[0]

    def renewed(self, pack: Pack, complement_l: Rows | None, number: int) -> None:
        """Take down what the steps after a renewal may go on from.

        Args:
            pack: with ``new`` set.
            complement_l: see :class:`Held`; None where that step was too long for it.
            number: of the pack; they begin at different ages, so that few blocks are renewed at once.
        """
        age, pack.way = 0 if pack.indices in self.holds else number % self.every, 0.0
        self.holds.pop(pack.indices, None)
        new, operator = pack.new, pack.operator
        if complement_l is None or new is None or operator is None or not _can_be_light(pack, new):
            return
        v_1N = new.block.v_RN[:, :1]
        image_1M = apply(operator, new.kernel, rows(v_1N) if pack.short else v_1N)
        self.holds[pack.indices] = Held(new, image_1M, complement_l, age)


def _can_be_light(pack: Pack, state: Refreshed) -> bool:
    """Return whether the pack's layers are of a kind, and in a place, where light steps are understood."""
    operator, kernel = pack.operator, state.kernel
    if isinstance(operator, ShardedOperator) or hasattr(operator, "top") or pack.scout_1N is not None:
        return False
    return kernel.device.type == "cpu" and kernel.dtype == torch.float32 and not state.block.complete


def _light_step(pack: Pack, hold: Held, strides: Strides) -> tuple[Tensor, Held] | None:
    """Bring a pack to the weights after a step; return its columns, and what the next may go on from.

    None where the pair turns so far that the block must be renewed: the weights have been copied, and that is all.

    Args:
        pack: with ``old`` set.
        hold: for it.
        strides: the step.
    """
    old, operator = pack.old, pack.operator
    assert old is not None
    assert operator is not None
    assert pack.update_KN is not None
    pack.copy()
    assert pack.moved is not None
    moved, direction = pack.moved.kernel, strides.direction(pack)
    block = old.block.rows() if pack.short else old.block
    length, kept = (
        rows(x) if pack.short and isinstance(x, Tensor) else x for x in (strides.length(pack), strides.kept(pack))
    )
    start_KN = rows(pack.update_KN) if pack.short else pack.update_KN
    u_1M, v_1N, s_R = block.u_RM[:, :1], block.v_RN[:, :1], block.s_R
    image_2M = apply(operator, direction, joined([v_1N, start_KN[:, :1]]))
    coimage_2N = adjoint(operator, direction, joined([u_1M, unit(image_2M[:, 1:])]))
    image_1M, coimage_1N, grown_1N = image_2M[:, :1], coimage_2N[:, :1], coimage_2N[:, 1:]
    # What couples the pair to others of the block is the step, and what the stale block had left.
    within_2R = joined([image_1M, hold.image_1M]) @ block.u_RM.mT
    about_2R = joined([coimage_1N, adjoint(operator, moved, u_1M)]) @ block.v_RN.mT
    a_1R, b_1R = within_2R[:, :1], about_2R[:, :1]
    turn_1R = _turn(s_R, (within_2R[:, 1:] + a_1R * length) * kept, about_2R[:, 1:])
    if not float(abs(turn_1R).max()) <= TURN:
        return None
    right_1N, reached_1M, off_l1 = _followed(operator, moved, block, turn_1R)
    top_l1 = root(squares(reached_1M))
    leaving_l = squares(image_1M) - squares(a_1R) + squares(coimage_1N) - squares(b_1R)
    q_l = block_form(s_R, a_1R, b_1R)[:, 0] + hold.complement_l * at_least(leaving_l[:, 0], 0.0) / s_R[:, 0]
    change_l = log((top_l1 / s_R[:, :1])[..., None] / kept)[:, 0, 0]
    left_RM, right_RN = _beside(unit(reached_1M), block.u_RM), _beside(right_1N, block.v_RN)
    pack.take(TrackedBlock(left_RM, joined([top_l1, s_R[:, 1:]], -1), right_RN, False), off_l1)
    sizes_l2 = relative_sizes(operator, row_lengths(direction), old.length_lr)
    pack.update_KN = tensor(joined([unit(grown_1N), start_KN[:, 1:]]))
    columns = (a_1R[:, 0, 0], q_l, change_l, root(squares(grown_1N))[:, 0])
    columns_l6 = torch.cat([tensor(joined([x[:, None] for x in columns], 1)), sizes_l2], 1)
    assert pack.new is not None
    return columns_l6, Held(pack.new, reached_1M, hold.complement_l, hold.age + 1)


def _turn(s_R: Rows, a_1R: Rows, b_1R: Rows) -> Rows:
    """Return how far the left vector turns to others of the block (l, 1, R - 1), to first order."""
    top_11, ratio_1R = s_R[:, None, :1], s_R[:, None, 1:] / s_R[:, None, :1]
    apart_1R = at_least((1.0 - ratio_1R) * (1.0 + ratio_1R), NEAR)
    return (a_1R[..., 1:] + ratio_1R * b_1R[..., 1:]) / (apart_1R * top_11)


def _followed(operator: LayerOperator, moved: Tensor, block: TrackedBlock, turn_1R: Rows) -> tuple[Rows, Rows, Rows]:
    """Return the right vector after a plain iteration, its image by the moved weights, and how far it is off (l, 1)."""
    right_1N = adjoint(operator, moved, block.u_RM[:, :1] + turn_1R @ block.u_RM[:, 1:])
    lower_l1 = squares(right_1N) / (1.0 + squares(turn_1R))
    right_1N = unit(right_1N)
    reached_1M = apply(operator, moved, right_1N)
    # A Ritz value is off by half the square of its vector: so is its rise over half a power.
    rise_l1 = squares(reached_1M) / at_least(lower_l1, TINY) - 1.0
    return right_1N, reached_1M, root(at_least(rise_l1, 0.0))


def _beside(top_1K: Rows, block_RK: Rows) -> Rows:
    """Return a block's rows with another top one, the others without their part along it."""
    rest_RK = block_RK[:, 1:]
    return joined([top_1K, rest_RK - (rest_RK @ top_1K.mT) @ top_1K])
