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
from lipadvisor.spectra.linear import LinearOperator
from lipadvisor.spectra.rows import (
    TINY,
    Kernel,
    Operator,
    Rows,
    adjoint,
    apply,
    at_least,
    joined,
    solved,
    squares,
    tensor,
    where,
)

__all__ = [
    "CgResolvent",
    "FlatResolvent",
    "GramResolvent",
    "Resolvent",
    "Split",
    "block_form",
    "curvature_and_ratio",
    "curvature_form",
    "gram_forms",
    "outside",
    "split_change",
]

Change = tuple[Rows, Rows]  # p and y
GAP_FLOOR = 1e-3  # smallest relative gap 1 - s_k/s_1 that enters a denominator


class Resolvent(Protocol):
    """The complement's response to changes already projected out of the block."""

    def both(self, turning: Change | None, p_KM: Rows, y_KN: Rows) -> tuple[Rows, Rows]:
        """Return the response ``z`` (1, N) to one change, and the second line of q (K,) of others, from one solve.

        With ``sigma x - D z = p`` and ``sigma z - D' x = y``, ``x, z`` is how the top pair turns out of the block, to
        first order, and ``p'x + y'z`` is the second line of q.

        Args:
            turning: ``p`` (1, M) and ``y`` (1, N) of the one; None for the first of the others.
            p_KM: of the others.
            y_KN: of the others.
        """
        ...

    def forms(self, p_KM: Rows, y_KN: Rows) -> Rows:
        """Return the second line of q (K,), where the response itself is not asked for."""
        ...


@dataclass(frozen=True, slots=True)
class FlatResolvent:
    """Nothing of W is outside the block: ``x = p / sigma, z = y / sigma``."""

    sigma: Rows

    def both(self, turning: Change | None, p_KM: Rows, y_KN: Rows) -> tuple[Rows, Rows]:
        """Return the response ``z`` (1, N) to one change, and the second line of q (K,) of others."""
        y_1N = y_KN[..., :1, :] if turning is None else turning[1]
        return y_1N / self.sigma[..., None, None], self.forms(p_KM, y_KN)

    def forms(self, p_KM: Rows, y_KN: Rows) -> Rows:
        """Return the second line of q (K,)."""
        return (squares(p_KM) + squares(y_KN)) / self.sigma[..., None]


def gram_forms(factor: Tensor, right_K: Rows, rest_K: Rows, s_R: Rows) -> Rows:
    """Return the second line of q (K,) from a Cholesky factor of the Gram system: half of a solve does for a square.

    Args:
        factor: lower, of ``sigma^2 I - D'D`` or ``sigma^2 I - D D'``.
        right_K: right-hand sides, one a row.
        rest_K: the changes on the other side, one a row.
        s_R: singular values of the block, descending; the first is sigma.
    """
    root_K = solved(factor, right_K.mT)
    return ((root_K * root_K).sum(-2) + squares(rest_K)) / s_R[..., :1]


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
        s_R = tensor(block.s_R)
        scaled = tensor(block.u_RM if left else block.v_RN) * s_R.unsqueeze(-1)
        # The block's part goes in beside the weight: one product instead of two.
        signed = torch.cat([kernel if left else kernel.mT, scaled.mT], -1)
        system = torch.cat([-(kernel if left else kernel.mT), scaled.mT], -1) @ signed.mT
        system.diagonal(dim1=-2, dim2=-1).add_(s_R[..., :1].square())
        return cls(kernel, block, torch.linalg.cholesky_ex(system)[0], left)

    def both(self, turning: Change | None, p_KM: Rows, y_KN: Rows) -> tuple[Rows, Rows]:
        """Return the response ``z`` (1, N) to one change, and the second line of q (K,) of others."""
        right_K = self._right(p_KM, y_KN)
        right_1, y_1N = right_K[..., :1, :], y_KN[..., :1, :]
        if turning is not None:
            right_1, y_1N = self._right(*turning), turning[1]
        solved_1N = torch.cholesky_solve(tensor(right_1).mT, self.factor).mT
        z_1N = solved_1N if isinstance(right_1, Tensor) else solved_1N.numpy()
        if self.left:
            z_1N = (y_1N + adjoint(self._operator, self.kernel, z_1N)) / self._sigma()
        return z_1N, self._forms(right_K, p_KM, y_KN)

    def forms(self, p_KM: Rows, y_KN: Rows) -> Rows:
        """Return the second line of q (K,): half of a solve is enough for a square."""
        return self._forms(self._right(p_KM, y_KN), p_KM, y_KN)

    @property
    def _operator(self) -> LinearOperator:
        return LinearOperator(*self.kernel.shape[-2:])

    def _forms(self, right_K: Rows, p_KM: Rows, y_KN: Rows) -> Rows:
        return gram_forms(self.factor, right_K, y_KN if self.left else p_KM, self.block.s_R)

    def _sigma(self) -> Rows:
        return self.block.s_R[..., :1, None]

    def _right(self, p_KM: Rows, y_KN: Rows) -> Rows:
        if self.left:
            return p_KM * self._sigma() + apply(self._operator, self.kernel, y_KN)
        return y_KN * self._sigma() + adjoint(self._operator, self.kernel, p_KM)


@dataclass(frozen=True, slots=True)
class CgResolvent:
    """Conjugate gradients on ``sigma^2 I - D'D``: a few applications of the operator, for convolutions.

    The form is a lower bound that rises with each iteration; the block's deflation keeps the condition number near
    ``1 / (1 - (s_{r+1}/s_1)^2)``.
    """

    operator: Operator
    kernel: Kernel
    block: TrackedBlock
    iterations: int = 3

    def both(self, turning: Change | None, p_KM: Rows, y_KN: Rows) -> tuple[Rows, Rows]:
        """Return the response ``z`` (1, N) to one change, and the second line of q (K,) of others, from one solve."""
        if turning is None:
            z_KN, forms_K = self._solve(p_KM, y_KN)
            return z_KN[..., :1, :], forms_K
        z_KN, forms_K = self._solve(joined([turning[0], p_KM]), joined([turning[1], y_KN]))
        return z_KN[..., :1, :], forms_K[..., 1:]

    def forms(self, p_KM: Rows, y_KN: Rows) -> Rows:
        """Return the second line of q (K,)."""
        return self._solve(p_KM, y_KN)[1]

    def _solve(self, p_KM: Rows, y_KN: Rows) -> tuple[Rows, Rows]:
        """Return ``z`` (K, N) and the second line of q (K,), which is ``(p'p + r'z) / sigma`` with ``r`` as below."""
        sigma = self.block.s_R[..., :1, None]
        sigma_2 = sigma * sigma
        r_KN = first_KN = adjoint(self.operator, self.kernel, p_KM) + y_KN * sigma
        d_KN, z_KN = r_KN, None
        norm_K1 = first_K1 = squares(r_KN)[..., None]
        for iteration in range(self.iterations):
            image_KM = outside(apply(self.operator, self.kernel, d_KN), self.block.u_RM)
            # d' (sigma^2 - D'D) d: the last iteration needs no more than this of the system, and saves the adjoint.
            bend_K1 = squares(d_KN)[..., None] * sigma_2 - squares(image_KM)[..., None]
            # A column that has converged, or lost its definiteness to rounding, stays where it is.
            live_K1 = (norm_K1 > 1e-10 * first_K1) & (bend_K1 > 0)
            alpha_K1 = where(live_K1, norm_K1 / at_least(bend_K1, 1e-38), 0.0)
            more_KN = alpha_K1 * d_KN
            z_KN = more_KN if z_KN is None else z_KN + more_KN
            if iteration + 1 < self.iterations:
                r_KN = r_KN - (more_KN * sigma_2 - alpha_K1 * adjoint(self.operator, self.kernel, image_KM))
                last_K1, norm_K1 = norm_K1, squares(r_KN)[..., None]
                d_KN = r_KN + norm_K1 / at_least(last_K1, 1e-38) * d_KN
        return z_KN, (squares(p_KM) + (first_KN * z_KN).sum(-1)) / sigma[..., 0]


def outside(x_KM: Rows, basis_RM: Rows) -> Rows:
    """Return the rows of ``x`` without their part in the span of the orthonormal rows of ``basis``."""
    return x_KM - (x_KM @ basis_RM.mT) @ basis_RM


def block_form(s_R: Rows, a_KR: Rows, b_KR: Rows) -> Rows:
    """Return the first line of q (K,), with ``a_k = u_k' E v_1`` and ``b_k = v_k' E' u_1``; floored denominators."""
    top, rest_R = s_R[..., :1], s_R[..., 1:]
    a_KR, b_KR = a_KR[..., 1:], b_KR[..., 1:]
    ratio_R = rest_R / top
    same_R = 1.0 / (at_least((1.0 - ratio_R) * (1.0 + ratio_R), 2.0 * GAP_FLOOR) * top)
    same_R, cross_R = same_R[..., None, :], (2.0 * ratio_R * same_R)[..., None, :]
    return ((a_KR * a_KR + b_KR * b_KR) * same_R + a_KR * b_KR * cross_R).sum(-1)


def curvature_form(block: TrackedBlock, resolvent: Resolvent, image_KM: Rows, coimage_KN: Rows) -> Rows:
    """Return q (K,) of K changes, given ``E v_1`` (K, M) and ``E' u_1`` (K, N) of each."""
    split = split_change(block, image_KM, coimage_KN)
    return split.block_K + resolvent.forms(split.p_KM, split.y_KN)


def curvature_and_ratio(
    block: TrackedBlock, resolvent: Resolvent, image_KM: Rows, coimage_KN: Rows
) -> tuple[Rows, Rows]:
    """Return :func:`curvature_form`, and the complement's part of all K forms over ``(|p|^2 + |y|^2) / s_1`` (...)."""
    split = split_change(block, image_KM, coimage_KN)
    forms_K = resolvent.forms(split.p_KM, split.y_KN)
    sizes = (squares(split.p_KM) + squares(split.y_KN)).sum(-1)
    return split.block_K + forms_K, forms_K.sum(-1) * block.s_R[..., 0] / at_least(sizes, TINY)


@dataclass(frozen=True, slots=True)
class Split:
    """K changes split into the block's part of q, done, and what the complement is asked."""

    block_K: Rows
    p_KM: Rows
    y_KN: Rows


def split_change(block: TrackedBlock, image_KM: Rows, coimage_KN: Rows) -> Split:
    """Split K changes, given ``E v_1`` (K, M) and ``E' u_1`` (K, N) of each."""
    a_KR, b_KR = image_KM @ block.u_RM.mT, coimage_KN @ block.v_RN.mT
    p_KM = image_KM - a_KR @ block.u_RM
    y_KN = coimage_KN - b_KR @ block.v_RN
    return Split(block_form(block.s_R, a_KR, b_KR), p_KM, y_KN)
