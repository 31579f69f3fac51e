"""Gradient noise of a pack of layers, from what its samples did at the layers' inputs and outputs.

Per sample i of a batch of B, with ``x_i`` its share of the batch's gradient (they add up to it, whatever the loss's
reduction) and ``P`` the preconditioner: the scalar ``u' (P * B x_i) v``, and changes whose forms q add up to that of
the gradient's noise, ``B / (B - 1) sum_i q(P * (x_i - mean))``. No per-sample gradient is formed.

Shapes: ``l`` layers of the pack, ``B`` samples, ``T`` places in a sample, ``K`` changes, ``M`` outputs, ``N`` inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipadvisor.probe.pack import Pack
from lipadvisor.spectra import Conv2dOperator, LinearOperator

__all__ = ["NoiseImages", "batch_noise", "own_batch"]

STACKED = (
    65_536  # entries of one layer's inputs up to which the layers of a pack are stacked; beyond it is memory traffic
)
LINEAR_SIGNS = 4  # random sums of samples for the curvature of a matrix, where not every sample's is taken
CONV_SIGNS = 1  # the same for a convolution, where each costs a weight gradient

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class NoiseImages:
    """What the noise does to the top pairs of a pack.

    Attributes:
        scalars: ``u' (P * B x_i) v`` of each sample, (B,) for each layer.
        image_KM: ``E_k v`` of changes E_k for which ``factor * sum_k q(E_k)`` is (or estimates) ``E q(noise)``.
        coimage_KN: ``E_k' u``.
        factor: see above.
    """

    scalars: tuple[Tensor, ...]
    image_KM: Tensor
    coimage_KN: Tensor
    factor: float


def batch_noise(pack: Pack, batches: Sequence[Batch], scale: Tensor | None, signs_KB: Tensor) -> NoiseImages:
    """Return what the noise of a batch does to a pack's top pairs.

    Args:
        pack: with ``old`` refreshed.
        batches: inputs and output gradients of each layer: (B, T, N) and (B, T, M) of matrices, maps of convolutions.
        scale: preconditioner P (l, *kernel shape); None stands for ones.
        signs_KB: random signs for the stochastic estimate, (LINEAR_SIGNS, B).

    References:
        Luo et al. (2025), arXiv 2506.18588, Prop 5-7 (covariance of the batch mean as low-rank factor); Hutchinson's
        identity over samples: ``E_w q(sum_i w_i x_i) = sum_i q(x_i)`` for independent signs w.
    """
    samples = batches[0][0].shape[0]
    factor = samples / max(samples - 1, 1)
    centred_KB = signs_KB - signs_KB.mean(1, keepdim=True)
    if not isinstance(pack.operator, LinearOperator):
        return _convolution(pack, batches[0], scale, centred_KB[:CONV_SIGNS], factor)
    assert pack.old is not None
    u_l1M, v_l1N = pack.old.block.u_RM[:, :1], pack.old.block.v_RN[:, :1]
    image_BM, coimage_BN = _sample_images(pack, pack.operator, u_l1M, v_l1N, batches, scale)
    scalars_lB = (image_BM @ u_l1M.mT).squeeze(-1) * samples
    if pack.exact:
        image_BM = image_BM - image_BM.mean(1, keepdim=True)
        coimage_BN = coimage_BN - coimage_BN.mean(1, keepdim=True)
        return NoiseImages(scalars_lB.unbind(), image_BM, coimage_BN, factor)
    return NoiseImages(scalars_lB.unbind(), centred_KB @ image_BM, centred_KB @ coimage_BN, factor / len(centred_KB))


def _sample_images(
    pack: Pack,
    operator: LinearOperator,
    u_l1M: Tensor,
    v_l1N: Tensor,
    batches: Sequence[Batch],
    scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return ``(P * x_i) v`` (l, B, M) and ``(P * x_i)' u`` (l, B, N): small layers at once, large ones one by one."""
    places = {inputs.shape[1] for inputs, _ in batches}
    if len(places) == 1 and batches[0][0].numel() <= STACKED:
        inputs = _stack([inputs for inputs, _ in batches], operator.inputs)
        grads = _stack([grads for _, grads in batches], operator.outputs)
        return operator.sample_images(u_l1M[:, 0], v_l1N[:, 0], inputs, grads, scale)
    images, coimages = [], []
    for place, (inputs, grads) in enumerate(batches):
        rows, columns = grads.shape[-1], inputs.shape[-1]
        u_M, v_N = u_l1M[place, 0, :rows], v_l1N[place, 0, :columns]
        part = None if scale is None else scale[place, :rows, :columns]
        image, coimage = operator.sample_images(u_M, v_N, inputs, grads, part)
        images.append(nn.functional.pad(image, (0, operator.outputs - rows)))
        coimages.append(nn.functional.pad(coimage, (0, operator.inputs - columns)))
    return torch.stack(images), torch.stack(coimages)


def _stack(tensors: Sequence[Tensor], width: int) -> Tensor:
    """Return (B, T, n) tensors as one (l, B, T, width), padded with zeros."""
    if all(tensor.shape[-1] == width for tensor in tensors):
        return torch.stack(list(tensors))
    stack = tensors[0].new_zeros(len(tensors), *tensors[0].shape[:-1], width)
    torch._foreach_copy_([stack[i, ..., : t.shape[-1]] for i, t in enumerate(tensors)], list(tensors))
    return stack


def _convolution(pack: Pack, batch: Batch, scale: Tensor | None, weights_KB: Tensor, factor: float) -> NoiseImages:
    """Return the noise of a convolution: exact scalars, forms of a few random sums of samples."""
    assert pack.old is not None
    assert pack.operator is not None
    operator, block = pack.operator, pack.old.block
    inputs, grads = batch
    u_1M, v_1N = block.u_RM[0, :1], block.v_RN[0, :1]
    jacobian = operator.outer(u_1M, v_1N)
    if scale is not None:
        jacobian = jacobian * scale[0]
    scalars_B = operator.sample_scalars(jacobian, inputs, grads) * inputs.shape[0]
    images, coimages = [], []
    for weight_B in weights_KB:
        noise = operator.weighted_gradient(weight_B, inputs, grads)
        if scale is not None:
            noise = noise * scale[0]
        images.append(operator.apply(noise, v_1N))
        coimages.append(operator.adjoint(noise, u_1M))
    image_KM, coimage_KN = torch.cat(images).unsqueeze(0), torch.cat(coimages).unsqueeze(0)
    return NoiseImages((scalars_B,), image_KM, coimage_KN, factor / len(weights_KB))


def own_batch(pack: Pack, place: int, batch: Batch | None, samples: int) -> Batch:
    """Return one layer's batch with the samples first; stand-ins where there is none.

    No gradient, no noise: zeros. A gradient whose samples are not known: not-a-numbers.

    Args:
        pack: settled.
        place: of the layer in it.
        batch: what the layer saw, if that is known.
        samples: M.
    """
    layer, operator = pack.layers[place], pack.operator
    if batch is not None and (batch[0].shape[0] == samples or isinstance(operator, Conv2dOperator)):
        return batch
    if batch is not None and batch[0].shape[0] % samples == 0:  # places flattened into the batch
        inputs, grads = batch
        return inputs.reshape(samples, -1, inputs.shape[-1]), grads.reshape(samples, -1, grads.shape[-1])
    sides: tuple[tuple[int, ...], tuple[int, ...]] = ((1, layer.shape[1]), (1, layer.shape[0]))
    if isinstance(operator, Conv2dOperator):
        sides = (operator.input_shape, operator.output_shape)
    like = layer.weight.detach()
    like = like if like.dtype == torch.float64 else like.float()
    fill = 0.0 if layer.weight.grad is None else float("nan")
    return like.new_full((samples, *sides[0]), fill), like.new_full((samples, *sides[1]), fill)
