"""The noise of a step's gradient, by the way that is right for the model at hand, and the checks of it.

How the parts combine::

    Capture --> batch_noise (each sample's share) --------> common_factor (do they add up to the gradient?)
    .grad --> applied_gradient --> view --> close_pair ---> Differences (what is used where samples are coupled,
                                                            cannot be told apart, or do not add up)
                                            both ---------> Spread (does the samples' spread equal the noise?)

Shapes: ``L`` layers in the probe's order; tables of a pack have its layers as rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lipadvisor.probe import optimizers
from lipadvisor.probe.agreement import CHECK_PAIRS
from lipadvisor.probe.capture import Capture
from lipadvisor.probe.carried import CarriedSteps
from lipadvisor.probe.coupling import batch_layers, coupled
from lipadvisor.probe.gradients import (
    GradientNotes,
    View,
    applied_gradient,
    given_gradients,
    note_gradients,
    view,
    view_each,
)
from lipadvisor.probe.judge import NoiseJudge
from lipadvisor.probe.kinds import Plain
from lipadvisor.probe.kinds.parametrized import ThroughParameters
from lipadvisor.probe.noise import LINEAR_SIGNS, Batch, NoiseImages, batch_noise, own_batch, projection, sample_count
from lipadvisor.probe.pack import Pack, Refreshed
from lipadvisor.probe.pair_sums import PairProjection
from lipadvisor.probe.pairs import OpenPair, close_pair, empty_rows
from lipadvisor.probe.record import noise_covariance, sample_sums
from lipadvisor.probe.rounds import GradMark
from lipadvisor.probe.sharded_noise import sharded_noise
from lipadvisor.probe.strides import Strides
from lipadvisor.probe.together import Came
from lipadvisor.spectra import Conv2dOperator, LinearOperator
from lipadvisor.spectra.compact import CompactKernel, Sketch
from lipadvisor.spectra.linear import has_bfloat16
from lipadvisor.spectra.sharded import ShardedOperator

__all__ = ["NoiseMeter"]

CHECK_EVERY = 8  # measurements between two comparisons, once there have been enough of them
STACKED = 65_536  # entries of a pack up to which its gradients are stacked, which then costs less than more calls
ALL_CHECKED = 8  # measurements at which every layer's gradient is looked at; then one pack's, as long as nothing is odd


class NoiseMeter:
    """Measures the noise at the steps that the probe chooses; state of one run."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        packs: Sequence[Pack],
        capture: Capture,
        generator: torch.Generator,
        independent_samples: bool | None,
        strides: Strides,
    ) -> None:
        """Look for layers that couple samples.

        Args:
            model: the whole of it.
            optimizer: of its parameters.
            packs: all measured layers.
            capture: of the same layers; the meter says what is to be recorded.
            generator: of the probe.
            independent_samples: None finds out; True and False say so.
            strides: the steps that the optimizer makes.
        """
        self.samples = 0
        self.noise_LL: Tensor | None = None
        self._optimizer, self._packs, self._capture, self._generator = optimizer, tuple(packs), capture, generator
        self._strides = strides
        self._batch_layers = batch_layers(model)
        layers = {i: layer for pack in packs for i, layer in zip(pack.indices, pack.layers, strict=True)}
        self.judge = NoiseJudge([layers[index] for index in sorted(layers)], optimizer, independent_samples)
        self._notes: GradientNotes | None = None
        self._pair: OpenPair | None = None
        self._closed: list[Tensor] | None = None
        self._measured = 0
        self._prepared: dict[int, tuple[Refreshed, Sketch | CompactKernel | PairProjection]] = {}
        self._signs: dict[int, Tensor] = {}  # of each backward pass of this step
        self._once: set[int] = set()  # layers whose gradient was that of one backward pass, at the last measurement
        self._written: set[int] = set()  # layers whose weights somebody changes between two steps: not reduced early

    @property
    def pending(self) -> bool:
        """Whether the step under way is the second of a pair."""
        return self._pair is not None

    def regroup(self, packs: Sequence[Pack]) -> None:
        """Go on with the same layers in other packs, none of which has been measured."""
        self._packs, self._pair, self._closed, self._prepared = tuple(packs), None, None, {}

    # --- around the optimizer's step ---------------------------------------------------------------------------------

    def look_around(self) -> bool:
        """Return whether samples are of any use in the step that begins: where they are coupled, nothing is kept."""
        self.judge.coupled = coupled(self._batch_layers)
        self.judge.looked = self.judge.wants_samples
        return self.judge.looked

    def prepare(self) -> None:
        """Have layers reduced while their gradients are there, where what is asked of them is known before.

        That is from the second measurement on. Adam's preconditioner contains the batch: matrices are reduced as soon
        as their own gradient is complete, where one backward pass is all that makes it.
        """
        self._prepared, self._signs = {}, {}
        name = optimizers.optimizer_name(self._optimizer)
        for pack in self._packs if self.judge.looked and name != "unknown" else ():
            state, plain = pack.new, isinstance(pack.layers[0].source, Plain) and not pack.layers[0].shares
            if state is None or not plain or not self._written.isdisjoint(pack.indices):
                continue
            matrices = pack.flat and isinstance(pack.operator, LinearOperator)
            maps = isinstance(pack.operator, Conv2dOperator) and not pack.flat and name == "sgd"
            if not (matrices or maps) or state.versions != pack.versions():
                continue
            for place, index in enumerate(pack.indices):
                by = self._matrix(pack, state, place, name) if matrices else self._maps(pack, state, place)
                if by is not None:
                    self._prepared[index] = state, by
        self._capture.reduce_by = {index: by for index, (_, by) in self._prepared.items()}

    @property
    def unprepared(self) -> bool:
        """Whether layers could be reduced if only their top pairs were known."""
        return optimizers.optimizer_name(self._optimizer) == "sgd" and any(pack.new is None for pack in self._packs)

    def _maps(self, pack: Pack, state: Refreshed, place: int) -> Sketch | CompactKernel | None:
        """Return what a convolution's samples are reduced by."""
        u_1M, v_1N = state.block.u_RM[place, :1], state.block.v_RN[place, :1]
        assert pack.operator is not None
        by = projection(pack.operator, u_1M, v_1N, self.judge.curved)
        return by if isinstance(by, Sketch) or not self.judge.curved else None

    def _matrix(self, pack: Pack, state: Refreshed, place: int, name: str) -> PairProjection | None:
        """Return what a matrix's samples are reduced by."""
        index, layer = pack.indices[place], pack.layers[place]
        if any(hasattr(use, "finish") for use in layer.uses) or (name != "sgd" and index not in self._once):
            return None
        rows, columns = layer.own_shape
        u_M, v_N = state.block.u_RM[place, 0, :rows], state.block.v_RN[place, 0, :columns]
        signs = self._round_signs if self.judge.curved and not pack.exact else None
        scale = None if name == "sgd" else partial(optimizers.coming_preconditioner, self._optimizer, layer)
        return PairProjection(u_M, v_N, signs, self.judge.curved, scale)

    def _round_signs(self, turn: int, samples: int) -> Tensor:
        """Return random signs (K, B) for the samples of a backward pass, the same for all layers."""
        if turn not in self._signs or self._signs[turn].shape[1] != samples:
            signs = torch.randint(0, 2, (LINEAR_SIGNS, samples), generator=self._generator)
            self._signs[turn] = signs * 2.0 - 1.0
        return self._signs[turn]

    def before_update(self, measured: bool) -> None:
        """Note what the gradients are, and whether a pair can still be closed.

        Args:
            measured: whether this step is.
        """
        exactly = self.judge.by_updates and not measured  # an update is told from the weights after the last step
        if self._pair is not None and not self._pair.holds(self._packs, exactly):
            self._pair = None
        if measured:
            self.judge.coupled = coupled(self._batch_layers)
        if measured or self._pair is not None:
            self._notes = note_gradients(self._optimizer, self._packs)
        if measured and self._notes is not None and optimizers.optimizer_name(self._optimizer) in ("adam", "adamw"):
            self._once = {
                index
                for pack in self._packs
                for index in pack.indices
                if pack.flat and not self._notes.scaled and self._capture.once(index)
            }
        if self._pair is not None and not measured and (self._pair.curved or self.judge.by_updates):
            for pack, state in zip(self._packs, self._pair.states, strict=True):
                if state is not None:
                    pack.recall(state)

    def follow(self) -> None:
        """Close the pair that the last measured step opened, after a step that is not measured itself."""
        pair, self._pair = self._pair, None
        if pair is None or self._notes is None:
            return
        self._closed = []
        for number, pack in enumerate(self._packs):
            state, first = pair.states[number], pair.views[number]
            if state is None or first is None:
                self._closed.append(empty_rows(pack))
                continue
            scale = None if self.judge.by_updates else optimizers.preconditioner(self._optimizer, pack)
            second = self._view(number, scale, state.kernel, [state], pair.curved)[0]
            self._closed.append(close_pair(pack, state, first, second)[0])
            pack.let_go(state)

    def sum_up(self) -> list[NoiseImages | None]:
        """Return what the samples' noise does to each pack, and let go of what the layers saw.

        Asked first of all once the step is made: the preconditioner is there, and nothing else has taken memory yet.
        """
        self.judge.rough = False
        batches = self._batches()
        self.judge.captured = batches is not None
        noises: list[NoiseImages | None] = []
        for pack in self._packs:
            if batches is None or pack.old is None:
                noises.append(None)
                continue
            scale = optimizers.preconditioner(self._optimizer, pack)
            self.judge.rough = self.judge.rough or (pack.flat and isinstance(scale, Tensor) and has_bfloat16(scale))
            signs_KB = self._signs_KB.to(pack.old.kernel, non_blocking=True) if self.judge.curved else None
            take = sharded_noise if isinstance(pack.operator, ShardedOperator) else batch_noise
            noises.append(take(pack, self._own(pack, batches), scale, signs_KB))
        self.noise_LL = None if batches is None else self._covariance(noises)
        return noises

    def measure(
        self, noises: Sequence[NoiseImages | None], came: Sequence[Came | None], carried: CarriedSteps
    ) -> list[Tensor]:
        """Return a table of each pack with the columns of ``record.NOISE``.

        Args:
            noises: of the same step, from :meth:`sum_up`.
            came: of the packs.
            carried: takes down what a solve has found of differences.
        """
        assert self._notes is not None
        by_pairs = self.judge.by_pairs or self.judge.gaps
        # What stands beside the sum can wait for the next comparison, once there is something to fill in with.
        waits = not self.judge.by_pairs and (not self.judge.gaps or self.judge.differences.enough)
        opens = not waits or self.judge.spread.pairs < CHECK_PAIRS or self._measured % CHECK_EVERY == 0
        pair, self._pair = self._pair, None
        thorough = opens or pair is not None or self.judge.factor != 1.0 or self._measured < ALL_CHECKED
        watched = min(range(len(self._packs)), key=lambda number: _entries(self._packs[number]))
        self._measured += 1
        closed = [] if self._closed is None else self._closed
        self._closed = None
        tables: list[Tensor] = []
        views: list[View | None] = []
        for number, pack in enumerate(self._packs):
            if pack.old is None or pack.new is None:
                nothing = empty_rows(pack)
                views.append(None)
                tables.append(nothing[:, :1].expand(-1, 5))
                continue
            rows = closed[number] if closed else empty_rows(pack)
            opened = None if pair is None else pair.states[number]
            stale = None if opened is pack.old else opened  # computed weights move by themselves
            seen: list[View] = []
            if thorough or number == watched:
                scale = optimizers.preconditioner(self._optimizer, pack)
                states = [pack.old, pack.new] if opens else [pack.old]
                if stale is not None:
                    states.append(stale)
                both_sides = (by_pairs and self.judge.curved) or (pair is not None and pair.curved)
                seen = self._view(number, scale, pack.old.kernel, states, both_sides)
            views.append(seen[1] if opens else None)
            if pair is not None and opened is not None:
                first = pair.views[number]
                assert first is not None
                one = came[number] if stale is None else None
                resolvent = None if one is None else one.resolvent
                rows, ratio_l = close_pair(pack, opened, first, seen[0 if stale is None else -1], resolvent)
                if one is not None and ratio_l is not None:
                    carried.note_noise(pack, ratio_l)
            gradient_l1 = seen[0].scalar_l[:, None] if seen else torch.full_like(rows[:, :1], float("nan"))
            scalars = () if (noise := noises[number]) is None else noise.scalars
            tables.append(torch.cat([sample_sums(scalars, gradient_l1[:, 0]), gradient_l1, rows], dim=1))
        if opens:
            self._pair = OpenPair(tuple(pack.new for pack in self._packs), tuple(views), by_pairs and self.judge.curved)
        return tables

    def _view(
        self,
        number: int,
        scale: Tensor | ThroughParameters | None,
        before: Tensor,
        states: Sequence[Refreshed],
        both_sides: bool,
    ) -> list[View]:
        """Return what fluctuates in the step from the weights ``before``, as ``states`` see it.

        It is the gradient ``P G``, or the update U where it is not known how a gradient reaches the weights.
        """
        assert self._notes is not None
        pack = self._packs[number]
        if self.judge.by_updates:
            return view(pack, self._strides.between(pack, before, pack.kernel()), states, both_sides)
        versions = [self._notes.versions[index] for index in pack.indices]
        if scale is None and isinstance(pack.operator, LinearOperator) and _entries(pack) > STACKED:
            grads = given_gradients(self._optimizer, pack, versions, self._notes.scaled)
            return view_each(pack, grads, states, both_sides)
        gradient = applied_gradient(self._optimizer, pack, versions, self._notes.scaled, scale)
        return view(pack, gradient, states, both_sides)

    def _batches(self) -> dict[int, Any] | None:
        """Return what each layer saw, which is recorded no longer; None where nothing was captured."""
        batches = {index: self._batch(index, pack) for pack in self._packs for index in pack.indices}
        sizes = {sample_count(batch) for batch in batches.values() if batch is not None}
        given = self._capture.samples
        self._capture.release()
        self._prepared = {}
        if not sizes:
            self.samples = given or self.samples
            return None
        flattened = given > 1 and all(size % given == 0 for size in sizes)  # by every layer: frames of videos
        self.samples = given if given in sizes or flattened else min(sizes)
        rounds = [self._signs[turn] for turn in sorted(self._signs)]
        known = rounds and sum(signs_KB.shape[1] for signs_KB in rounds) == self.samples
        if self.judge.curved:
            self._signs_KB = torch.cat(rounds, 1) if known else self._round_signs(-1, self.samples)
        self._signs = {}
        return batches

    def _own(self, pack: Pack, batches: dict[int, Any]) -> list[Batch]:
        """Take a pack's batches with the samples first."""
        still = self._capture.still
        return [
            own_batch(pack, place, batches.pop(index), self.samples, index in still)
            for place, index in enumerate(pack.indices)
        ]

    def _batch(self, index: int, pack: Pack) -> Any:
        """Return what a layer saw; None where it has been reduced for weights that are no longer those."""
        prepared = self._prepared.get(index)
        if prepared is None:
            return self._capture.batch(index)
        added = self._capture.added.get(index)
        whole = added is None or (added == GradMark.of(pack.layers[pack.indices.index(index)]) and index in self._once)
        batch = self._capture.batch(index) if prepared[0] is pack.old and whole else None
        if batch is None:
            self._written.add(index)
        return batch

    def _covariance(self, noises: Sequence[NoiseImages | None]) -> Tensor | None:
        scalars: list[Tensor | None] = [None] * sum(len(pack.layers) for pack in self._packs)
        for pack, noise in zip(self._packs, noises, strict=True):
            if noise is not None:
                for index, scalar_B in zip(pack.indices, noise.scalars, strict=True):
                    scalars[index] = scalar_B
        return noise_covariance(scalars, self.samples) if any(s is not None for s in scalars) else None

    # --- resuming ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors."""
        open_views = None
        if self._pair is not None and self._pair.holds(self._packs):
            open_views = [None if one is None else one.tensors() for one in self._pair.views]
        return {
            "judge": self.judge.state_dict(),
            "measured": self._measured,
            "samples": self.samples,
            "open": open_views,
            "closed": None if self._closed is None else [rows.clone() for rows in self._closed],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, with the packs' own state loaded."""
        self.judge.load_state_dict(state["judge"])
        self._measured, self.samples = int(state["measured"]), int(state["samples"])
        closed, opened = state["closed"], state["open"]
        self._closed = (
            None if closed is None else [rows.to(empty_rows(p)) for rows, p in zip(closed, self._packs, strict=True)]
        )
        self._pair = None
        if opened is not None and all(pack.new is not None for pack in self._packs):
            views = []
            for tensors, pack in zip(opened, self._packs, strict=True):
                assert pack.new is not None
                like = pack.new.kernel
                views.append(None if tensors is None else View.of(tensors, like))
            curved = all(one is None or one.coimage_1N is not None for one in views)
            self._pair = OpenPair(tuple(pack.new for pack in self._packs), tuple(views), curved)


def _entries(pack: Pack) -> int:
    return len(pack.layers) * math.prod(pack.shape)
