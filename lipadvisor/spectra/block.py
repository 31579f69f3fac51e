"""A tracked block of top singular vectors: warm-started, Chebyshev-filtered subspace iteration with Rayleigh-Ritz.

One refresh filters the old right vectors by a Chebyshev polynomial of ``W'W`` that is small on everything below the
block, then solves the small problem in the filtered subspace. Layers whose smaller side is little more than the block
are decomposed whole, which is exact.

Shapes: ``R`` vectors of the block, ``M`` outputs, ``N`` inputs; any leading dimensions hold layers of one geometry,
each with a weight of its own.

References:
    Zhou, Saad, Tiago, Chelikowsky (2006), *Self-consistent-field calculations using Chebyshev-filtered subspace
    iteration*, J. Comput. Phys. 219, Algorithm 4.2 (the filter).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipadvisor.spectra.operator import LayerOperator
from lipadvisor.spectra.rows import (
    TINY,
    Kernel,
    Operator,
    Rows,
    adjoint,
    apply,
    at_least,
    decomposed,
    eigen,
    extremes,
    identity,
    like,
    normal,
    orthonormal,
    root,
    rows,
    squares,
    tensor,
    whitening,
    wide,
)

__all__ = ["TrackedBlock", "block_rank", "cold_start", "refresh", "residual", "start_vectors"]

# The filter's cut-off is kept above this share of s_1^2, so that float32 does not lose the lower vectors of the block.
MIN_CUTOFF = 0.02
COLD_DEGREE, COLD_REFRESHES = 12, 20  # at set-up: few refreshes with steep filters take the fewest applications
CACHED = 262_144  # entries of the vectors of so many layers are brought to converge at a time
NEAR = 0.5  # distance of a unit row from those before it, above which rows count as nearly orthogonal
LONG = 2_048  # entries of a vector from which the factorisation's own time counts


@dataclass(frozen=True, slots=True)
class TrackedBlock:
    """Ritz approximation of the top R singular triples, descending.

    Attributes:
        u_RM: left vectors, orthonormal rows; ``W' u_k = s_k v_k`` holds to rounding.
        s_R: singular values; each a lower bound of the true one.
        v_RN: right vectors, orthonormal rows.
        complete: True where the block holds all of the smaller side, so that nothing is left outside.
    """

    u_RM: Tensor
    s_R: Tensor
    v_RN: Tensor
    complete: bool

    def layer(self, place: int) -> TrackedBlock:
        """Return the block of one of the layers, without the leading dimension."""
        return TrackedBlock(self.u_RM[place], self.s_R[place], self.v_RN[place], self.complete)

    def replaced(self, places_k: Tensor, part: TrackedBlock) -> TrackedBlock:
        """Return the blocks of all layers, those of the ones at ``places`` as in ``part``."""
        if len(places_k) == len(self.s_R):
            return part
        own = (self.u_RM, self.s_R, self.v_RN)
        new = (part.u_RM, part.s_R, part.v_RN)
        u_RM, s_R, v_RN = (x.index_copy(0, places_k, y) for x, y in zip(own, new, strict=True))
        return TrackedBlock(u_RM, s_R, v_RN, self.complete)

    def rows(self) -> TrackedBlock:
        """Return the same in arrays, see :mod:`lipadvisor.spectra.rows`."""
        return TrackedBlock(rows(self.u_RM), rows(self.s_R), rows(self.v_RN), self.complete)

    def tensors(self) -> TrackedBlock:
        """Return the same in tensors."""
        return TrackedBlock(tensor(self.u_RM), tensor(self.s_R), tensor(self.v_RN), self.complete)


def block_rank(operator: LayerOperator, rank: int) -> int:
    """Return the number of vectors to track: ``rank``, or all of a side that is at most twice that."""
    side = min(operator.inputs, operator.outputs)
    return side if side <= 2 * rank else rank


def start_vectors(operator: LayerOperator, rank: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Return random orthonormal rows (R, N) drawn on the CPU from ``generator``, on ``like``'s device and type."""
    count = block_rank(operator, rank)
    random_NR = torch.randn(operator.inputs, count, generator=generator, dtype=torch.float64)
    rows: Tensor = torch.linalg.qr(random_NR)[0].mT.to(like).contiguous()
    return rows


def refresh(
    operator: Operator, kernel: Kernel, v_RN: Rows, degree: int = 4, image_RM: Rows | None = None
) -> TrackedBlock:
    """Return the block of ``kernel`` after one filtered subspace iteration from ``v_RN``.

    Args:
        operator: geometry of the layer.
        kernel: its weight.
        v_RN: right vectors to start from; any basis of roughly the right space.
        degree: degree of the filter in ``W'W``, >= 0; each costs one application and one adjoint.
        image_RM: the weight's images of ``v_RN``, where they are known.
    """
    count = v_RN.shape[-2]
    complete = count == min(operator.inputs, operator.outputs)
    # Of short vectors some may be all zero: small matrices share a pack with larger ones, filled up with zeros.
    near = image_RM is not None and min(operator.inputs, operator.outputs) >= LONG
    near = near and not complete and (degree == 0 or (degree <= 2 and tensor(v_RN).dtype == torch.float32))
    direct = getattr(operator, "top", None)  # of operators whose singular vectors are known beforehand
    if direct is not None:
        left_RM, s_R, right_RN = direct(kernel, count)
        known = TrackedBlock(left_RM, s_R, right_RN, complete)
        return known if isinstance(v_RN, Tensor) else known.rows()
    if near and image_RM is not None:
        if degree > 0:
            image_RM = apply(operator, kernel, _filter(operator, kernel, v_RN, degree, image_RM))
        return _between_images(image_RM, adjoint(operator, kernel, image_RM), whitening(image_RM))
    if count == operator.outputs:  # every left vector is in: the basis may as well be the unit vectors
        q_RM = identity(count, v_RN)
    else:
        if complete:
            v_RN = identity(count, v_RN)
        elif degree > 0:
            v_RN = _filter(operator, kernel, v_RN, degree, image_RM)
        if complete or degree > 0 or image_RM is None:
            image_RM = apply(operator, kernel, v_RN)
        if not complete and not isinstance(image_RM, Tensor):
            white_RR = whitening(image_RM, NEAR)
            if white_RR is not None:
                return _between_images(image_RM, adjoint(operator, kernel, image_RM), white_RR)
        q_RM, _ = orthonormal(image_RM)
    basis_RN, upper_RR = orthonormal(adjoint(operator, kernel, q_RM))
    # Q'W = upper' basis, and upper' = x diag(s) z
    x_RR, s_R, z_RR = decomposed(upper_RR.mT)
    return TrackedBlock(x_RR.mT @ q_RM, s_R, z_RR @ basis_RN, complete)


def _between_images(image_RM: Rows, coimage_RN: Rows, white_RR: Rows) -> TrackedBlock:
    """Return the block between left vectors that were orthogonal a small step ago and their images under the adjoint.

    Gram matrices in float64 stand for the factorisations: each vector is read four times in all, and this is as good
    as long as the rows, once they are of one length, are nearly orthogonal.
    """
    # q = white image is orthonormal, and W'q = white coimage
    squared_RR = white_RR @ wide(coimage_RN @ coimage_RN.mT) @ white_RR.mT
    power_R, x_RR = eigen(normal(squared_RR))
    s_R, turn_RR = root(at_least(power_R, 0.0)), x_RR.mT @ white_RR
    u_RM = like(turn_RR, image_RM) @ image_RM
    v_RN = like(turn_RR / at_least(s_R, 1e-30)[..., None], image_RM) @ coimage_RN
    return TrackedBlock(u_RM, like(s_R, image_RM), v_RN, False)


def residual(operator: Operator, kernel: Kernel, block: TrackedBlock) -> Rows:
    """Return ``|W v - s u| / s`` of the top pair (l, 1)."""
    off_l1M = apply(operator, kernel, block.v_RN[:, :1]) - block.u_RM[:, :1] * block.s_R[:, :1, None]
    return root(squares(off_l1M)) / block.s_R[:, :1]


def cold_start(operator: LayerOperator, kernel: Tensor, v_RN: Tensor, tolerance: float = 1e-5) -> TrackedBlock:
    """Return the block after as many refreshes as it takes: at set-up only, since it looks at values on the host.

    Args:
        operator: geometry of the layer.
        kernel: its weight.
        v_RN: right vectors to start from.
        tolerance: largest relative rise of s_1 in a refresh that counts as converged: the next would bring less than
            a hundredth of it. A hundred times that for the block's sum.
    """
    if v_RN.dim() == 2:
        return cold_start(operator, kernel.unsqueeze(0), v_RN.unsqueeze(0), tolerance).layer(0)
    few = max(1, CACHED // v_RN[0].numel())
    if len(v_RN) > few:
        parts = [
            cold_start(operator, *pair, tolerance) for pair in zip(kernel.split(few), v_RN.split(few), strict=True)
        ]
        u_RM, s_R, v_RN = (torch.cat([getattr(part, name) for part in parts]) for name in ("u_RM", "s_R", "v_RN"))
        return TrackedBlock(u_RM, s_R, v_RN, parts[0].complete)
    # Random vectors have Ritz values far too low for a cut-off: two plain powers first.
    block = refresh(operator, kernel, operator.adjoint(kernel, operator.apply(kernel, v_RN)), degree=0)
    if block.complete:
        return block
    allowed = torch.tensor([tolerance, 1e2 * tolerance]).to(kernel)
    last_l2 = _height(block)
    open_l = torch.arange(len(v_RN), device=v_RN.device)
    agree = getattr(operator, "agree", None)  # of operators that several processes apply together
    for _ in range(COLD_REFRESHES):
        part = refresh(operator, kernel[open_l], block.v_RN[open_l], COLD_DEGREE)
        block = block.replaced(open_l, part)
        now_l2 = _height(part)
        rising_l = ((now_l2 - last_l2[open_l]).abs() > now_l2.abs() * allowed).any(-1)
        if agree is not None:
            rising_l = agree(rising_l)
        last_l2[open_l] = now_l2
        open_l = open_l[rising_l]  # those that have converged, or are not a number, are done
        if not len(open_l):
            break
    return block


def _height(block: TrackedBlock) -> Tensor:
    """Return s_1 and the block's sum (..., 2)."""
    return torch.stack([block.s_R[..., 0], block.s_R.sum(-1)], dim=-1)


def _filter(operator: Operator, kernel: Kernel, v_RN: Rows, degree: int, image_RM: Rows | None) -> Rows:
    """Return ``T_degree(2 W'W / cutoff - 1) v``: at most 1 below the cut-off, growing fast above it."""
    if image_RM is None:
        image_RM = apply(operator, kernel, v_RN)
    least_1, most_1 = extremes(squares(image_RM))
    half_11 = 0.5 * at_least(most_1 * at_least(least_1 / at_least(most_1, TINY), MIN_CUTOFF), TINY)[..., None]
    before_RN, now_RN = v_RN, adjoint(operator, kernel, image_RM) / half_11 - v_RN
    for _ in range(degree - 1):
        squared_RN = adjoint(operator, kernel, apply(operator, kernel, now_RN))
        before_RN, now_RN = now_RN, (squared_RN / half_11 - now_RN) * 2.0 - before_RN
    return now_RN
