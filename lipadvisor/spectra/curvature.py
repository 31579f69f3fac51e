"""The second-order form q of the operator norm, split into the tracked block and its complement.

    s_1(W + E) = s_1 + u_1' E v_1 + q(E)/2 + O(|E|^3)

With ``U_r, V_r`` the block, ``D = (I - U_r U_r') W`` what is outside, ``p = (I - U_r U_r') E v_1`` and
``y = (I - V_r V_r') E' u_1``::

    q(E) = sum_{k=2..r} [ s_1 (a_k^2 + b_k^2) + 2 s_k a_k b_k ] / (s_1^2 - s_k^2)
           + ( |p|^2 + (s_1 y + D'p)' (s_1^2 I - D'D)^(-1) (s_1 y + D'p) ) / s_1

which is Lemma 12's sum over all k without an SVD: the second line is the complement's resolvent, evaluated by Cholesky
on the smaller side (:class:`GramResolvent`), by deflated conjugate gradients (:class:`CgResolvent`), or, where the
block holds everything, by nothing at all (:class:`FlatResolvent`).

Shapes: ``K`` changes at once, ``R`` block, ``M`` outputs, ``N`` inputs; any leading dimensions hold layers of one
geometry.

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

    def forms(self, p_KM: Tensor, y_KN: Tensor) -> Tensor:
        """Return the second line of q (K,), where the response itself is not asked for."""
        ...

    def both(self, p_1M: Tensor, y_1N: Tensor, p_KM: Tensor, y_KN: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return :meth:`solve` of one change and :meth:`forms` of others."""
        ...


@dataclass(frozen=True, slots=True)
class FlatResolvent:
    """Nothing of W is outside the block: ``x = p / sigma, z = y / sigma``."""

    sigma: Tensor

    def solve(self, p_KM: Tensor, y_KN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the response ``x, z``."""
        sigma_11 = self.sigma[..., None, None]
        return p_KM / sigma_11, y_KN / sigma_11

    def forms(self, p_KM: Tensor, y_KN: Tensor) -> Tensor:
        """Return the second line of q (K,)."""
        return (p_KM.square().sum(-1) + y_KN.square().sum(-1)) / self.sigma.unsqueeze(-1)

    def both(self, p_1M: Tensor, y_1N: Tensor, p_KM: Tensor, y_KN: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return the response to one change and the second line of q of others."""
        return self.solve(p_1M, y_1N), self.forms(p_KM, y_KN)


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
        left = kernel.shape[-2] <= kernel.shape[-1]
        scaled = (block.u_RM if left else block.v_RN) * block.s_R.unsqueeze(-1)
        # The block's part goes in beside the weight: one product instead of two.
        signed = torch.cat([kernel if left else kernel.mT, scaled.mT], -1)
        system = torch.cat([-(kernel if left else kernel.mT), scaled.mT], -1) @ signed.mT
        system.diagonal(dim1=-2, dim2=-1).add_(block.s_R[..., :1].square())
        return cls(kernel, block, torch.linalg.cholesky_ex(system)[0], left)

    def solve(self, p_KM: Tensor, y_KN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the response ``x, z``."""
        sigma = self._sigma()
        right_K = self._right(p_KM, y_KN)
        if self.left:
            x_KM = torch.cholesky_solve(right_K.mT, self.factor).mT
            return x_KM, (y_KN + x_KM @ self.kernel) / sigma
        z_KN = torch.cholesky_solve(right_K.mT, self.factor).mT
        return outside(p_KM + z_KN @ self.kernel.mT, self.block.u_RM) / sigma, z_KN

    def forms(self, p_KM: Tensor, y_KN: Tensor) -> Tensor:
        """Return the second line of q (K,): half of a solve is enough for a square."""
        root_K = torch.linalg.solve_triangular(self.factor, self._right(p_KM, y_KN).mT, upper=False)
        rest_K = (y_KN if self.left else p_KM).square().sum(-1)
        form_K: Tensor = (root_K.square().sum(-2) + rest_K) / self._sigma().squeeze(-1)
        return form_K

    def both(self, p_1M: Tensor, y_1N: Tensor, p_KM: Tensor, y_KN: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return the response to one change and the second line of q of others."""
        return self.solve(p_1M, y_1N), self.forms(p_KM, y_KN)

    def _sigma(self) -> Tensor:
        return self.block.s_R[..., :1].unsqueeze(-1)

    def _right(self, p_KM: Tensor, y_KN: Tensor) -> Tensor:
        if self.left:
            return p_KM * self._sigma() + y_KN @ self.kernel.mT
        return y_KN * self._sigma() + p_KM @ self.kernel


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
        sigma = self.block.s_R[..., :1].unsqueeze(-1)
        sigma_2 = sigma.square()
        r_KN = self.operator.adjoint(self.kernel, p_KM) + y_KN * sigma
        d_KN, z_KN = r_KN, torch.zeros_like(r_KN)
        norm_K1 = first_K1 = r_KN.square().sum(-1, keepdim=True)
        for iteration in range(self.iterations):
            image_KM = outside(self.operator.apply(self.kernel, d_KN), self.block.u_RM)
            system_KN = d_KN * sigma_2 - self.operator.adjoint(self.kernel, image_KM)
            bend_K1 = (d_KN * system_KN).sum(-1, keepdim=True)
            # A column that has converged, or lost its definiteness to rounding, stays where it is.
            live_K1 = (norm_K1 > 1e-10 * first_K1) & (bend_K1 > 0)
            alpha_K1 = torch.where(live_K1, norm_K1 / bend_K1.clamp_min(1e-38), 0.0)
            z_KN = torch.addcmul(z_KN, alpha_K1, d_KN)
            if iteration + 1 < self.iterations:
                r_KN = torch.addcmul(r_KN, alpha_K1, system_KN, value=-1.0)
                last_K1, norm_K1 = norm_K1, r_KN.square().sum(-1, keepdim=True)
                d_KN = torch.addcmul(r_KN, norm_K1 / last_K1.clamp_min(1e-38), d_KN)
        x_KM = outside(self.operator.apply(self.kernel, z_KN), self.block.u_RM)
        return (p_KM + x_KM) / sigma, z_KN

    def forms(self, p_KM: Tensor, y_KN: Tensor) -> Tensor:
        """Return the second line of q (K,)."""
        return complement_form(p_KM, y_KN, *self.solve(p_KM, y_KN))

    def both(self, p_1M: Tensor, y_1N: Tensor, p_KM: Tensor, y_KN: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return the response to one change and the second line of q of others, from one solve."""
        x_KM, z_KN = self.solve(torch.cat([p_1M, p_KM], -2), torch.cat([y_1N, y_KN], -2))
        forms_K = complement_form(p_KM, y_KN, x_KM[..., 1:, :], z_KN[..., 1:, :])
        return (x_KM[..., :1, :], z_KN[..., :1, :]), forms_K


def outside(x_KM: Tensor, basis_RM: Tensor) -> Tensor:
    """Return the rows of ``x`` without their part in the span of the orthonormal rows of ``basis``."""
    return x_KM - (x_KM @ basis_RM.mT) @ basis_RM


def block_form(s_R: Tensor, a_KR: Tensor, b_KR: Tensor) -> Tensor:
    """Return the first line of q (K,), with ``a_k = u_k' E v_1`` and ``b_k = v_k' E' u_1``; floored denominators."""
    top, rest_R = s_R[..., :1], s_R[..., 1:]
    a_KR, b_KR = a_KR[..., 1:], b_KR[..., 1:]
    bottom_R = torch.maximum(top.square() - rest_R.square(), 2 * GAP_FLOOR * top.square())
    same_R, cross_R = (top / bottom_R).unsqueeze(-2), (2.0 * rest_R / bottom_R).unsqueeze(-2)
    return ((a_KR.square() + b_KR.square()) * same_R + a_KR * b_KR * cross_R).sum(-1)


def curvature_form(block: TrackedBlock, resolvent: Resolvent, image_KM: Tensor, coimage_KN: Tensor) -> Tensor:
    """Return q (K,) of K changes, given ``E v_1`` (K, M) and ``E' u_1`` (K, N) of each."""
    split = split_change(block, image_KM, coimage_KN)
    return split.block_K + resolvent.forms(split.p_KM, split.y_KN)


@dataclass(frozen=True, slots=True)
class Split:
    """K changes split into the block's part of q, done, and what the complement is asked."""

    block_K: Tensor
    p_KM: Tensor
    y_KN: Tensor


def split_change(block: TrackedBlock, image_KM: Tensor, coimage_KN: Tensor) -> Split:
    """Split K changes, given ``E v_1`` (K, M) and ``E' u_1`` (K, N) of each."""
    a_KR, b_KR = image_KM @ block.u_RM.mT, coimage_KN @ block.v_RN.mT
    p_KM = image_KM - a_KR @ block.u_RM
    y_KN = coimage_KN - b_KR @ block.v_RN
    return Split(block_form(block.s_R, a_KR, b_KR), p_KM, y_KN)


def complement_form(p_KM: Tensor, y_KN: Tensor, x_KM: Tensor, z_KN: Tensor) -> Tensor:
    """Return the second line of q (K,): ``p'x + y'z``."""
    return (p_KM * x_KM).sum(-1) + (y_KN * z_KN).sum(-1)
