"""The noise of a step's gradient, by the way that is right for the model at hand, and the checks of it.

How the parts combine::

    Capture --> batch_noise (each sample's share) --------> common_factor (do they add up to the gradient?)
    .grad --> applied_gradient --> view --> close_pair ---> Differences (what is used where samples are coupled,
                                                            cannot be told apart, or do not add up)
                                            both ---------> Spread (does the samples' spread equal the noise?)

Shapes: ``L`` layers in the probe's order; tables of a pack have its layers as rows.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipadvisor.policies import Status
from lipadvisor.probe import optimizers
from lipadvisor.probe.agreement import CHECK_PAIRS, DISAGREE, Differences, Spread, common_factor
from lipadvisor.probe.capture import Capture
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
from lipadvisor.probe.kinds.parametrized import ThroughParameters
from lipadvisor.probe.noise import LINEAR_SIGNS, Batch, NoiseImages, batch_noise, own_batch, sample_count
from lipadvisor.probe.noise_report import NoiseReport
from lipadvisor.probe.pack import Pack, Refreshed
from lipadvisor.probe.pairs import OpenPair, close_pair, empty_rows
from lipadvisor.probe.record import Readings, noise_covariance
from lipadvisor.probe.strides import Strides
from lipadvisor.terms import Array

__all__ = ["NoiseMeter"]

CHECK_EVERY = 8  # measurements between two comparisons, once there have been enough of them
STACKED = 65_536  # entries of a pack up to which its gradients are stacked, which then costs less than more calls
ALL_CHECKED = 8  # measurements at which every layer's gradient is looked at; then one pack's, as long as nothing is odd
_log = logging.getLogger("lipadvisor")


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
        self.curved = True  # whether the noise's curvature is asked for, beside its covariance
        # How a gradient reaches the weights is not known: what fluctuates is the update itself.
        self._by_updates = optimizers.optimizer_name(optimizer) == "unknown"
        self._strides = strides
        self.noise_LL: Tensor | None = None
        self._optimizer, self._packs, self._capture, self._generator = optimizer, tuple(packs), capture, generator
        self._independent = independent_samples
        self._batch_layers = batch_layers(model)
        self._names = {i: layer.name for pack in packs for i, layer in zip(pack.indices, pack.layers, strict=True)}
        self._coupled: tuple[str, ...] = ()
        self._captured = False
        self._notes: GradientNotes | None = None
        self._pair: OpenPair | None = None
        self._closed: list[Tensor] | None = None
        self._opened_variance_L: Array | None = None
        self._differences, self._spread = Differences(), Spread()
        self._usable = True  # whether the samples of the last measured step could be used
        beside = {i: layer.composition == 0.0 for p in packs for i, layer in zip(p.indices, p.layers, strict=True)}
        self._beside_L = np.array([beside[index] for index in sorted(beside)], dtype=np.bool_)  # the network's sum
        self._gaps = False  # layers beside the sum had no samples: differences fill in for them alone
        self._method, self._factor, self._measured = "none", 1.0, 0
        self._unmatched = dict.fromkeys(self._names.values(), 0)
        self._said: set[str] = set()

    @property
    def pending(self) -> bool:
        """Whether the step under way is the second of a pair."""
        return self._pair is not None

    @property
    def wants_samples(self) -> bool:
        """Whether the next measured step is to record what the layers see."""
        return not (self._by_updates or (self._by_pairs and self._differences.enough))

    @property
    def report(self) -> NoiseReport:
        """How the noise was measured last, and what its checks said."""
        unmatched = tuple((name, count) for name, count in self._unmatched.items() if count)
        spread = self._spread
        return NoiseReport(
            self._method,
            self._coupled,
            self._factor,
            unmatched,
            self._differences.pairs,
            spread.ratio,
            spread.pairs,
            spread.disagreements,
        )

    @property
    def _by_pairs(self) -> bool:
        """Whether successive differences are what counts."""
        if self._by_updates:
            return True
        if self._independent is not None:
            return not self._independent
        return bool(self._coupled) or not self._usable

    # --- around the optimizer's step ---------------------------------------------------------------------------------

    def before_update(self, measured: bool) -> None:
        """Note what the gradients are, and whether a pair can still be closed.

        Args:
            measured: whether this step is.
        """
        if self._pair is not None and not self._pair.holds(self._packs):
            self._pair = None
        if measured:
            self._coupled = coupled(self._batch_layers)
        if measured or self._pair is not None:
            self._notes = note_gradients(self._optimizer, self._packs)

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
            scale = None if self._by_updates else optimizers.preconditioner(self._optimizer, pack)
            second = self._view(number, scale, state.kernel, [state], pair.curved)[0]
            self._closed.append(close_pair(pack, state, first, second))

    def measure(self) -> tuple[list[NoiseImages | None], list[Tensor]]:
        """Return what the noise does to each pack, and a table of each pack with the columns of ``record.NOISE``."""
        assert self._notes is not None
        own = self._own_batches()
        by_pairs = self._by_pairs or self._gaps
        opens = by_pairs or self._spread.pairs < CHECK_PAIRS or self._measured % CHECK_EVERY == 0
        pair, self._pair = self._pair, None
        thorough = opens or pair is not None or self._factor != 1.0 or self._measured < ALL_CHECKED
        watched = min(range(len(self._packs)), key=lambda number: _entries(self._packs[number]))
        self._measured += 1
        closed = [] if self._closed is None else self._closed
        self._closed = None
        noises: list[NoiseImages | None] = []
        tables: list[Tensor] = []
        views: list[View | None] = []
        for number, pack in enumerate(self._packs):
            if pack.old is None or pack.new is None:
                nothing = empty_rows(pack)
                noises.append(None)
                views.append(None)
                tables.append(nothing[:, :1].expand(-1, 5))
                continue
            scale = optimizers.preconditioner(self._optimizer, pack)
            rows = closed[number] if closed else empty_rows(pack)
            seen: list[View] = []
            if thorough or number == watched:
                states = [pack.old, pack.new] if opens else [pack.old]
                both_sides = (by_pairs and self.curved) or (pair is not None and pair.curved)
                seen = self._view(number, scale, pack.old.kernel, states, both_sides)
            views.append(seen[-1] if opens else None)
            if pair is not None and pair.states[number] is pack.old:
                first = pair.views[number]
                assert first is not None
                rows = close_pair(pack, pack.old, first, seen[0])
            noise = None
            if own is not None:
                signs_KB = self._signs_KB.to(pack.old.kernel, non_blocking=True) if self.curved else None
                noise = batch_noise(pack, own[number], scale, signs_KB)
            noises.append(noise)
            gradient_l1 = seen[0].scalar_l[:, None] if seen else torch.full_like(rows[:, :1], float("nan"))
            tables.append(torch.cat([_sums(noise, gradient_l1[:, 0]), gradient_l1, rows], dim=1))
        if opens:
            self._pair = OpenPair(tuple(pack.new for pack in self._packs), tuple(views), by_pairs and self.curved)
        self.noise_LL = None if own is None else self._covariance(noises)
        return noises, tables

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
        if self._by_updates:
            return view(pack, self._strides.between(pack, before, pack.kernel()), states, both_sides)
        start = sum(len(pack.layers) for pack in self._packs[:number])
        versions = self._notes.versions[start : start + len(pack.layers)]
        if scale is None and pack.flat and _entries(pack) > STACKED:
            grads = given_gradients(self._optimizer, pack, versions, self._notes.scaled)
            return view_each(pack, grads, states, both_sides)
        gradient = applied_gradient(self._optimizer, pack, versions, self._notes.scaled, scale)
        return view(pack, gradient, states, both_sides)

    def _own_batches(self) -> list[list[Batch]] | None:
        """Return each pack's batches with the samples first; None where nothing was captured."""
        batches = {index: self._capture.batch(index) for pack in self._packs for index in pack.indices}
        sizes = {sample_count(batch) for batch in batches.values() if batch is not None}
        self._captured = bool(sizes)
        if not sizes:
            self.samples = self._capture.samples or self.samples
            return None
        self.samples = self._capture.samples if self._capture.samples in sizes else min(sizes)
        signs = torch.randint(0, 2, (LINEAR_SIGNS, self.samples), generator=self._generator)
        self._signs_KB = signs * 2.0 - 1.0
        return [
            [own_batch(pack, place, batches[index], self.samples) for place, index in enumerate(pack.indices)]
            for pack in self._packs
        ]

    def _covariance(self, noises: Sequence[NoiseImages | None]) -> Tensor | None:
        scalars: list[Tensor | None] = [None] * len(self._names)
        for pack, noise in zip(self._packs, noises, strict=True):
            if noise is not None:
                for index, scalar_B in zip(pack.indices, noise.scalars, strict=True):
                    scalars[index] = scalar_B
        return noise_covariance(scalars, self.samples) if any(s is not None for s in scalars) else None

    # --- on the host -------------------------------------------------------------------------------------------------

    def settle(self, readings: Readings) -> tuple[Readings, tuple[Status | None, ...]]:
        """Return the readings with the noise that counts, and what each layer's status must say of it.

        Args:
            readings: of this step, with the noise from samples as captured.
        """
        columns = readings.columns
        gradient_L = columns["gradient"]
        self._compare(columns)
        noise_LL, curvature_L = readings.noise_LL, columns["noise_curvature"]
        agreed_L = np.zeros(len(gradient_L), dtype=np.bool_)
        if self._captured:
            self._factor, agreed_L = common_factor(columns["share"], columns["square"], gradient_L)
            noise_LL, curvature_L = noise_LL * self._factor**2, curvature_L * self._factor**2
        sound_L = np.isfinite(gradient_L)
        known_L = agreed_L & np.isfinite(np.diag(noise_LL)) & (np.isfinite(curvature_L) | (not self.curved))
        if sound_L.any():
            self._usable = bool((known_L | ~sound_L | self._beside_L).all())
            self._gaps = bool((sound_L & ~known_L & self._beside_L).any())
            if self._captured and not self._coupled:
                self._count(sound_L & ~agreed_L & np.isfinite(columns["share"]))
        self._opened_variance_L = np.diag(noise_LL).copy() if self._captured and self._usable else None
        doubts: list[Status | None] = [None] * len(gradient_L)
        self._method = "samples"
        if self._by_pairs:
            self._say_why()
            if self._differences.enough and self._differences.noise_LL is not None:
                assert self._differences.curvature_L is not None
                self._method = "updates" if self._by_updates else "differences"
                still_L = columns["gradient"] == 0.0  # a layer that this step did not use
                noise_LL = np.where(still_L[:, None] | still_L[None, :], 0.0, self._differences.noise_LL)
                curvature_L = np.where(still_L, 0.0, self._differences.curvature_L)
            else:
                doubts = [Status.TOO_FEW_POINTS] * len(doubts)
        elif not self._usable:
            doubts = [None if known else Status.UNCALIBRATED for known in known_L | ~sound_L]
        elif self._gaps:
            gap_L = sound_L & ~known_L
            filled = self._differences if self._differences.enough else Differences()
            noise_LL, curvature_L = noise_LL.copy(), curvature_L.copy()
            across_LL = gap_L[:, None] | gap_L[None, :]
            noise_LL[across_LL] = np.nan if filled.noise_LL is None else filled.noise_LL[across_LL]
            curvature_L[gap_L] = np.nan if filled.curvature_L is None else filled.curvature_L[gap_L]
            missing_L = gap_L & ~np.isfinite(np.diag(noise_LL))
            doubts = [Status.NOT_MEASURED if missing else None for missing in missing_L]
        if not self.curved:
            curvature_L = np.full_like(curvature_L, np.nan)
        return replace(readings, columns=columns | {"noise_curvature": curvature_L}, noise_LL=noise_LL), tuple(doubts)

    def _compare(self, columns: Mapping[str, Array]) -> None:
        half_L = columns["pair"]
        form_L = columns["pair_curvature"] if self.curved else np.where(np.isfinite(half_L), 0.0, np.nan)
        self._differences.add(half_L, form_L, self.curved)
        if self._opened_variance_L is None or self._by_pairs:
            return
        self._spread.add(half_L, self._opened_variance_L)
        if self._spread.disagrees:
            self._say(
                "spread",
                logging.WARNING,
                "the noise from successive steps is %.2g times that from the samples (over %d pairs of steps, allowed "
                "is a factor of %g): does the loss or a layer couple the samples? independent_samples=False measures "
                "from successive steps alone",
                self._spread.ratio,
                self._spread.pairs,
                DISAGREE,
            )

    def _count(self, off_L: Any) -> None:
        names = [self._names[int(index)] for index in np.flatnonzero(off_L)]
        for name in names:
            self._unmatched[name] += 1
        if names:
            self._say(
                "unmatched",
                logging.WARNING,
                "the captured samples do not add up to the gradient of %s (and %d more): a weight used outside its "
                "layer, a penalty in the loss, or a gradient that was written to",
                names[0],
                len(names) - 1,
            )

    def _say_why(self) -> None:
        if self._by_updates:
            text = "how %s uses a gradient is not known: noise is measured from the updates of successive steps"
            self._say("updates", logging.INFO, text, type(self._optimizer).__name__)
        elif self._independent is False:
            return
        elif self._coupled:
            text = "%s couples the samples of a batch (%d such layers): noise is measured from successive steps"
            self._say("coupled", logging.INFO, text, self._coupled[0], len(self._coupled))
        elif not self._captured:
            text = "no sample could be seen at the layers (a compiled model?): noise is measured from successive steps"
            self._say("captured", logging.INFO, text)

    def _say(self, topic: str, level: int, text: str, *values: Any) -> None:
        if topic not in self._said:
            self._said.add(topic)
            _log.log(level, text + " (said once)", *values)

    # --- resuming ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors."""
        open_views = None
        if self._pair is not None and self._pair.holds(self._packs):
            open_views = [None if one is None else one.tensors() for one in self._pair.views]
        differences, variance_L = self._differences, self._opened_variance_L
        return {
            "pairs": differences.pairs,
            "noise": None if differences.noise_LL is None else differences.noise_LL.tolist(),
            "curvature": None if differences.curvature_L is None else differences.curvature_L.tolist(),
            "spread": self._spread.state_dict(),
            "usable": self._usable,
            "gaps": self._gaps,
            "coupled": list(self._coupled),
            "measured": self._measured,
            "samples": self.samples,
            "unmatched": dict(self._unmatched),
            "variance": None if variance_L is None else variance_L.tolist(),
            "open": open_views,
            "closed": None if self._closed is None else [rows.clone() for rows in self._closed],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, with the packs' own state loaded."""
        noise, curvature, variance = state["noise"], state["curvature"], state["variance"]
        self._differences = Differences(
            int(state["pairs"]),
            None if noise is None else np.array(noise, dtype=np.float64),
            None if curvature is None else np.array(curvature, dtype=np.float64),
        )
        self._spread.load_state_dict(state["spread"])
        self._gaps = bool(state.get("gaps", False))
        self._usable, self._coupled = bool(state["usable"]), tuple(state["coupled"])
        self._measured, self.samples = int(state["measured"]), int(state["samples"])
        self._unmatched = {name: int(count) for name, count in state["unmatched"].items()}
        self._opened_variance_L = None if variance is None else np.array(variance, dtype=np.float64)
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


def _sums(noise: NoiseImages | None, like_l: Tensor) -> Tensor:
    """Return, of each layer's samples, the sum of their shares and of its squares (l, 2); nan without samples."""
    if noise is None:
        return torch.full((len(like_l), 2), float("nan"), dtype=like_l.dtype, device=like_l.device)
    if len({len(scalar_B) for scalar_B in noise.scalars}) == 1:
        shares_lB = torch.stack(list(noise.scalars)) / noise.scalars[0].shape[0]
        return torch.stack([shares_lB.sum(1), shares_lB.square().sum(1)], dim=1).to(like_l)
    rows = []
    for scalar_B in noise.scalars:
        share_B = scalar_B / scalar_B.shape[0]
        rows.append(torch.stack([share_B.sum(), share_B.square().sum()]))
    return torch.stack(rows).to(like_l)
