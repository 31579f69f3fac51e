"""The operator of ``nn.Linear``: a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["MANY", "LinearOperator", "has_bfloat16", "projected"]

MANY = 65_536  # entries of all places from which half the digits are worth the change of type


@dataclass(frozen=True, slots=True)
class LinearOperator:
    """``y = W x`` with ``W`` of shape (outputs, inputs); leading dimensions of a weight hold one layer each."""

    outputs: int
    inputs: int

    def apply(self, kernel: Tensor, x_KN: Tensor) -> Tensor:
        """Return the (K, M) block ``x W'``."""
        return x_KN @ kernel.mT

    def adjoint(self, kernel: Tensor, y_KM: Tensor) -> Tensor:
        """Return the (K, N) block ``y W``."""
        return y_KM @ kernel

    def outer(self, y_KM: Tensor, x_KN: Tensor) -> Tensor:
        """Return the (M, N) matrix ``sum_k y_k x_k'``."""
        return y_KM.mT @ x_KN

    def sample_scalars(self, kernel: Tensor, input_B: Tensor, grad_B: Tensor) -> Tensor:
        """Return ``sum_t d_it' K a_it`` (B,) for inputs (B, ..., N) and output gradients (B, ..., M)."""
        return (input_B @ kernel.mT).mul_(grad_B).flatten(1).sum(1)

    def pair_scalars(self, u_M: Tensor, v_N: Tensor, input_B: Tensor, grad_B: Tensor) -> Tensor:
        """Return :meth:`sample_scalars` of the kernel ``u v'`` (B,), in two matrix-vector products."""
        return ((input_B @ v_N) * (grad_B @ u_M)).reshape(input_B.shape[0], -1).sum(1)

    def weighted_gradient(self, weight_B: Tensor, input_B: Tensor, grad_B: Tensor) -> Tensor:
        """Return ``sum_it w_i d_it a_it'`` (M, N)."""
        weighted = grad_B * weight_B.reshape(-1, *[1] * (grad_B.dim() - 1))
        return weighted.reshape(-1, self.outputs).mT @ input_B.reshape(-1, self.inputs)

    def sample_images(
        self, u_M: Tensor, v_N: Tensor, input_BT: Tensor, grad_BT: Tensor, scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return ``(P * g_i) v`` (..., B, M) and ``(P * g_i)' u`` (..., B, N) for every sample, none of the g_i formed.

        Args:
            u_M: left vector, (..., M).
            v_N: right vector, (..., N).
            input_BT: layer inputs, (..., B, T, N): T places in each sample.
            grad_BT: gradients at the layer's output, (..., B, T, M).
            scale: entrywise preconditioner ``P`` (..., M, N); None stands for ones.

        References:
            With ``g_i = sum_t d_it a_it'``: ``(P * d a') v = d * (P (a * v))``.
        """
        if scale is None:
            at_v, at_u = input_BT @ v_N[..., None, :, None], grad_BT @ u_M[..., None, :, None]
            if input_BT.shape[-2] == 1:
                return (grad_BT * at_v).squeeze(-2), (input_BT * at_u).squeeze(-2)
            return (at_v.mT @ grad_BT).squeeze(-2), (at_u.mT @ input_BT).squeeze(-2)
        flat_input, flat_grad = input_BT.flatten(-3, -2), grad_BT.flatten(-3, -2)
        image = projected(flat_input, (scale * v_N.unsqueeze(-2)).mT, flat_grad)
        coimage = projected(flat_grad, scale * u_M.unsqueeze(-1), flat_input)
        if input_BT.shape[-2] == 1:
            return image, coimage
        return image.view(grad_BT.shape).sum(-2), coimage.view(input_BT.shape).sum(-2)


def projected(x_TN: Tensor, kernel_NM: Tensor, y_TM: Tensor) -> Tensor:
    """Return ``(x K) * y`` (..., T, M), a place a row.

    Many places of float32 are multiplied in bfloat16 where the processor does that: 0.3 % of an entry, at random, in
    under half of the time. Nothing else costs as much as this product, which takes a whole forward pass.
    """
    if x_TN.numel() >= MANY and has_bfloat16(x_TN):
        return (x_TN.bfloat16() @ kernel_NM.bfloat16()).float().mul_(y_TM)
    return (x_TN @ kernel_NM).mul_(y_TM)


def has_bfloat16(x: Tensor) -> bool:
    """Return whether products of float32 matrices like ``x`` may be taken in bfloat16, as the processor's own."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and _bfloat16_on_cpu()


@lru_cache(maxsize=1)
def _bfloat16_on_cpu() -> bool:
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return torch.backends.mkldnn.is_available() and supported is not None and bool(supported())
