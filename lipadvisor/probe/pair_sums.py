"""The samples of a plain matrix, reduced to what is asked of them: nothing of the size of a layer's maps is left.

What is asked is linear in the pairs of input and output gradient, so that it can be taken as soon as a gradient is
there, and calls add up. Under a preconditioner that is once the weight's own gradient is complete.

Shapes: ``B`` samples, ``T`` places in a sample, ``K`` random sums, ``M`` outputs, ``N`` inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipadvisor.spectra import LinearOperator
from lipadvisor.spectra.linear import projected

__all__ = ["SMALL", "PairProjection", "PairSums", "pair_sums"]

SMALL = 32_768  # entries of a call's input up to which it is kept: it would save less than the calls cost
CHUNK = 524_288  # entries of a product with a preconditioned kernel that are taken at a time


@dataclass(frozen=True, slots=True)
class PairSums:
    """What is left of the samples of one layer's calls.

    Attributes:
        scalars_B: ``u' (P * x_i) v``.
        image_KM: ``(P * x_i) v`` of each sample, or random sums of them; None where no curvature is asked for.
        coimage_KN: ``(P * x_i)' u``, likewise.
        signs_K1: sums of the random signs; None where images are of each sample.
        total_1M: sum of the samples' images, where there are signs.
        total_1N: likewise.
    """

    scalars_B: Tensor
    image_KM: Tensor | None = None
    coimage_KN: Tensor | None = None
    signs_K1: Tensor | None = None
    total_1M: Tensor | None = None
    total_1N: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of samples B."""
        return len(self.scalars_B)

    def centred(self) -> tuple[Tensor, Tensor]:
        """Return images (K, M) and (K, N) of changes whose forms add up to ``K`` times, or once, that of the noise."""
        assert self.image_KM is not None
        assert self.coimage_KN is not None
        if self.signs_K1 is None or self.total_1M is None or self.total_1N is None:
            images = (x - x.mean(0, keepdim=True) for x in (self.image_KM, self.coimage_KN))
        else:
            mean_K1 = self.signs_K1 / self.count
            images = (self.image_KM - mean_K1 * self.total_1M, self.coimage_KN - mean_K1 * self.total_1N)  # type: ignore[assignment]
        image_KM, coimage_KN = images
        return image_KM, coimage_KN

    @classmethod
    def of_calls(cls, calls: Sequence[PairSums]) -> PairSums | None:
        """Return what calls of the same samples add up to; None where these are not as many in each."""
        if len({call.count for call in calls}) > 1:
            return None
        if len(calls) == 1:
            return calls[0]
        names = ("scalars_B", "image_KM", "coimage_KN", "total_1M", "total_1N")
        added = {name: _added([getattr(call, name) for call in calls]) for name in names}
        return cls(signs_K1=calls[0].signs_K1, **added)  # type: ignore[arg-type]

    @classmethod
    def of_rounds(cls, rounds: Sequence[PairSums]) -> PairSums:
        """Return what batches of other samples make together."""
        if len(rounds) == 1:
            return rounds[0]
        signed = rounds[0].signs_K1 is not None
        join = _added if signed else _joined
        names = ("image_KM", "coimage_KN", "signs_K1", "total_1M", "total_1N")
        found = {name: join([getattr(one, name) for one in rounds]) for name in names}
        return cls(torch.cat([one.scalars_B for one in rounds]), **found)


def _added(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return sum(known[1:], known[0]) if known else None


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None


@dataclass(frozen=True, slots=True)
class PairProjection:
    """What the calls of one layer are asked for.

    Attributes:
        u_M: top left vector.
        v_N: top right vector.
        signs: gives the random signs (K, B) of a round of B samples; None where no curvature is asked for, or that of
            each sample.
        curved: whether it is.
        scale: makes the preconditioner P (M, N) of the gradient that has just been added up; None stands for ones.
    """

    u_M: Tensor
    v_N: Tensor
    signs: Callable[[int, int], Tensor] | None
    curved: bool
    scale: Callable[[], Tensor | None] | None = None

    @property
    def core(self) -> Tensor:
        """A tensor of the type and on the device that samples must have."""
        return self.u_M

    def of(self, pair: tuple[Tensor, Tensor], turn: int) -> PairSums | None:
        """Return what is left of a call, inputs (B, T, N) and output gradients (B, T, M), in round ``turn``.

        None where the preconditioner is not known.
        """
        scale = None if self.scale is None else self.scale()
        if self.scale is not None and scale is None:
            return None
        signs_KB = None if self.signs is None else self.signs(turn, pair[0].shape[0])
        return pair_sums(self.u_M, self.v_N, pair, scale, self.curved, signs_KB)


def pair_sums(
    u_M: Tensor,
    v_N: Tensor,
    pair: tuple[Tensor, Tensor],
    scale: Tensor | None,
    curved: bool,
    signs_KB: Tensor | None,
) -> PairSums:
    """Return what is left of samples.

    Args:
        u_M: top left vector.
        v_N: top right vector.
        pair: inputs (B, T, N) and output gradients (B, T, M).
        scale: preconditioner P (M, N); None stands for ones.
        curved: whether images are asked for.
        signs_KB: of random sums of the images; None keeps each sample's.
    """
    inputs, grads = pair
    if scale is None:
        return _plain_sums(u_M, v_N, inputs, grads, curved, signs_KB)
    if not curved:
        jacobian = scale * torch.outer(u_M, v_N)
        return PairSums(torch.cat([_scaled_scalars(jacobian, x, d) for x, d in _chunks(inputs, grads)]))
    operator = LinearOperator(grads.shape[-1], inputs.shape[-1])
    each = [operator.sample_images(u_M, v_N, x, d, scale) for x, d in _chunks(inputs, grads)]
    image_BM, coimage_BN = (torch.cat(parts) for parts in zip(*each, strict=True))
    scalars_B = image_BM @ u_M
    if signs_KB is None:
        return PairSums(scalars_B, image_BM, coimage_BN)
    signs_KB = signs_KB.to(image_BM, non_blocking=True)
    totals = (x.sum(0, keepdim=True) for x in (image_BM, coimage_BN))
    return PairSums(scalars_B, signs_KB @ image_BM, signs_KB @ coimage_BN, signs_KB.sum(1, keepdim=True), *totals)


def _plain_sums(
    u_M: Tensor, v_N: Tensor, inputs: Tensor, grads: Tensor, curved: bool, signs_KB: Tensor | None
) -> PairSums:
    """Return what is left of samples without a preconditioner: of random sums no sample's images are formed."""
    at_v_BT, at_u_BT = inputs @ v_N, grads @ u_M
    scalars_B = (at_v_BT * at_u_BT).sum(1)
    if not curved:
        return PairSums(scalars_B)
    if signs_KB is None:
        operator = LinearOperator(grads.shape[-1], inputs.shape[-1])
        return PairSums(scalars_B, *operator.sample_images(u_M, v_N, inputs, grads, None))
    signs_KB = signs_KB.to(at_v_BT, non_blocking=True)
    weights_KB1 = torch.cat([signs_KB, torch.ones_like(signs_KB[:1])])[..., None]
    image_KM = (weights_KB1 * at_v_BT).flatten(1) @ grads.flatten(0, 1)
    coimage_KN = (weights_KB1 * at_u_BT).flatten(1) @ inputs.flatten(0, 1)
    signs_K1 = signs_KB.sum(1, keepdim=True)
    return PairSums(scalars_B, image_KM[:-1], coimage_KN[:-1], signs_K1, image_KM[-1:], coimage_KN[-1:])


def _chunks(inputs: Tensor, grads: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the samples in parts whose products with a kernel are not large."""
    one = inputs.shape[1] * max(inputs.shape[2], grads.shape[2])
    count = max(1, CHUNK // max(one, 1))
    return list(zip(inputs.split(count), grads.split(count), strict=True))


def _scaled_scalars(jacobian: Tensor, inputs: Tensor, grads: Tensor) -> Tensor:
    """Return ``sum_t d_it' J a_it`` (B,): a forward pass."""
    return projected(inputs.flatten(0, 1), jacobian.mT, grads.flatten(0, 1)).reshape(inputs.shape[0], -1).sum(1)
