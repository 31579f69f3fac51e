"""Layers of one geometry, tracked together: their weights, warm-started blocks, and what is known of the last step.

Small operations cost what their dispatch costs, so that matrices of equal or similar shape are stacked: a small one is
padded with zeros, which adds singular values of zero and changes nothing else. So are convolutions of one geometry on
maps of one size; where the sizes turn out to differ, the pack is parted.

Shapes: ``l`` layers of the pack, ``R`` block, ``M`` outputs, ``N`` inputs of the (padded) operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipadvisor.probe.bound import bound_row
from lipadvisor.probe.kinds import Plain
from lipadvisor.probe.kinds.kind import wide
from lipadvisor.probe.layers import TrackedLayer
from lipadvisor.probe.states import Marks, Moved, Refreshed
from lipadvisor.spectra import (
    CgResolvent,
    FlatResolvent,
    GramResolvent,
    LayerOperator,
    LinearOperator,
    Resolvent,
    TrackedBlock,
    cold_start,
    refresh,
    residual,
    start_vectors,
)
from lipadvisor.spectra.before import Before, BeforeOperator
from lipadvisor.spectra.conv2d import roughly
from lipadvisor.spectra.rows import FEW, Rows, apply, joined, quiet, row_lengths, rows, squares, tensor
from lipadvisor.spectra.scout import looked_around, scout_vector, wants_scout
from lipadvisor.spectra.sharded import ShardedGram, ShardedOperator

__all__ = ["EXACT_SIDE", "LARGE", "Pack", "Refreshed"]

EXACT_SIDE = 128  # matrices up to this smaller side are factorised: every sample's curvature is taken, exactly
CG_ITERATIONS = 2  # in float32: predictions integrated over 300 steps are as good as with three
EXACT_CG_ITERATIONS = 3  # in float64
RANK = 8
CONV_RANK = 6  # where each vector costs a convolution
UPDATE_RANK = 3  # vectors that follow the top of the update
# Entries of a matrix from which it is looked at where it is, and not copied into a stack: on a processor its products
# with a few vectors cost what reading it costs. No copy is made where the optimizer's state tells the step.
LARGE = 262_144


@dataclass(slots=True)
class Pack:
    """Mutable state of the layers of one geometry.

    Attributes:
        indices: of the layers, in the probe's order.
        layers: themselves.
        shape: of one (padded) kernel.
        generator: for start vectors.
        operator: None until the size of a convolution's input is known.
        start_RN: right vectors of the last sound refresh, (l, R, N).
        update_KN: right vectors of the last update, (l, K, N).
        scout_1N: a vector with a part in every group of a convolution in groups, (l, 1, N); None for others.
        old: weights before the step.
        new: weights after it.
        moved: the same before their block is found, from :meth:`move` to :meth:`take`.
        way: relative steps, added up, that the block but for its top pair has not followed.
        seen: what :meth:`versions` returns, as long as the weights cannot be written to.
        known: the optimizer's state will tell the step that is under way: nothing is copied before it.
        before: weights before the step, by those after it, where ``known``.
    """

    indices: tuple[int, ...]
    layers: tuple[TrackedLayer, ...]
    shape: tuple[int, ...]
    generator: torch.Generator
    operator: LayerOperator | None = None
    start_RN: Tensor | None = None
    update_KN: Tensor | None = None
    scout_1N: Tensor | None = None
    old: Refreshed | None = None
    new: Refreshed | None = None
    moved: Moved | None = None
    way: float = 0.0
    seen: Marks | None = None
    known: bool = False
    before: Before | None = None
    _slots: list[tuple[slice, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Note where in the padded stack each weight lies."""
        for layer in self.layers:
            self._slots.append(tuple(slice(0, side) for side in layer.own_shape))

    @property
    def exact(self) -> bool:
        """Whether the complement is factorised and every sample's curvature is taken."""
        operator = self.operator
        if operator is None or not self.layers[0].form.matrix:
            return False
        return min(operator.inputs, operator.outputs) <= EXACT_SIDE

    @property
    def flat(self) -> bool:
        """Whether its layers are matrices whose samples' gradients are sums of few outer products."""
        return self.layers[0].flat

    @property
    def short(self) -> bool:
        """Whether what is done with the block's vectors costs what its calls cost: they are then taken as arrays."""
        start_RN, operator = self.start_RN, self.operator
        if start_RN is None or operator is None or isinstance(operator, ShardedOperator):
            return False
        return start_RN.device.type == "cpu" and start_RN.shape[1] * max(operator.inputs, operator.outputs) <= FEW

    @property
    def alone(self) -> bool:
        """Whether it is of one weight that is looked at where it is."""
        layer = self.layers[0]
        plain = isinstance(layer.source, Plain) and not layer.shares
        return len(self.layers) == 1 and plain and layer.own_shape == self.shape

    def kernel(self) -> Tensor:
        """Return the present weights (l, *shape) in float32 or better: a copy, or of one weight a view where it can."""
        values = [layer.value() for layer in self.layers]
        return wide(values[0])[None] if self.alone else self._stack(values)

    def gather(self, tensors: Sequence[Tensor], fill: float = 0.0) -> Tensor:
        """Return tensors of the parameters' shapes as one (l, *shape) of the kernels', float32 or better."""
        return self._stack([layer.view(t) for layer, t in zip(self.layers, tensors, strict=True)], fill)

    def _stack(self, tensors: Sequence[Tensor], fill: float = 0.0) -> Tensor:
        first = tensors[0]
        dtype = first.dtype if first.dtype in (torch.float32, torch.float64) else torch.float32
        if all(tensor.shape == self.shape for tensor in tensors):
            return torch.stack(list(tensors)).to(dtype)
        stack = first.new_full((len(tensors), *self.shape), fill, dtype=dtype)
        torch._foreach_copy_([stack[i][slot] for i, slot in enumerate(self._slots)], list(tensors))
        return stack

    def put(self, stack: Tensor, place: int, tensor: Tensor) -> None:
        """Write a tensor of one parameter's shape into its layer's place of a stack."""
        stack[place][self._slots[place]] = self.layers[place].view(tensor).to(stack)

    def look(self) -> None:
        """Find out what tells whether the weights have been written to, until they may be."""
        self.seen = None
        self.seen = self.versions()

    def versions(self) -> Marks:
        """Return what tells whether the weights have been written to."""
        if self.seen is not None:
            return self.seen
        found = [version for layer in self.layers for version in layer.source.versions()]
        sums = [version for version in found if isinstance(version, Tensor)]
        read = iter(torch.stack(sums).tolist() if sums else ())  # all at once
        return tuple(next(read) if isinstance(version, Tensor) else version for version in found)

    def spectrum(self, state: Refreshed | None) -> Tensor:
        """Return the spectrum of the layers' weights (l, 5) at ``state``; None: a bound, the operator is not known."""
        return torch.cat([bound_row(layer) for layer in self.layers]) if state is None else state.row_lC

    def settle(self, input_shape: tuple[int, ...] | None) -> bool:
        """Fix the operator and cold-start the block, once it can be; return whether the pack can be measured."""
        if self.operator is None:
            self.operator = self.make_operator(input_shape)
            if self.operator is None:
                return False
        if self.start_RN is None:
            kernel = self.kernel()
            rank = RANK if self.layers[0].form.matrix else CONV_RANK
            starts = [start_vectors(self.operator, rank, kernel, self.generator) for _ in self.layers]
            start_RN = torch.stack(starts)
            if isinstance(self.operator, ShardedOperator):
                (start_RN,) = self.operator.same(start_RN)
            block = cold_start(self.operator, kernel, start_RN)
            if wants_scout(self.operator, start_RN.shape[1]):
                self.scout_1N = scout_vector(self.operator, kernel, start_RN[:, :1])
            off_l1 = residual(self.operator, kernel, block)
            block, off_l1 = self._scouted(kernel, block, off_l1)
            self.start_RN = block.v_RN
            if kernel.dtype == torch.float32:  # float64 asks for one more
                self.new = self._state(kernel, block, off_l1, self.versions())
            self.update_KN = start_RN[:, :UPDATE_RANK].clone()
        return True

    def restart(self) -> None:
        """Forget the operator and everything that was tracked: the next :meth:`settle` begins anew."""
        self.operator = self.start_RN = self.update_KN = self.scout_1N = self.old = self.new = self.moved = None

    def parted(self, input_shapes: Mapping[int, tuple[int, ...]]) -> tuple[Pack, ...]:
        """Return the pack, or one for each size of maps that its layers see.

        Args:
            input_shapes: of each layer's batch, as far as they are known.
        """
        if self.operator is not None or len(self.layers) == 1:
            return (self,)
        together: dict[tuple[int, ...], list[int]] = {}
        for place, index in enumerate(self.indices):
            sides = len(self.shape) - 2
            together.setdefault(input_shapes.get(index, ())[-sides:] if sides else (), []).append(place)
        return tuple(
            Pack(
                tuple(self.indices[place] for place in places),
                tuple(self.layers[place] for place in places),
                self.shape,
                self.generator,
            )
            for places in together.values()
        )

    def make_operator(self, input_shape: tuple[int, ...] | None) -> LayerOperator | None:
        """Return the pack's operator; None for a convolution whose input size is not known."""
        if self.flat and not self.layers[0].shares:
            return LinearOperator(*self.shape)
        return self.layers[0].operator(input_shape)

    def begin(self, degree: int, early: bool = False) -> None:
        """Set ``old`` to the present weights; the last step's refresh is taken over if they have not been touched.

        ``early``: for what is done with the block alone; no copy of the weights is made yet.
        """
        if self.new is None or self.new.versions != self.versions():
            assert self.start_RN is not None
            self.new = self._refresh(self.start_RN, degree)
        if self.known or early:
            self.let_go(self.new)
        else:
            self.recall(self.new)
        self.old, self.before = self.new, None

    def recall(self, state: Refreshed) -> None:
        """Copy the weights of ``state``, which are those of now, where there is no copy of them."""
        if not state.kernel.numel() or self._is_parameter(state.kernel):
            kernel = self.kernel()
            state.kernel = kernel.clone() if self._is_parameter(kernel) else kernel

    def _is_parameter(self, kernel: Tensor) -> bool:
        """Return whether ``kernel`` is no copy."""
        if not self.alone:
            return False
        return kernel.untyped_storage().data_ptr() == self.layers[0].weight.untyped_storage().data_ptr()

    def let_go(self, state: Refreshed) -> None:
        """Drop the copy of the weights of ``state``: they themselves are there, unless a pass computes them anew."""
        if all(isinstance(layer.source, Plain) for layer in self.layers):
            state.kernel = state.kernel.new_empty(0)

    def weights_before(self) -> Tensor | Before:
        """Return the weights before the step."""
        assert self.old is not None
        return self.old.kernel if self.before is None else self.before

    def move(self, copied: bool = False) -> None:
        """Set ``moved`` to the present weights; ``copied``: :meth:`copy` has just done its part."""
        assert self.old is not None
        assert self.operator is not None
        if not copied:
            self.copy()
        assert self.moved is not None
        v_RN = self.old.block.v_RN
        self.moved.image_RM = apply(self.operator, self.moved.kernel, rows(v_RN) if self.short else v_RN)

    def copy(self) -> None:
        """Set ``moved`` to the present weights, without images of the block."""
        self.moved = Moved(self.kernel(), None, self.versions())

    def take(self, block: TrackedBlock, residual_l1: Rows) -> None:
        """Set ``new`` to the moved weights with their block."""
        assert self.moved is not None
        moved = self.moved
        block, off_l1 = self._scouted(moved.kernel, self._agreed(block.tensors()), tensor(residual_l1))
        self.new, self.moved = self._state(moved.kernel, block, off_l1, moved.versions), None

    def keep(self, sound: Sequence[bool]) -> None:
        """Go on from ``new`` where it is sound; the layers where it is not keep their last sound vectors.

        Args:
            sound: whether the values of each layer after the step are finite.
        """
        self.old = self.before = None
        if self.new is None or self.start_RN is None:
            return
        self.let_go(self.new)
        if all(sound):
            self.start_RN = self.new.block.v_RN
            return
        mask_l11 = torch.tensor(list(sound)).to(self.start_RN.device).reshape(-1, 1, 1)
        self.start_RN = torch.where(mask_l11, self.new.block.v_RN, self.start_RN)
        self.new = None

    def resolvent(self, kernel: Tensor | Before, block: TrackedBlock, often: bool = True) -> Resolvent:
        """Return the resolvent of the block's complement for changes as the block is.

        Args:
            kernel: weights.
            block: theirs.
            often: whether many changes are to be asked, of every sample; a factor then costs less than iterations.
        """
        assert self.operator is not None
        if block.complete:
            return FlatResolvent(block.s_R[..., 0])
        iterations = self.iterations(often)
        if isinstance(kernel, Before):
            return CgResolvent(BeforeOperator(self.operator), kernel, block, iterations or EXACT_CG_ITERATIONS)
        if iterations is not None:
            return CgResolvent(roughly(self.operator, kernel), kernel, block, iterations)
        if isinstance(self.operator, ShardedOperator):
            return ShardedGram.build(self.operator, kernel, block)
        return GramResolvent.build(kernel, block)

    def iterations(self, often: bool = True) -> int | None:
        """Return the iterations that stand for a factorisation; None where it is made."""
        operator, start_RN = self.operator, self.start_RN
        assert operator is not None
        assert start_RN is not None
        exactly = start_RN.dtype == torch.float64  # exactness is what is asked for
        if not self.exact:
            return EXACT_CG_ITERATIONS if exactly else CG_ITERATIONS
        small = operator.inputs * operator.outputs <= FEW
        return None if often or exactly or small or isinstance(operator, ShardedOperator) else EXACT_CG_ITERATIONS

    def standing(self) -> list[Tensor] | None:
        """Return the refresh that the next step may start from, as plain tensors; None if there is none."""
        if self.new is None or self.new.versions != self.versions():
            return None
        block = self.new.block
        return [tensor.clone() for tensor in (block.u_RM, block.s_R, block.v_RN, self.new.row_lC)]

    def load(
        self,
        input_shape: tuple[int, ...] | None,
        start_RN: Tensor | None,
        update_KN: Tensor | None,
        standing: Sequence[Tensor] | None,
        scout_1N: Tensor | None = None,
    ) -> None:
        """Go on from saved vectors and from what :meth:`standing` gave, for the weights as they are now."""
        self.operator, like = self.make_operator(input_shape), self.kernel()
        self.start_RN = None if start_RN is None else start_RN.to(like, copy=True)
        self.update_KN = None if update_KN is None else update_KN.to(like, copy=True)
        self.scout_1N = None if scout_1N is None else scout_1N.to(like, copy=True)
        if scout_1N is None and start_RN is not None and (operator := self.operator) is not None:  # of earlier versions
            first_1N = torch.ones_like(start_RN[:, :1]).to(like)
            self.scout_1N = scout_vector(operator, like, first_1N) if wants_scout(operator, start_RN.shape[1]) else None
        self._stand(standing)

    def _stand(self, tensors: Sequence[Tensor] | None) -> None:
        self.old = self.new = None
        if tensors is None or self.operator is None:
            return
        kernel = self.kernel()
        u_RM, s_R, v_RN, row_lC = (tensor.to(kernel, copy=True) for tensor in tensors)
        complete = s_R.shape[-1] == min(self.operator.inputs, self.operator.outputs)
        self.new = self._state(kernel, TrackedBlock(u_RM, s_R, v_RN, complete), row_lC[:, 4:], self.versions())

    def _refresh(self, start_RN: Tensor, degree: int) -> Refreshed:
        assert self.operator is not None
        kernel, self.way = self.kernel(), 0.0
        block = refresh(self.operator, kernel, start_RN, degree)
        off_l1 = residual(self.operator, kernel, block)
        block, off_l1 = self._scouted(kernel, self._agreed(block), off_l1)
        return self._state(kernel, block, off_l1, self.versions())

    def _scouted(self, kernel: Tensor, block: TrackedBlock, off_l1: Tensor) -> tuple[TrackedBlock, Tensor]:
        """Return a block and its residual with what has come up in groups that it knows nothing of."""
        if self.scout_1N is None or self.operator is None:
            return block, off_l1
        block, off_l1, self.scout_1N = looked_around(self.operator, kernel, block, off_l1, self.scout_1N)
        return block, off_l1

    def _agreed(self, block: TrackedBlock) -> TrackedBlock:
        """Return a block that is the same on all processes that share the weights: rounding may differ."""
        if not isinstance(self.operator, ShardedOperator):
            return block
        assert self.update_KN is not None
        u_RM, s_R, v_RN, self.update_KN = self.operator.same(block.u_RM, block.s_R, block.v_RN, self.update_KN)
        return TrackedBlock(u_RM, s_R, v_RN, block.complete)

    def _state(self, kernel: Tensor, block: TrackedBlock, residual_l1: Tensor, versions: Marks) -> Refreshed:
        """Return weights with their block, and the row of numbers that is read of them."""
        length_lr, on_host = row_lengths(kernel), kernel.device.type == "cpu"
        s_lR, own_lr, off_l1 = (rows(x) if on_host else x for x in (block.s_R, length_lr, residual_l1))
        with quiet():
            squares_l1 = squares(own_lr)[:, None]
            if isinstance(self.operator, ShardedOperator):
                squares_l1 = squares_l1 * self.operator.shard.processes
            second_l1 = s_lR[:, 1:2] if s_lR.shape[1] > 1 else squares_l1 * 0.0
        row_lC = tensor(joined([s_lR[:, :1], second_l1, s_lR[:, -1:], squares_l1, off_l1], 1))
        return Refreshed(kernel, block, row_lC, length_lr, versions)
