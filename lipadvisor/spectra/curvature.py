"""The second-order form q of the operator norm, split into the tracked block and its complement.

    s_1(W + E) = s_1 + u_1' E v_1 + q(E)/2 + O(|E|^3)

With ``U_r, V_r`` the block, ``D = (I - U_r U_r') W`` what is outside, ``p = (I - U_r U_r') E v_1`` and
``y = (I - V_r V_r') E' u_1``::

    q(E) = sum_{k=2..r} [ s_1 (a_k^2 + b_k^2) + 2 s_k a_k b_k ] / (s_1^2 - s_k^2)
           + ( |p|^2 + (s_1 y + D'p)' (s_1^2 I - D'D)^(-1) (s_1 y + D'p) ) / s_1

which is Lemma 12's sum over all k without an SVD: the second line is the complement's resolvent, evaluated by Cholesky
on the smaller side (:class:`GramResolvent`), by deflated conjugate gradients (:class:`CgResolvent`), or, where the
block holds everything, by nothing at all (:class:`FlatResolvent`).

Shapes: ``K`` changes at once, ``R`` block, ``M`` outputs, ``N`` inputs.

References:
    Luo et al. (2025), arXiv 2506.18588, Lemma 12.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lipadvisor.spectra.block import TrackedBlock
from lipadvisor.spectra.operator import LayerOperator

__all__ = ["CgResolvent", "FlatResolvent", "GramResolvent", "Resolvent", "block_form", "curvature_form", "outside"]

GAP_FLOOR = 1e-3  # smallest relative gap 1 - s_k/s_1 that enters a denominator


class Resolvent(Protocol):
    """The complement's part of q for changes already projected out of the block."""

    def form(self, p_KM: Tensor, y_KN: Tensor) -> Tensor:
        """Return the (K,) values of the second line of q."""
        ...


@dataclass(frozen=True, slots=True)
class FlatResolvent:
    """Nothing of W is outside the block: ``(|p|^2 + |y|^2) / sigma``."""

    sigma: Tensor

    def form(self, p_KM: Tensor, y_KN: Tensor) -> Tensor:
        """Return the (K,) values of the second line of q."""
        return (p_KM.square().sum(1) + y_KN.square().sum(1)) / self.sigma


@dataclass(frozen=True, slots=True)
class GramResolvent:
    """Exact: one Cholesky factor of ``sigma^2 I - D'D`` (or of ``sigma^2 I - D D'``) serves any number of changes."""

    kernel: Tensor
    sigma: Tensor
    factor: Tensor
    left: bool  # the Gram matrix is on the output side

    @classmethod
    def build(cls, kernel: Tensor, block: TrackedBlock, sigma: Tensor) -> GramResolvent:
        """Factorise for the matrix ``kernel`` (M, N).

        ``sigma`` must exceed the largest singular value outside the block; where it does not (the block has not
        converged) the factor is not a number, and so is all that follows from it.
        """
        left = kernel.shape[0] <= kernel.shape[1]
        side = block.u_RM if left else block.v_RN
        gram = kernel @ kernel.mT if left else kernel.mT @ kernel
        scaled = side * block.s_R.unsqueeze(1)
        system = torch.addmm(gram, scaled.mT, scaled, beta=-1.0)
        system.diagonal().add_(sigma.square())
        return cls(kernel, sigma, torch.linalg.cholesky_ex(system)[0], left)

    def form(self, p_KM: Tensor, y_KN: Tensor) -> Tensor:
        """Return the (K,) values of the second line of q."""
        if self.left:
            plain, right_K = y_KN, torch.addmm(p_KM * self.sigma, y_KN, self.kernel.mT)
        else:
            plain, right_K = p_KM, torch.addmm(y_KN * self.sigma, p_KM, self.kernel)
        half = torch.linalg.solve_triangular(self.factor, right_K.mT, upper=False)
        return (plain.square().sum(1) + half.square().sum(0)) / self.sigma


@dataclass(frozen=True, slots=True)
class CgResolvent:
    """Conjugate gradients on ``sigma^2 I - D'D``: a few applications of the operator, for convolutions.

    The value is a lower bound that rises with each iteration; the block's deflation keeps the condition number near
    ``1 / (1 - (s_{r+1}/s_1)^2)``.
    """

    operator: LayerOperator
    kernel: Tensor
    block: TrackedBlock
    sigma: Tensor
    iterations: int = 4

    def form(self, p_KM: Tensor, y_KN: Tensor) -> Tensor:
        """Return the (K,) values of the second line of q."""
        sigma_2 = self.sigma.square()
        r_KN = y_KN * self.sigma + self.operator.adjoint(self.kernel, p_KM)
        d_KN = r_KN
        norm_K = first_K = r_KN.square().sum(1)
        total_K = p_KM.square().sum(1)
        for iteration in range(self.iterations):
            image_KM = outside(self.operator.apply(self.kernel, d_KN), self.block.u_RM)
            system_KN = d_KN * sigma_2 - self.operator.adjoint(self.kernel, image_KM)
            bend_K = (d_KN * system_KN).sum(1)
            # A column that has converged, or lost its definiteness to rounding, stays where it is.
            live_K = (norm_K > 1e-10 * first_K) & (bend_K > 0)
            alpha_K = torch.where(live_K, norm_K / bend_K.clamp_min(1e-38), 0.0)
            total_K = total_K + alpha_K * norm_K  # r_0' x grows by alpha |r_j|^2
            if iteration + 1 == self.iterations:
                break
            r_KN = r_KN - alpha_K.unsqueeze(1) * system_KN
            last_K, norm_K = norm_K, r_KN.square().sum(1)
            d_KN = r_KN + (norm_K / last_K.clamp_min(1e-38)).unsqueeze(1) * d_KN
        return total_K / self.sigma


def outside(x_KM: Tensor, basis_RM: Tensor) -> Tensor:
    """Return the rows of ``x`` without their part in the span of the orthonormal rows of ``basis``."""
    return torch.addmm(x_KM, x_KM @ basis_RM.mT, basis_RM, alpha=-1.0)


def block_form(s_R: Tensor, a_KR: Tensor, b_KR: Tensor) -> Tensor:
    """Return the first line of q (K,), with ``a_k = u_k' E v_1`` and ``b_k = v_k' E' u_1``; floored denominators."""
    top, rest_R = s_R[0], s_R[1:]
    a_KR, b_KR = a_KR[:, 1:], b_KR[:, 1:]
    bottom_R = torch.maximum(top.square() - rest_R.square(), 2 * GAP_FLOOR * top.square())
    return (((a_KR.square() + b_KR.square()) * top + 2 * a_KR * b_KR * rest_R) / bottom_R).sum(1)


def curvature_form(block: TrackedBlock, resolvent: Resolvent, image_KM: Tensor, coimage_KN: Tensor) -> Tensor:
    """Return q (K,) of K changes, given ``E v_1`` and ``E' u_1`` of each.

    Args:
        block: tracked block of W.
        resolvent: of its complement, at ``sigma = s_1``.
        image_KM: rows ``E v_1``.
        coimage_KN: rows ``E' u_1``.
    """
    a_KR, b_KR = image_KM @ block.u_RM.mT, coimage_KN @ block.v_RN.mT
    p_KM = torch.addmm(image_KM, a_KR, block.u_RM, alpha=-1.0)
    y_KN = torch.addmm(coimage_KN, b_KR, block.v_RN, alpha=-1.0)
    return block_form(block.s_R, a_KR, b_KR) + resolvent.form(p_KM, y_KN)
