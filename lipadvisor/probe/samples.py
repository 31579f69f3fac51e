"""The gradients of a batch's samples at one weight, none of them formed: asked for by projections and weighted sums.

For weights whose samples are no short sums of outer products: convolutions, tables, gains, and weights that act in
several places. What a sample did in several calls is added up; accumulated batches follow one another.

Shapes: ``B`` samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from lipadvisor.probe.pair_sums import PairProjection, PairSums
from lipadvisor.spectra.compact import CompactKernel, Sketch

__all__ = ["Call", "NoSamples", "Projected", "SampleGradients", "Seen", "SeenSamples"]


class SampleGradients(Protocol):
    """Per-sample gradients ``x_i`` of one weight's kernel, as shares of the batch's gradient."""

    @property
    def count(self) -> int:
        """Number of samples B."""
        ...

    def scalars(self, jacobian: Tensor | CompactKernel) -> Tensor:
        """Return ``<x_i, jacobian>`` (B,)."""
        ...

    def weighted(self, weight_B: Tensor) -> Tensor:
        """Return ``sum_i weight_i x_i``, of the kernel's shape."""
        ...


@dataclass(frozen=True, slots=True)
class Projected:
    """A call reduced to what is asked of it while its gradient was there: stands for the use, and nothing is kept.

    Attributes:
        by: what it was reduced by.
        scalars_B: ``<x_i, J>``.
        left_BOE: see ``Sketch.samples``; None where only the scalars are asked for.
        right_BCE: likewise.
    """

    by: Sketch | CompactKernel
    scalars_B: Tensor
    left_BOE: Tensor | None = None
    right_BCE: Tensor | None = None

    @classmethod
    def of(cls, by: Sketch | CompactKernel, use: Any, kept: Any, grad: Tensor) -> Projected:
        """Reduce a call of a convolution."""
        if isinstance(by, Sketch):
            return cls(by, *use.sketched(by, kept, grad))
        return cls(by, use.scalars(by, kept, grad))

    def count(self, kept: Any, grad: Any) -> int:
        """Return the number of samples."""
        return len(self.scalars_B)

    def scalars(self, jacobian: Any, kept: Any, grad: Any) -> Tensor:
        """Return ``<x_i, J>`` (B,)."""
        return self.scalars_B

    def sketched(self, sketch: Sketch, kept: Any, grad: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the sketch made of the samples."""
        assert self.left_BOE is not None
        assert self.right_BCE is not None
        return self.scalars_B, self.left_BOE, self.right_BCE


@dataclass(slots=True)
class Call:
    """One call of a layer: its input, later the gradient at its output, and which backward pass it belongs to."""

    use: Any  # a Use
    kept: Any  # of the input, as the use reads it
    round: int
    again: bool  # made during a backward pass, by activation checkpointing
    grad_B: Tensor | None = None
    by: Sketch | CompactKernel | PairProjection | None = None  # what the call is reduced by as soon as that can be
    projected: Projected | PairSums | None = None
    lost: bool = False  # another gradient came after it had been reduced


@dataclass(frozen=True, slots=True)
class Seen:
    """One call: the module's use, what was kept of the input, and the gradient at the output."""

    use: Any  # a Use, or what a call of one was reduced to
    kept: Any
    grad: Any

    @property
    def count(self) -> int:
        """Number of samples."""
        return int(self.use.count(self.kept, self.grad))


@dataclass(frozen=True, slots=True)
class SeenSamples:
    """Samples as they were seen: the calls of each backward pass, which share their samples.

    Attributes:
        rounds: backward passes.
        share: rows of a call that make up one sample, where a layer saw places flattened into its batch.
    """

    rounds: tuple[tuple[Seen, ...], ...]
    share: int = 1

    @property
    def count(self) -> int:
        """Number of samples B."""
        return sum(calls[0].count for calls in self.rounds) // self.share

    def scalars(self, jacobian: Tensor | CompactKernel) -> Tensor:
        """Return ``<x_i, jacobian>`` (B,)."""
        parts = []
        for calls in self.rounds:
            one = [call.use.scalars(jacobian, call.kept, call.grad) for call in calls]
            parts.append(one[0] if len(one) == 1 else torch.stack(one).sum(0))
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole if self.share == 1 else whole.reshape(-1, self.share).sum(1)

    @property
    def projected(self) -> Sketch | CompactKernel | None:
        """What all calls have been reduced by; None if they have not."""
        uses = [call.use for calls in self.rounds for call in calls]
        return uses[0].by if all(isinstance(use, Projected) for use in uses) else None

    def sketched(self, sketch: Sketch) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``<x_i, J>`` (B,) and the samples' gradients (B, O, E), (B, C, E): see ``Sketch.samples``."""
        rounds = []
        for calls in self.rounds:
            one = [call.use.sketched(sketch, call.kept, call.grad) for call in calls]
            rounds.append([sum(parts[1:], parts[0]) for parts in zip(*one, strict=True)])
        scalars_B, left_BOE, right_BCE = (
            parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*rounds, strict=True)
        )
        if self.share == 1:
            return scalars_B, left_BOE, right_BCE
        left_BOE, right_BCE = (x.unflatten(0, (-1, self.share)).sum(1) for x in (left_BOE, right_BCE))
        return scalars_B.reshape(-1, self.share).sum(1), left_BOE, right_BCE

    def window(self, start: int, count: int) -> SeenSamples | None:
        """Return ``count`` samples from ``start``; None where they cannot be told apart from outside."""
        if len(self.rounds) != 1 or self.share != 1:
            return None
        calls = self.rounds[0]
        if not all(isinstance(call.kept, Tensor) and len(call.kept) == len(call.grad) == self.count for call in calls):
            return None
        rows = slice(start, start + count)
        return replace(
            self, rounds=(tuple(replace(call, kept=call.kept[rows], grad=call.grad[rows]) for call in calls),)
        )

    def weighted(self, weight_B: Tensor) -> Tensor:
        """Return ``sum_i weight_i x_i``, of the kernel's shape."""
        rows = weight_B if self.share == 1 else weight_B.repeat_interleave(self.share)
        total: Tensor | None = None
        start = 0
        for calls in self.rounds:
            count = calls[0].count
            for call in calls:
                part = call.use.weighted(rows[start : start + count], call.kept, call.grad)
                total = part if total is None else total + part
            start += count
        assert total is not None
        return total


@dataclass(frozen=True, slots=True)
class NoSamples:
    """Stand-in where nothing was seen: zeros without a gradient, not-a-numbers where the samples are not known."""

    count: int
    fill: Tensor  # a scalar of the kernel's type and device
    kernel_shape: tuple[int, ...]

    def scalars(self, jacobian: Tensor | CompactKernel) -> Tensor:
        """Return the fill (B,)."""
        return self.fill.expand(self.count)

    def weighted(self, weight_B: Tensor) -> Tensor:
        """Return the fill, of the kernel's shape."""
        return self.fill.expand(self.kernel_shape)
