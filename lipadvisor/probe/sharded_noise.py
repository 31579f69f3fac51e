"""Gradient noise of a pack of layers whose weights are spread over processes, each with samples of its own.

Inputs and output gradients are whole on every process, and so are the tracked pairs: without a preconditioner a sample
is projected without a word to the others. A preconditioner is spread like the weights: its shares go round, each is
looked at by all and let go, so that no process ever holds more than two. What the noise does to the top pairs is then
known to all, since the forms q take all processes together.

Shapes: as in :mod:`lipadvisor.probe.noise`; ``c`` rows of a share, ``W`` processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from lipadvisor.probe.kinds.parametrized import ThroughParameters
from lipadvisor.probe.kinds.sharded import of_rows
from lipadvisor.probe.noise import CONV_SIGNS, Batch, NoiseImages, sample_count
from lipadvisor.probe.pack import Pack
from lipadvisor.probe.pair_sums import PairSums
from lipadvisor.probe.samples import SampleGradients, Seen, SeenSamples
from lipadvisor.spectra import LinearOperator
from lipadvisor.spectra.sharded import ShardedOperator

__all__ = ["sharded_noise"]

TOGETHER = 65_536  # entries of a pack's shares up to which these go round at once


def sharded_noise(
    pack: Pack, batches: Sequence[Batch], scale: Tensor | ThroughParameters | None, signs_KB: Tensor | None
) -> NoiseImages:
    """Return what the noise of all processes' batches does to a pack's top pairs; the scalars are of this one's.

    Random sums of samples are centred on those of their process, single samples on all. The factor is such that the
    sum over all processes of what each makes of all changes is that of the noise.

    Args:
        pack: with ``old`` refreshed, of sharded layers.
        batches: of each layer, see :func:`~lipadvisor.probe.noise.batch_noise`.
        scale: this process's shares of the preconditioner P (l, c, ...); None stands for ones.
        signs_KB: random signs; None leaves the curvature out.
    """
    assert pack.old is not None
    assert isinstance(pack.operator, ShardedOperator)
    assert not isinstance(scale, ThroughParameters)
    operator, block = pack.operator, pack.old.block
    samples = sample_count(batches[0])
    exact = pack.exact and isinstance(batches[0], tuple)
    if signs_KB is not None:
        signs_KB = signs_KB - signs_KB.mean(1, keepdim=True)
    looks = [
        _look(operator, block.u_RM[place, :1], block.v_RN[place, :1], batch, signs_KB, exact)
        for place, batch in enumerate(batches)
    ]
    for places in _rounds(len(looks), scale):
        if scale is None:
            for place in places:
                looks[place].at_all()
            continue
        for rank, shares in operator.shard.in_turn(scale[places.start : places.stop]):
            for share, place in zip(shares, places, strict=True):
                looks[place].at_share(rank, share)
    scalars = tuple(look.scalars() * samples for look in looks)
    if signs_KB is None:
        return NoiseImages(scalars)
    images = [look.images() for look in looks]
    own_KX = torch.cat([torch.stack([image for image, _ in images]), torch.stack([co for _, co in images])], -1)
    if exact:
        changes = _everyones(operator, own_KX)
    else:
        own_KX = own_KX * (samples / max(samples - 1, 1) / own_KX.shape[1]) ** 0.5
        changes = operator.shard.stack(own_KX).movedim(0, 1).flatten(1, 2)
    image_KM, coimage_KN = changes.split([operator.outputs, operator.inputs], -1)
    return NoiseImages(scalars, image_KM, coimage_KN, 1.0 / operator.shard.processes)


def _everyones(operator: ShardedOperator, own_lBX: Tensor) -> Tensor:
    """Return the images of all processes' samples, centred on the mean of all, as changes that add up to the noise."""
    own = len(own_lBX[0])
    most = int(operator.shard.largest(torch.tensor(own, device=own_lBX.device)))
    own_lBX = pad(own_lBX, (0, 1), value=1.0)  # a column that says which rows are samples
    all_lKX = operator.shard.stack(pad(own_lBX, (0, 0, 0, most - own))).movedim(0, 1).flatten(1, 2)
    images, there = all_lKX[..., :-1], all_lKX[..., -1:]
    count = there.sum(-2, keepdim=True)
    mean = images.sum(-2, keepdim=True) / count
    return (images - mean * there) * (count / (count - 1.0).clamp_min(1.0)).sqrt()


def _rounds(layers: int, scale: Tensor | None) -> Iterable[range]:
    """Return which layers' shares go round together: those of small layers, and each large one by itself."""
    if scale is None or scale.numel() <= TOGETHER:
        return [range(layers)]
    return [range(place, place + 1) for place in range(layers)]


def _look(
    operator: ShardedOperator, u_1M: Tensor, v_1N: Tensor, batch: Batch, signs_KB: Tensor | None, exact: bool
) -> _Pairs | _Samples:
    """Return what gathers the samples' images at one layer, share by share."""
    if isinstance(batch, tuple):
        return _Pairs(operator, u_1M[0], v_1N[0], batch, None if exact else signs_KB)
    assert not isinstance(batch, PairSums)  # sharded layers are not reduced early
    weights_KB = None if signs_KB is None else signs_KB[:CONV_SIGNS]
    return _Samples(operator, u_1M, v_1N, batch, weights_KB)


@dataclass(slots=True)
class _Pairs:
    """Samples of a plain matrix: inputs (B, T, N) and output gradients (B, T, M)."""

    operator: ShardedOperator
    u_M: Tensor
    v_N: Tensor
    pair: tuple[Tensor, Tensor]
    signs_KB: Tensor | None  # None: every sample's images
    image_BM: Tensor | float = 0.0
    coimage_BN: Tensor | float = 0.0

    def at_all(self) -> None:
        """Take in all rows, without a preconditioner."""
        whole = LinearOperator(self.operator.outputs, self.operator.inputs)
        self.image_BM, self.coimage_BN = whole.sample_images(self.u_M, self.v_N, *self.pair, None)

    def at_share(self, rank: int, scale: Tensor) -> None:
        """Take in the rows on process ``rank``."""
        rows = self.operator.shard.rows(rank)
        count, whole = rows.stop - rows.start, self.operator
        if count == 0:
            return
        inputs, grads = self.pair
        part = LinearOperator(count, whole.inputs)
        image, coimage = part.sample_images(self.u_M[rows], self.v_N, inputs, grads[..., rows], scale[:count])
        self.image_BM = self.image_BM + pad(image, (rows.start, whole.outputs - rows.stop))
        self.coimage_BN = self.coimage_BN + coimage

    def scalars(self) -> Tensor:
        """Return ``u' (P * x_i) v`` (B,)."""
        assert isinstance(self.image_BM, Tensor)
        return self.image_BM @ self.u_M

    def images(self) -> tuple[Tensor, Tensor]:
        """Return the images (K, M) and (K, N) of every sample, or of random sums."""
        image, coimage = self.image_BM, self.coimage_BN
        assert isinstance(image, Tensor)
        assert isinstance(coimage, Tensor)
        if self.signs_KB is None:
            return image, coimage
        return self.signs_KB @ image, self.signs_KB @ coimage


@dataclass(slots=True)
class _Samples:
    """Samples of any other layer, asked for by projections and weighted sums."""

    operator: ShardedOperator
    u_1M: Tensor
    v_1N: Tensor
    batch: SampleGradients
    weights_KB: Tensor | None
    scalar_B: Tensor | float = 0.0
    image_KM: Tensor | float = 0.0
    coimage_KN: Tensor | float = 0.0

    def at_all(self) -> None:
        """Take in all rows, without a preconditioner."""
        for rank in range(self.operator.shard.processes):
            self.at_share(rank, None)

    def at_share(self, rank: int, scale: Tensor | None) -> None:
        """Take in the rows on process ``rank``."""
        operator, batch = self.operator, self.batch
        rows = operator.shard.rows(rank)
        count = rows.stop - rows.start
        if count == 0:
            return
        jacobian = operator.share_outer(self.u_1M, self.v_1N, rank)[:count]
        some = replace(batch, rounds=_of_rows(batch, rows)) if isinstance(batch, SeenSamples) else batch
        self.scalar_B = self.scalar_B + some.scalars(jacobian if scale is None else jacobian * scale[:count])
        images = []
        for weight_B in () if self.weights_KB is None else self.weights_KB:
            if isinstance(some, SeenSamples):
                noise = some.weighted(weight_B)
            else:
                noise = some.scalars(jacobian)[0].expand(jacobian.shape)  # a stand-in: one number for all
            noise = noise if scale is None else noise * scale[:count]
            noise = torch.cat([noise, noise.new_zeros(operator.shard.longest - count, *noise.shape[1:])])
            images.append(operator.share_images(noise, self.u_1M, self.v_1N, rank))
        if images:
            self.image_KM = self.image_KM + torch.cat([image for image, _ in images])
            self.coimage_KN = self.coimage_KN + torch.cat([coimage for _, coimage in images])

    def scalars(self) -> Tensor:
        """Return ``u' (P * x_i) v`` (B,)."""
        assert isinstance(self.scalar_B, Tensor)
        return self.scalar_B

    def images(self) -> tuple[Tensor, Tensor]:
        """Return the images (K, M) and (K, N) of random sums."""
        assert isinstance(self.image_KM, Tensor)
        assert isinstance(self.coimage_KN, Tensor)
        return self.image_KM, self.coimage_KN


def _of_rows(batch: SeenSamples, rows: slice) -> tuple[tuple[Seen, ...], ...]:
    """Return the samples' calls as if the weight had the rows ``rows`` alone."""
    return tuple(
        tuple(Seen(*of_rows(call.use, call.kept, call.grad, rows)) for call in calls) for calls in batch.rounds
    )
