"""Gradient noise of one layer, from what its samples did at its input and output.

Per sample i of a batch of B, with ``g_i`` the gradient of its own loss and ``P`` the preconditioner: the scalar
``u' (P * g_i) v`` and the mean over samples of ``q(P * (g_i - G))``. No per-sample gradient is formed.

The loss is a mean over the batch, so that the gradient that arrives at the output of sample i is ``1/B`` of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipadvisor.spectra import LayerOperator, LinearOperator, Resolvent, TrackedBlock, curvature_form

__all__ = ["EXACT_SIDE", "layer_noise"]

EXACT_SIDE = 512  # up to this smaller side the curvature of every sample is taken, beyond it that of random sums


def layer_noise(
    operator: LayerOperator,
    block: TrackedBlock,
    resolvent: Resolvent,
    batch: tuple[Tensor, Tensor],
    scale: Tensor | None,
    signs_KB: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the samples' scalars ``u' (P * g_i) v`` (B,) and the batch mean's ``E q(noise)``, a scalar.

    Args:
        operator: geometry of the layer.
        block: its tracked block.
        resolvent: of the block's complement.
        batch: inputs and output gradients of the layer, (B, ...) each.
        scale: preconditioner P of the kernel's shape; None stands for ones.
        signs_KB: random signs for the stochastic estimate (unused where it is exact).

    References:
        Luo et al. (2025), arXiv 2506.18588, Prop 5-7 (covariance of the batch mean as low-rank factor); Hutchinson's
        identity over samples: ``E_w q(sum_i w_i x_i) = sum_i q(x_i)`` for independent signs w.
    """
    inputs_B, grads_B = batch
    samples = inputs_B.shape[0]
    u_M, v_N = block.u_RM[0], block.v_RN[0]
    if isinstance(operator, LinearOperator) and min(operator.inputs, operator.outputs) <= EXACT_SIDE:
        image_BM, coimage_BN = operator.sample_images(u_M, v_N, inputs_B, grads_B, scale)
        scalars_B = (image_BM @ u_M) * samples
        q_B = curvature_form(block, resolvent, image_BM - image_BM.mean(0), coimage_BN - coimage_BN.mean(0))
        return scalars_B, q_B.sum() * (samples / max(samples - 1, 1))
    jacobian = operator.outer(u_M.unsqueeze(0), v_N.unsqueeze(0))
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
    q_K = curvature_form(block, resolvent, torch.cat(image), torch.cat(coimage))
    return scalars_B, q_K.mean() * (samples / max(samples - 1, 1))
