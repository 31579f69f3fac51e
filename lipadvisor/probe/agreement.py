"""Two checks of the captured samples, on the host: do they add up to the gradient, and is their spread its noise?

*Adding up.* The shares ``x_i`` of the captured samples must sum to the gradient that the optimizer was given, up to
one positive factor common to all layers. The factor is whatever stood between the backward pass and the optimizer: a
loss scale (1/S), an average over accumulated batches or ranks, clipping by the global norm. It belongs to the applied
gradient, so that the noise is multiplied by its square; how a clipping factor varies with the batch is left out.

*Spread.* The running ratio of half the mean squared successive difference to the variance from the samples.

Shapes: ``L`` layers. All numbers float64.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipadvisor.terms import Array

__all__ = ["CHECK_PAIRS", "DISAGREE", "Differences", "Spread", "common_factor"]

OFF = 0.05  # of a sum's size, the root of the sum of squares: mismatch that half precision may leave
UNITY = 1e-3  # a factor this close to 1 is 1
ROUGH_UNITY = 1e-2  # the same of samples that are known to half the digits
NOTHING = 1e-5  # of the largest layer's sum: what is left of one that vanishes, in float32
CANDIDATES = 64  # ratios that are tried
HORIZON = 20  # pairs over which covariances of differences are averaged
MIN_PAIRS = 4  # pairs from which on their average is used
CHECK_PAIRS = 40  # pairs over which the two variances are compared
DISAGREE = 3.0  # ratio of the two, either way, that is called a disagreement: 3 sigma for a single layer
FAINT = (
    1e-6  # of the largest layer's variance: what is left of one that no gradient moves (a spectral norm), not compared
)
CHI_SQUARE_MEDIAN = 0.4549  # one degree of freedom


def common_factor(
    shares_L: Array, squares_L: Array, gradient_L: Array, rough: bool = False
) -> tuple[float, NDArray[np.bool_]]:
    """Return the factor between captured sums and the gradient, and which layers agree with it.

    Of the layers' own ratios of gradient to sum, the factor is the one that most layers agree with; among equals,
    those whose sum stands out of its parts. Where most of them agree no better than half precision lets them, it is
    their mean. A layer of whose gradient rounding is left (an orthogonal weight: no gradient changes its norm) has no
    say and no fault. Without any captured layer, or any positive ratio, it is 1.

    Args:
        shares_L: ``sum_i u' x_i v`` over the captured samples.
        squares_L: ``sum_i (u' x_i v)^2``.
        gradient_L: ``u' G v`` of the gradient that the optimizer was given.
        rough: the shares are known to half the digits: the factor is that of all layers that agree, and none but 1
            within 1 %.
    """
    unity = ROUGH_UNITY if rough else UNITY
    size_L = np.sqrt(np.maximum(squares_L, 0.0))
    with np.errstate(invalid="ignore"):
        off_L = np.abs(gradient_L - shares_L) > unity * (np.abs(gradient_L) + size_L)
    known_L = np.isfinite(gradient_L) & np.isfinite(shares_L)
    void_L = (
        known_L & (size_L <= NOTHING * _largest(size_L)) & (np.abs(gradient_L) <= 10.0 * NOTHING * _largest(gradient_L))
    )
    if known_L.any() and not off_L[known_L & ~void_L].any():
        return 1.0, known_L
    with np.errstate(all="ignore"):
        ratio_L = gradient_L / shares_L
        weight_L = np.abs(shares_L) / size_L
    usable_L = np.isfinite(ratio_L) & np.isfinite(weight_L) & (weight_L > 0) & ~void_L
    if not usable_L.any():
        return 1.0, void_L | (np.isfinite(shares_L) & (np.abs(gradient_L) <= OFF * np.abs(size_L)))
    candidates = ratio_L[usable_L & (ratio_L > 0.0)]
    if len(candidates) > CANDIDATES:
        candidates = np.quantile(candidates, np.linspace(0.0, 1.0, CANDIDATES), method="nearest")
    best, most = 1.0, (-1, -1.0)
    agreed_L = np.zeros(len(shares_L), dtype=np.bool_)
    for factor in map(float, candidates):
        own_L = np.abs(gradient_L - factor * shares_L) <= OFF * (np.abs(gradient_L) + factor * size_L)
        standing = (int(own_L.sum()), float(weight_L[own_L & usable_L].sum()))
        if standing > most:
            best, most, agreed_L = factor, standing, own_L
    own_L = agreed_L & usable_L
    close_L = np.abs(gradient_L - best * shares_L) <= UNITY * (np.abs(gradient_L) + best * size_L)
    if 2 * int((close_L & own_L).sum()) <= int(own_L.sum()):  # passes in half precision: no layer's own ratio is right
        rough, unity = True, ROUGH_UNITY
    if rough and own_L.any():
        weights_L = weight_L[own_L] ** 2
        best = float((ratio_L[own_L] * weights_L).sum() / weights_L.sum())
    return (1.0 if abs(best - 1.0) < unity else best), agreed_L | void_L


def _largest(values_L: Array) -> float:
    """Return the largest size of the finite values; 0 without any."""
    return float(np.max(np.abs(values_L), initial=0.0, where=np.isfinite(values_L)))


@dataclass(slots=True)
class Differences:
    """Running covariance of ``u' G v / s`` and mean of ``q / s``, from successive differences.

    Attributes:
        pairs: that were taken in.
        noise_LL: covariance; None before the first pair.
        curvature_L: ``E q(noise) / s``.
    """

    pairs: int = 0
    noise_LL: Array | None = None
    curvature_L: Array | None = None

    @property
    def enough(self) -> bool:
        """Whether the average may be used."""
        return self.pairs >= MIN_PAIRS

    def add(self, half_L: Array, form_L: Array, curved: bool = True) -> None:
        """Take in a pair; one that is not finite is left out.

        Layers that have never had a gradient of their own are not-a-numbers always, and hold up nothing.

        Args:
            half_L: differences over sqrt(2).
            form_L: their forms.
            curved: whether the forms are asked for.
        """
        known_L = np.isfinite(half_L) & (np.isfinite(form_L) | (not curved))
        before_L = np.zeros_like(known_L) if self.noise_LL is None else np.isfinite(np.diag(self.noise_LL))
        if not known_L.any() or (before_L & ~known_L).any():
            return
        if (known_L & ~before_L).any():  # layers that were not ready before (convolutions of unknown size): start anew
            self.pairs, self.noise_LL, self.curvature_L = 0, None, None
        outer_LL = np.outer(half_L, half_L)
        self.pairs += 1
        if self.noise_LL is None or self.curvature_L is None:
            self.noise_LL, self.curvature_L = outer_LL, form_L.copy()
            return
        share = max(1.0 / self.pairs, 1.0 / HORIZON)
        self.noise_LL = self.noise_LL + share * (outer_LL - self.noise_LL)
        self.curvature_L = self.curvature_L + share * (form_L - self.curvature_L)


@dataclass(slots=True)
class Spread:
    """Running ratio of the variance from differences to that from samples.

    Of each pair and layer, half the squared difference over the samples' variance is chi-square with one degree of
    freedom where both are right. Its median is compared, not its mean: late in a training a few samples make most of
    the noise, and a mean follows the rarest of them.

    Attributes:
        pairs: compared so far.
        disagreements: pairs after which the ratio was out of bounds.
    """

    pairs: int = 0
    disagreements: int = 0
    _squares: deque[Array] = field(default_factory=lambda: deque(maxlen=CHECK_PAIRS))

    @property
    def ratio(self) -> float:
        """Geometric mean over the layers, of the last pairs; nan before the first."""
        if not self._squares:
            return float("nan")
        squares_PL = np.stack(self._squares)
        sorted_PL = np.sort(squares_PL[:, np.isfinite(squares_PL).all(0)], axis=0)
        count = len(sorted_PL)
        median_L = 0.5 * (sorted_PL[(count - 1) // 2] + sorted_PL[count // 2]) / CHI_SQUARE_MEDIAN
        median_L = median_L[median_L > 0]
        return float(np.exp(np.mean(np.log(median_L)))) if median_L.size else float("nan")

    @property
    def disagrees(self) -> bool:
        """Whether enough pairs say that the two are not the same."""
        return self.pairs >= CHECK_PAIRS and not 1.0 / DISAGREE <= self.ratio <= DISAGREE

    def add(self, half_L: Array, variance_L: Array) -> bool:
        """Compare a pair (differences over sqrt(2)) with the samples' variance at the step that opened it.

        Returns:
            Whether the two disagree now.
        """
        known_L = np.where(variance_L > FAINT * np.nanmax(variance_L, initial=0.0), variance_L, np.nan)
        with np.errstate(all="ignore"):
            square_L = half_L**2 / known_L
        if not np.isfinite(square_L).any():
            return False
        self.pairs += 1
        self._squares.append(square_L)
        disagrees = self.disagrees
        self.disagreements += disagrees
        return disagrees

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        squares = [[float(x) for x in square_L] for square_L in self._squares]
        return {"pairs": self.pairs, "disagreements": self.disagreements, "squares": squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.pairs, self.disagreements = int(state["pairs"]), int(state["disagreements"])
        self._squares = deque((np.array(x, dtype=np.float64) for x in state["squares"]), maxlen=CHECK_PAIRS)
