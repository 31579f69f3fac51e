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

__all__ = [
    "CgResolvent",
    "FlatResolvent",
    "GramResolvent",
    "Resolvent",
    "Split",
    "block_form",
    "complement_form",
    "curvature_form",
    "outside",
    "split_change",
]

GAP_FLOOR = 1e-3  # smallest relative gap 1 - s_k/s_1 that enters a denominator


class Resolvent(Protocol):
    """The complement's response to changes already projected out of the block."""

    def solve(self, p_KM: Tensor, y_KN: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x`` (K, M) and ``z`` (K, N) with ``sigma x - D z = p`` and ``sigma z - D' x = y``.

        ``x, z`` is how the top pair turns out of the block, to first order; ``p'x + y'z`` is the second line of q.
        """
        ...


@dataclass(frozen=True, slots=True)
class FlatResolvent:
    """Nothing of W is outside the block: ``x = p / sigma, z = y / sigma``."""

    sigma: Tensor

    def solve(self, p_KM: Tensor, y_KN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the response ``x, z``."""
        return p_KM / self.sigma, y_KN / self.sigma


@dataclass(frozen=True, slots=True)
class GramResolvent:
    """Exact: one Cholesky factor of ``sigma^2 I - D'D`` (or of ``sigma^2 I - D D'``) serves any number of changes."""

    kernel: Tensor
    block: TrackedBlock
    factor: Tensor
    left: bool  # the Gram matrix is on the output side

    @classmethod
    def build(cls, kernel: Tensor, block: TrackedBlock) -> GramResolvent:
        """Factorise for the matrix ``kernel`` (M, N) at ``sigma = s_1``.

        s_1 must exceed the largest singular value outside the block; where it does not (the block has not converged)
        the factor is not a number, and so is all that follows from it.
        """
        left = kernel.shape[0] <= kernel.shape[1]
        scaled = (block.u_RM if left else block.v_RN) * block.s_R.unsqueeze(1)
        gram = kernel @ kernel.mT if left else kernel.mT @ kernel
        system = torch.addmm(gram, scaled.mT, scaled, alpha=1.0, beta=-1.0)
        system.diagonal().add_(block.s_R[0].square())
        return cls(kernel, block, torch.linalg.cholesky_ex(system)[0], left)

    def solve(self, p_KM: Tensor, y_KN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the response ``x, z``."""
        sigma = self.block.s_R[0]
        if self.left:
            x_KM = self._inverse(torch.addmm(p_KM * sigma, y_KN, self.kernel.mT))
            return x_KM, torch.addmm(y_KN, x_KM, self.kernel) / sigma
        z_KN = self._inverse(torch.addmm(y_KN * sigma, p_KM, self.kernel))
        return outside(torch.addmm(p_KM, z_KN, self.kernel.mT), self.block.u_RM) / sigma, z_KN

    def _inverse(self, right_K: Tensor) -> Tensor:
        return torch.cholesky_solve(right_K.mT, self.factor).mT


@dataclass(frozen=True, slots=True)
class CgResolvent:
    """Conjugate gradients on ``sigma^2 I - D'D``: a few applications of the operator, for convolutions.

    The form is a lower bound that rises with each iteration; the block's deflation keeps the condition number near
    ``1 / (1 - (s_{r+1}/s_1)^2)``.
    """

    operator: LayerOperator
    kernel: Tensor
    block: TrackedBlock
    iterations: int = 3

    def solve(self, p_KM: Tensor, y_KN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the response ``x, z``."""
        sigma = self.block.s_R[0]
        sigma_2 = sigma.square()
        r_KN = torch.addcmul(self.operator.adjoint(self.kernel, p_KM), y_KN, sigma)
        d_KN, z_KN = r_KN, torch.zeros_like(r_KN)
        norm_K1 = first_K1 = r_KN.square().sum(1, keepdim=True)
        for iteration in range(self.iterations):
            image_KM = outside(self.operator.apply(self.kernel, d_KN), self.block.u_RM)
            system_KN = d_KN * sigma_2 - self.operator.adjoint(self.kernel, image_KM)
            bend_K1 = (d_KN * system_KN).sum(1, keepdim=True)
            # A column that has converged, or lost its definiteness to rounding, stays where it is.
            live_K1 = (norm_K1 > 1e-10 * first_K1) & (bend_K1 > 0)
            alpha_K1 = torch.where(live_K1, norm_K1 / bend_K1.clamp_min(1e-38), 0.0)
            z_KN = torch.addcmul(z_KN, alpha_K1, d_KN)
            if iteration + 1 < self.iterations:
                r_KN = torch.addcmul(r_KN, alpha_K1, system_KN, value=-1.0)
                last_K1, norm_K1 = norm_K1, r_KN.square().sum(1, keepdim=True)
                d_KN = torch.addcmul(r_KN, norm_K1 / last_K1.clamp_min(1e-38), d_KN)
        x_KM = outside(self.operator.apply(self.kernel, z_KN), self.block.u_RM)
        return (p_KM + x_KM) / sigma, z_KN


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
    """Return q (K,) of K changes, given ``E v_1`` (K, M) and ``E' u_1`` (K, N) of each."""
    split = split_change(block, image_KM, coimage_KN)
    x_KM, z_KN = resolvent.solve(split.p_KM, split.y_KN)
    return split.block_K + complement_form(split.p_KM, split.y_KN, x_KM, z_KN)


@dataclass(frozen=True, slots=True)
class Split:
    """K changes split into the block's part of q, done, and what the complement is asked."""

    block_K: Tensor
    p_KM: Tensor
    y_KN: Tensor


def split_change(block: TrackedBlock, image_KM: Tensor, coimage_KN: Tensor) -> Split:
    """Split K changes, given ``E v_1`` (K, M) and ``E' u_1`` (K, N) of each."""
    a_KR, b_KR = image_KM @ block.u_RM.mT, coimage_KN @ block.v_RN.mT
    p_KM = torch.addmm(image_KM, a_KR, block.u_RM, alpha=-1.0)
    y_KN = torch.addmm(coimage_KN, b_KR, block.v_RN, alpha=-1.0)
    return Split(block_form(block.s_R, a_KR, b_KR), p_KM, y_KN)


def complement_form(p_KM: Tensor, y_KN: Tensor, x_KM: Tensor, z_KN: Tensor) -> Tensor:
    """Return the second line of q (K,): ``p'x + y'z``."""
    return (p_KM * x_KM).sum(1) + (y_KN * z_KN).sum(1)
