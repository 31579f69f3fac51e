"""Gradient noise of one layer, from what its samples did at its input and output.

Per sample i of a batch of B, with ``g_i`` the gradient of its own loss, G their mean and ``P`` the preconditioner: the
scalar ``u' (P * g_i) v``, and changes whose forms q add up to that of the batch mean's noise. No per-sample gradient is
formed.

The loss is a mean over the batch, so that the gradient that arrives at the output of sample i is ``1/B`` of its own:
with B times it, ``1 / (B (B - 1)) sum_i q(P * (g_i - G)) = B / (B - 1) sum_i q(P * (g_i - G) / B)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipadvisor.spectra import LayerOperator, LinearOperator, TrackedBlock

__all__ = ["EXACT_SIDE", "NoiseImages", "is_exact", "layer_noise"]

EXACT_SIDE = 512  # up to this smaller side the curvature of every sample is taken, beyond it that of random sums


@dataclass(frozen=True, slots=True)
class NoiseImages:
    """What the noise does to the top pair.

    Attributes:
        scalars_B: ``u' (P * g_i) v`` of each sample.
        image_KM: ``E_k v`` of changes E_k for which ``factor * sum_k q(E_k)`` is (or estimates) ``E q(noise)``.
        coimage_KN: ``E_k' u``.
        factor: see above.
    """

    scalars_B: Tensor
    image_KM: Tensor
    coimage_KN: Tensor
    factor: float


def is_exact(operator: LayerOperator) -> bool:
    """Return whether every sample's curvature is taken: matrices of a small side."""
    return isinstance(operator, LinearOperator) and min(operator.inputs, operator.outputs) <= EXACT_SIDE


def layer_noise(
    operator: LayerOperator,
    block: TrackedBlock,
    batch: tuple[Tensor, Tensor],
    scale: Tensor | None,
    signs_KB: Tensor,
) -> NoiseImages:
    """Return what the noise of a batch does to the layer's top pair.

    Args:
        operator: geometry of the layer.
        block: its tracked block.
        batch: inputs and output gradients of the layer, (B, ...) each.
        scale: preconditioner P of the kernel's shape; None stands for ones.
        signs_KB: random signs for the stochastic estimate (unused where it is exact).

    References:
        Luo et al. (2025), arXiv 2506.18588, Prop 5-7 (covariance of the batch mean as low-rank factor); Hutchinson's
        identity over samples: ``E_w q(sum_i w_i x_i) = sum_i q(x_i)`` for independent signs w.
    """
    inputs_B, grads_B = batch
    samples = inputs_B.shape[0]
    factor = samples / max(samples - 1, 1)
    u_M, v_N = block.u_RM[0], block.v_RN[0]
    if isinstance(operator, LinearOperator) and is_exact(operator):
        image_BM, coimage_BN = operator.sample_images(u_M, v_N, inputs_B, grads_B, scale)
        scalars_B = (image_BM @ u_M) * samples
        return NoiseImages(scalars_B, image_BM - image_BM.mean(0), coimage_BN - coimage_BN.mean(0), factor)
    jacobian = operator.outer(block.u_RM[:1], block.v_RN[:1])
    if scale is not None:
        jacobian = jacobian * scale
    scalars_B = operator.sample_scalars(jacobian, inputs_B, grads_B) * samples
    image, coimage = [], []
    for weight_B in signs_KB - signs_KB.mean(1, keepdim=True):  # centred: sum w_i (g_i - G)
        noise = operator.weighted_gradient(weight_B, inputs_B, grads_B)
        if scale is not None:
            noise = noise * scale
        image.append(operator.apply(noise, block.v_RN[:1]))
        coimage.append(operator.adjoint(noise, block.u_RM[:1]))
    return NoiseImages(scalars_B, torch.cat(image), torch.cat(coimage), factor / len(signs_KB))
