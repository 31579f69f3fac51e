"""Gradient noise of a pack of layers, from what its samples did at the layers' inputs and outputs.

Per sample i of a batch of B, with ``x_i`` its share of the batch's gradient (they add up to it, whatever the loss's
reduction) and ``P`` the preconditioner: the scalar ``u' (P * B x_i) v``, and changes whose forms q add up to that of
the gradient's noise, ``B / (B - 1) sum_i q(P * (x_i - mean))``. No per-sample gradient is formed.

Shapes: ``l`` layers of the pack, ``B`` samples, ``T`` places in a sample, ``K`` changes, ``M`` outputs, ``N`` inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lipadvisor.probe.kinds.parametrized import ThroughParameters
from lipadvisor.probe.pack import Pack
from lipadvisor.probe.pair_sums import PairSums, pair_sums
from lipadvisor.probe.samples import NoSamples, SampleGradients, SeenSamples
from lipadvisor.spectra import Conv2dOperator, LayerOperator, LinearOperator
from lipadvisor.spectra.compact import CompactKernel, Sketch, compact_kernel, sketch

__all__ = ["Batch", "NoiseImages", "Pair", "batch_noise", "own_batch", "projection", "sample_count"]

STACKED = (
    65_536  # entries of one layer's inputs up to which the layers of a pack are stacked; beyond it is memory traffic
)
LINEAR_SIGNS = 4  # random sums of samples for the curvature of a matrix, where not every sample's is taken
CONV_SIGNS = 1  # the same for a convolution, where each costs a weight gradient
# Samples, at least, that stand for a batch where each costs a share of a weight gradient. With 16 of 128 the estimate's
# relative standard deviation was 1.5 to 2.5, with all of them .3 to .55 (digits ConvNet): too dear a saving.
FEWEST = 128
PARTS = 8  # of a batch, one of which does so

Pair = tuple[Tensor, Tensor]  # inputs (B, T, N) and output gradients (B, T, M)
Batch = Pair | PairSums | SampleGradients


@dataclass(frozen=True, slots=True)
class NoiseImages:
    """What the noise does to the top pairs of a pack.

    Attributes:
        scalars: ``u' (P * B x_i) v`` of each sample, (B,) for each layer.
        image_KM: ``E_k v`` of changes E_k for which ``factor * sum_k q(E_k)`` is (or estimates) ``E q(noise)``; None
            where it is not asked for.
        coimage_KN: ``E_k' u``.
        factor: see above.
    """

    scalars: tuple[Tensor, ...]
    image_KM: Tensor | None = None
    coimage_KN: Tensor | None = None
    factor: float = 1.0


def batch_noise(
    pack: Pack, batches: Sequence[Batch], scale: Tensor | ThroughParameters | None, signs_KB: Tensor | None
) -> NoiseImages:
    """Return what the noise of a batch does to a pack's top pairs.

    Args:
        pack: with ``old`` refreshed.
        batches: of each layer: inputs (B, T, N) and output gradients (B, T, M) of plain matrices, samples of others.
        scale: preconditioner P (l, *kernel shape); None stands for ones.
        signs_KB: random signs for the stochastic estimate, (LINEAR_SIGNS, B); None leaves the curvature out.

    References:
        Luo et al. (2025), arXiv 2506.18588, Prop 5-7 (covariance of the batch mean as low-rank factor); Hutchinson's
        identity over samples: ``E_w q(sum_i w_i x_i) = sum_i q(x_i)`` for independent signs w.
    """
    samples = sample_count(batches[0])
    factor = samples / max(samples - 1, 1)
    if not isinstance(batches[0], tuple | PairSums):
        seen = [batch for batch in batches if not isinstance(batch, tuple | PairSums)]
        return _all_projected(pack, seen, scale, signs_KB)
    assert pack.old is not None
    assert isinstance(pack.operator, LinearOperator)
    assert not isinstance(scale, ThroughParameters)
    block, operator = pack.old.block, pack.operator
    u_l1M, v_l1N = block.u_RM[:, :1], block.v_RN[:, :1]
    curved, sums_KB = signs_KB is not None, None if pack.exact else signs_KB
    pairs = [batch for batch in batches if isinstance(batch, tuple)]
    if len(pairs) == len(batches) and _small(pairs, curved, scale):
        return _stacked(pack, operator, u_l1M, v_l1N, pairs, scale, signs_KB)
    each = []
    for place, batch in enumerate(batches):
        if isinstance(batch, tuple):
            rows, columns = batch[1].shape[-1], batch[0].shape[-1]
            part = None if scale is None else scale[place, :rows, :columns]
            batch = pair_sums(u_l1M[place, 0, :rows], v_l1N[place, 0, :columns], batch, part, curved, sums_KB)
        assert isinstance(batch, PairSums)
        each.append(batch)
    scalars = tuple(one.scalars_B * samples for one in each)
    if not curved:
        return NoiseImages(scalars)
    images = [one.centred() for one in each]
    image_KM = torch.stack([nn.functional.pad(x, (0, operator.outputs - x.shape[-1])) for x, _ in images])
    coimage_KN = torch.stack([nn.functional.pad(x, (0, operator.inputs - x.shape[-1])) for _, x in images])
    return NoiseImages(scalars, image_KM, coimage_KN, factor if pack.exact else factor / image_KM.shape[1])


def _small(pairs: Sequence[Pair], curved: bool, scale: Tensor | None) -> bool:
    """Return whether layers are better stacked: it takes copies of their inputs."""
    if not curved and scale is not None:
        return False
    return pairs[0][0].numel() <= STACKED and len({inputs.shape[1] for inputs, _ in pairs}) == 1


def _stacked(
    pack: Pack,
    operator: LinearOperator,
    u_l1M: Tensor,
    v_l1N: Tensor,
    batches: Sequence[Pair],
    scale: Tensor | None,
    signs_KB: Tensor | None,
) -> NoiseImages:
    """Return the noise of layers that have as many places each, all at once."""
    samples = batches[0][0].shape[0]
    inputs = _stack([inputs for inputs, _ in batches], operator.inputs)
    grads = _stack([grads for _, grads in batches], operator.outputs)
    if signs_KB is None:
        seen = (inputs.flatten(1, 2) @ v_l1N.mT) * (grads.flatten(1, 2) @ u_l1M.mT)
        scalars_lB = seen.unflatten(1, inputs.shape[1:3]).sum((2, 3)) * samples
        return NoiseImages(tuple(scalars_lB))
    image_BM, coimage_BN = operator.sample_images(u_l1M[:, 0], v_l1N[:, 0], inputs, grads, scale)
    scalars_lB = (image_BM @ u_l1M.mT).squeeze(-1) * samples
    factor = samples / max(samples - 1, 1)
    if pack.exact:
        image_BM = image_BM - image_BM.mean(1, keepdim=True)
        coimage_BN = coimage_BN - coimage_BN.mean(1, keepdim=True)
        return NoiseImages(scalars_lB.unbind(), image_BM, coimage_BN, factor)
    centred_KB = signs_KB - signs_KB.mean(1, keepdim=True)
    return NoiseImages(scalars_lB.unbind(), centred_KB @ image_BM, centred_KB @ coimage_BN, factor / len(centred_KB))


def _stack(tensors: Sequence[Tensor], width: int) -> Tensor:
    """Return (B, T, n) tensors as one (l, B, T, width), padded with zeros."""
    if all(tensor.shape[-1] == width for tensor in tensors):
        return torch.stack(list(tensors))
    stack = tensors[0].new_zeros(len(tensors), *tensors[0].shape[:-1], width)
    torch._foreach_copy_([stack[i, ..., : t.shape[-1]] for i, t in enumerate(tensors)], list(tensors))
    return stack


def _all_projected(
    pack: Pack,
    batches: Sequence[SampleGradients],
    scale: Tensor | ThroughParameters | None,
    signs_KB: Tensor | None,
) -> NoiseImages:
    """Return the noise of layers that are no plain matrices, one by one."""
    each = []
    for place, samples in enumerate(batches):
        each.append(_projected(pack, place, samples, scale[place] if isinstance(scale, Tensor) else scale, signs_KB))
    scalars = tuple(noise.scalars[0] for noise in each)
    images = [noise.image_KM * noise.factor**0.5 for noise in each if noise.image_KM is not None]
    coimages = [noise.coimage_KN * noise.factor**0.5 for noise in each if noise.coimage_KN is not None]
    return NoiseImages(scalars, torch.stack(images), torch.stack(coimages)) if images else NoiseImages(scalars)


def _projected(
    pack: Pack,
    place: int,
    samples: SampleGradients,
    scale: Tensor | ThroughParameters | None,
    signs_KB: Tensor | None,
) -> NoiseImages:
    """Return the noise of one layer: exact scalars, forms of a few random sums of samples (K, M) and (K, N)."""
    assert pack.old is not None
    assert pack.operator is not None
    operator, block = pack.operator, pack.old.block
    u_1M, v_1N = block.u_RM[place, :1], block.v_RN[place, :1]
    by = samples.projected if isinstance(samples, SeenSamples) else None
    by = projection(operator, u_1M, v_1N, signs_KB is not None) if by is None and scale is None else by
    if isinstance(by, Sketch) and isinstance(samples, SeenSamples) and signs_KB is not None:
        scalars_B, left_BOE, right_BCE = samples.sketched(by)
        weights_KB = signs_KB[:CONV_SIGNS] - signs_KB[:CONV_SIGNS].mean(1, keepdim=True)
        sums = (torch.tensordot(weights_KB, each, 1) for each in (left_BOE, right_BCE))
        image_KM, coimage_KN = by.images(*sums)
        factor = samples.count / max(samples.count - 1, 1) / len(weights_KB)
        return NoiseImages((scalars_B * samples.count,), image_KM, coimage_KN, factor)
    compact = by.kernel if isinstance(by, Sketch) else by
    jacobian = _answered(scale, operator.outer(u_1M, v_1N)) if compact is None else compact
    scalars_B = samples.scalars(jacobian) * samples.count
    if signs_KB is None:
        return NoiseImages((scalars_B,))
    part, count = _part(pack, samples), samples.count
    weights_KB = signs_KB[:CONV_SIGNS, : part.count]
    weights_KB = weights_KB - weights_KB.mean(1, keepdim=True)
    images, coimages = [], []
    for weight_B in weights_KB:
        noise = _answered(scale, part.weighted(weight_B))
        images.append(operator.apply(noise, v_1N))
        coimages.append(operator.adjoint(noise, u_1M))
    factor = count / max(part.count - 1, 1) / len(weights_KB)
    return NoiseImages((scalars_B,), torch.cat(images), torch.cat(coimages), factor)


def projection(operator: LayerOperator, u_1M: Tensor, v_1N: Tensor, curved: bool) -> Sketch | CompactKernel | None:
    """Return what the samples of an unpreconditioned convolution are asked for; None where it is the whole kernel.

    A preconditioner would make a Jacobian of many channels out of one of few.

    Args:
        operator: geometry of the layer.
        u_1M: top left vector.
        v_1N: top right vector.
        curved: whether the noise's curvature is asked for.
    """
    compact = compact_kernel(operator, operator.outer(u_1M, v_1N)) if isinstance(operator, Conv2dOperator) else None
    return compact if compact is None or not curved else sketch(compact, u_1M, v_1N) or compact


def _part(pack: Pack, samples: SampleGradients) -> SampleGradients:
    """Return some samples that stand for all: any part is as likely as another; all of a small batch."""
    count = max(FEWEST, samples.count // PARTS)
    if count >= samples.count or not isinstance(samples, SeenSamples):
        return samples
    place = int(torch.randint(0, samples.count // count, (1,), generator=pack.generator))
    return samples.window(place * count, count) or samples


def _answered(scale: Tensor | ThroughParameters | None, gradient: Tensor) -> Tensor:
    """Return what the optimizer makes of a gradient of one layer's kernel."""
    if isinstance(scale, ThroughParameters):
        return scale.answer(gradient)
    return gradient if scale is None else gradient * scale


def sample_count(batch: Batch) -> int:
    """Return the number of samples of a batch."""
    return batch[0].shape[0] if isinstance(batch, tuple) else batch.count


def own_batch(pack: Pack, place: int, batch: Batch | None, samples: int, still: bool = False) -> Batch:
    """Return one layer's batch with the samples first; stand-ins where there is none.

    No gradient, no noise: zeros. A gradient whose samples are not known: not-a-numbers.

    Args:
        pack: settled.
        place: of the layer in it.
        batch: what the layer saw, if that is known.
        samples: M.
        still: its gradient is zero.
    """
    layer = pack.layers[place]
    if batch is not None and sample_count(batch) == samples:
        return batch
    if batch is not None and sample_count(batch) % samples == 0:  # places flattened into the batch
        if isinstance(batch, SeenSamples):
            return replace(batch, share=batch.share * (batch.count // samples))
        if isinstance(batch, tuple):
            inputs, grads = batch
            return inputs.reshape(samples, -1, inputs.shape[-1]), grads.reshape(samples, -1, grads.shape[-1])
    like = torch.empty(0, dtype=layer.weight.dtype, device=layer.weight.device)
    like = like if like.dtype == torch.float64 else like.float()
    fill = 0.0 if still or layer.weight.grad is None else float("nan")
    if not layer.flat:
        return NoSamples(samples, like.new_full((), fill), layer.form.kernel_shape)
    return like.new_full((samples, 1, layer.shape[1]), fill), like.new_full((samples, 1, layer.shape[0]), fill)
