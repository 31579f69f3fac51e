"""Gradient noise scale: the batch size from which on a larger batch buys little, from the parts of one batch.

With ``G`` the true gradient and ``Sigma`` the covariance of one sample's gradient, ``B = tr(Sigma) / |G|^2``. The mean
gradient of b samples has ``E |G_b|^2 = |G|^2 + tr(Sigma) / b``, so that two sizes b < B tell both, without bias::

    |G|^2     = ( B |G_B|^2 - b |G_b|^2 ) / (B - b)
    tr(Sigma) = ( |G_b|^2 - |G_B|^2 ) / (1/b - 1/B)

A ratio of averages is far less biased than an average of ratios: both are averaged over the visits first.

References:
    McCandlish, Kaplan, Amodei et al. (2018), *An Empirical Model of Large-Batch Training*, arXiv 1812.06162, equation
    2.9 and appendix A.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lipadvisor.policies import Status

__all__ = ["NoiseScale", "PartGradients", "batch_size", "part_gradients", "split_batch"]

_SAVED = ("trace", "square", "weight")


@dataclass(frozen=True, slots=True)
class PartGradients:
    """Squared gradient norms of a batch and of its equal parts, of a loss that is a mean over samples.

    Attributes:
        part: samples in a part.
        whole: samples in all parts.
        part_square: mean of the parts' squared gradient norms.
        whole_square: squared norm of the mean gradient.
    """

    part: int
    whole: int
    part_square: float
    whole_square: float


@dataclass(slots=True)
class NoiseScale:
    """Averages the two unbiased estimates over visits; their ratio is the noise scale.

    Attributes:
        decay: share of the average that a visit leaves in place, in [0, 1).
        trace: running estimate of ``tr(Sigma)``.
        square: running estimate of ``|G|^2``; may be negative for a while where the noise is large.
        weight: of the visits so far, 1 in the long run.
    """

    decay: float = 0.9
    trace: float = 0.0
    square: float = 0.0
    weight: float = 0.0

    def __post_init__(self) -> None:
        """Check the decay.

        Raises:
            ValueError: it is not in [0, 1).
        """
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"NoiseScale(decay=...) must be in [0, 1), got {self.decay}.")

    def update(self, seen: PartGradients) -> Status:
        """Take in a visit; one that is not finite is left out and said to be."""
        trace = (seen.part_square - seen.whole_square) / (1.0 / seen.part - 1.0 / seen.whole)
        square = (seen.whole * seen.whole_square - seen.part * seen.part_square) / (seen.whole - seen.part)
        if not (math.isfinite(trace) and math.isfinite(square)):
            return Status.NON_FINITE
        share = 1.0 - self.decay
        self.trace += share * (trace - self.trace)
        self.square += share * (square - self.square)
        self.weight += share * (1.0 - self.weight)
        return self.status

    @property
    def status(self) -> Status:
        """OK; TOO_FEW_POINTS where the mean gradient cannot yet be told from the noise."""
        return Status.OK if self.weight > 0.0 and self.square > 0.0 else Status.TOO_FEW_POINTS

    @property
    def value(self) -> float:
        """The noise scale in samples, >= 0; nan before the first visit, infinity where no mean gradient shows."""
        if self.weight == 0.0:
            return float("nan")
        return max(self.trace, 0.0) / self.square if self.square > 0.0 else float("inf")

    def state_dict(self) -> dict[str, float]:
        """Return the running estimates."""
        return {name: getattr(self, name) for name in _SAVED}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        for name in _SAVED:
            setattr(self, name, float(state[name]))


def batch_size(batch: Any) -> int:
    """Return the length of the first dimension of the first tensor in a batch; 0 if there is none."""
    if isinstance(batch, Tensor):
        return int(batch.shape[0]) if batch.dim() else 0
    if isinstance(batch, Mapping):
        batch = tuple(batch.values())
    if isinstance(batch, (tuple, list)):
        return next((size for size in map(batch_size, batch) if size), 0)
    return 0


def split_batch(batch: Any, parts: int) -> list[Any]:
    """Return ``parts`` equal parts of a batch (what is left over at its end is in none), of its own structure.

    Tensors as long as the batch are cut along their first dimension; everything else goes into every part.

    Args:
        batch: a tensor, or a tuple, list or mapping of them.
        parts: how many, >= 1.
    """
    samples = batch_size(batch)
    part = samples // parts

    def cut(value: Any, start: int) -> Any:
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == samples:
            return value[start : start + part]
        if isinstance(value, Mapping):
            return {key: cut(item, start) for key, item in value.items()}
        if isinstance(value, (tuple, list)):
            return tuple(cut(item, start) for item in value)
        return value

    return [cut(batch, index * part) for index in range(parts)]


def part_gradients(
    loss_of: Callable[[Any], Tensor], batch: Any, parameters: Sequence[nn.Parameter], parts: int = 4
) -> PartGradients | None:
    """Return the squared gradient norms of a batch's parts and of their mean: one backward and two forward passes.

    A loss that is a sum over samples is told from a mean by its size, and divided.

    Args:
        loss_of: a part of the batch -> its loss, a scalar with its graph.
        batch: a tensor, or a tuple, list or mapping of them, samples first.
        parameters: those that the gradient is taken over.
        parts: how many, >= 2; fewer where the batch is smaller.

    Returns:
        None where the batch has fewer than two samples.
    """
    samples = batch_size(batch)
    parts = min(parts, samples)
    if parts < 2:
        return None
    squares, losses = [], []
    total: list[Tensor] = []
    for part in split_batch(batch, parts):
        loss = loss_of(part)
        slopes = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        losses.append(loss.detach().reshape(()).double())
        squares.append(_square(slopes))
        total = list(torch._foreach_add(total, list(slopes))) if total else list(slopes)
    with torch.no_grad():
        whole = loss_of(batch).reshape(()).double()
    numbers = torch.stack([torch.stack(squares).mean(), _square(total), whole, torch.stack(losses).mean()])
    part_square, total_square, whole_loss, part_loss = numbers.tolist()
    size = samples // parts
    # The whole batch's loss is one part's for a mean, and so many parts' for a sum.
    summed = part_loss > 0.0 and whole_loss > part_loss * math.sqrt(parts)
    scale = 1.0 / size**2 if summed else 1.0
    return PartGradients(size, size * parts, part_square * scale, total_square * scale / parts**2)


def _square(slopes: Sequence[Tensor]) -> Tensor:
    """Return the squared norm of all of ``slopes`` together, in float64, on the first one's device."""
    norms = torch._foreach_norm([slope.detach() for slope in slopes])
    return torch.stack([norm.double().to(slopes[0].device) for norm in norms]).square().sum()
