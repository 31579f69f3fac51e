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
    "curvature_form",
    "gram_forms",
    "outside",
    "split_change",
]

Change = tuple[Tensor, Tensor]  # p and y
GAP_FLOOR = 1e-3  # smallest relative gap 1 - s_k/s_1 that enters a denominator


class Resolvent(Protocol):
    """The complement's response to changes already projected out of the block."""

    def both(self, turning: Change | None, p_KM: Tensor, y_KN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the response ``z`` (1, N) to one change, and the second line of q (K,) of others, from one solve.

        With ``sigma x - D z = p`` and ``sigma z - D' x = y``, ``x, z`` is how the top pair turns out of the block, to
        first order, and ``p'x + y'z`` is the second line of q.

        Args:
            turning: ``p`` (1, M) and ``y`` (1, N) of the one; None for the first of the others.
            p_KM: of the others.
            y_KN: of the others.
        """
        ...

    def forms(self, p_KM: Tensor, y_KN: Tensor) -> Tensor:
        """Return the second line of q (K,), where the response itself is not asked for."""
        ...


@dataclass(frozen=True, slots=True)
class FlatResolvent:
    """Nothing of W is outside the block: ``x = p / sigma, z = y / sigma``."""

    sigma: Tensor

    def both(self, turning: Change | None, p_KM: Tensor, y_KN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the response ``z`` (1, N) to one change, and the second line of q (K,) of others."""
        y_1N = y_KN[..., :1, :] if turning is None else turning[1]
        return y_1N / self.sigma[..., None, None], self.forms(p_KM, y_KN)

    def forms(self, p_KM: Tensor, y_KN: Tensor) -> Tensor:
        """Return the second line of q (K,)."""
        return (p_KM.square().sum(-1) + y_KN.square().sum(-1)) / self.sigma.unsqueeze(-1)


def gram_forms(factor: Tensor, right_K: Tensor, rest_K: Tensor, s_R: Tensor) -> Tensor:
    """Return the second line of q (K,) from a Cholesky factor of the Gram system: half of a solve does for a square.

    Args:
        factor: lower, of ``sigma^2 I - D'D`` or ``sigma^2 I - D D'``.
        right_K: right-hand sides, one a row.
        rest_K: the changes on the other side, one a row.
        s_R: singular values of the block, descending; the first is sigma.
    """
    root_K = torch.linalg.solve_triangular(factor, right_K.mT, upper=False)
    form_K: Tensor = (root_K.square().sum(-2) + rest_K.square().sum(-1)) / s_R[..., :1]
    return form_K


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

    def both(self, turning: Change | None, p_KM: Tensor, y_KN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the response ``z`` (1, N) to one change, and the second line of q (K,) of others."""
        p_1M, y_1N = (p_KM[..., :1, :], y_KN[..., :1, :]) if turning is None else turning
        solved_1 = torch.cholesky_solve(self._right(p_1M, y_1N).mT, self.factor).mT
        z_1N = (y_1N + solved_1 @ self.kernel) / self._sigma() if self.left else solved_1
        return z_1N, self.forms(p_KM, y_KN)

    def forms(self, p_KM: Tensor, y_KN: Tensor) -> Tensor:
        """Return the second line of q (K,): half of a solve is enough for a square."""
        return gram_forms(self.factor, self._right(p_KM, y_KN), y_KN if self.left else p_KM, self.block.s_R)

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

    def both(self, turning: Change | None, p_KM: Tensor, y_KN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the response ``z`` (1, N) to one change, and the second line of q (K,) of others, from one solve."""
        if turning is None:
            z_KN, forms_K = self._solve(p_KM, y_KN)
            return z_KN[..., :1, :], forms_K
        z_KN, forms_K = self._solve(torch.cat([turning[0], p_KM], -2), torch.cat([turning[1], y_KN], -2))
        return z_KN[..., :1, :], forms_K[..., 1:]

    def forms(self, p_KM: Tensor, y_KN: Tensor) -> Tensor:
        """Return the second line of q (K,)."""
        return self._solve(p_KM, y_KN)[1]

    def _solve(self, p_KM: Tensor, y_KN: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``z`` (K, N) and the second line of q (K,), which is ``(p'p + r'z) / sigma`` with ``r`` as below."""
        sigma = self.block.s_R[..., :1].unsqueeze(-1)
        sigma_2 = sigma.square()
        r_KN = first_KN = self.operator.adjoint(self.kernel, p_KM) + y_KN * sigma
        d_KN, z_KN = r_KN, torch.zeros_like(r_KN)
        norm_K1 = first_K1 = r_KN.square().sum(-1, keepdim=True)
        for iteration in range(self.iterations):
            image_KM = outside(self.operator.apply(self.kernel, d_KN), self.block.u_RM)
            # d' (sigma^2 - D'D) d: the last iteration needs no more than this of the system, and saves the adjoint.
            bend_K1 = d_KN.square().sum(-1, keepdim=True) * sigma_2 - image_KM.square().sum(-1, keepdim=True)
            # A column that has converged, or lost its definiteness to rounding, stays where it is.
            live_K1 = (norm_K1 > 1e-10 * first_K1) & (bend_K1 > 0)
            alpha_K1 = torch.where(live_K1, norm_K1 / bend_K1.clamp_min(1e-38), 0.0)
            z_KN = torch.addcmul(z_KN, alpha_K1, d_KN)
            if iteration + 1 < self.iterations:
                system_KN = d_KN * sigma_2 - self.operator.adjoint(self.kernel, image_KM)
                r_KN = torch.addcmul(r_KN, alpha_K1, system_KN, value=-1.0)
                last_K1, norm_K1 = norm_K1, r_KN.square().sum(-1, keepdim=True)
                d_KN = torch.addcmul(r_KN, norm_K1 / last_K1.clamp_min(1e-38), d_KN)
        form_K1 = (p_KM.square().sum(-1, keepdim=True) + (first_KN * z_KN).sum(-1, keepdim=True)) / sigma
        return z_KN, form_K1.squeeze(-1)


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
