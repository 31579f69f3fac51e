"""Noise of other batches than the measured one (clipped, of another size, from a finite population), and its split."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lipadvisor.terms import Array, Terms

__all__ = ["NoiseSplit", "batches_of", "clipped", "finite_population", "noise_split"]


@dataclass(frozen=True, slots=True)
class NoiseSplit:
    """Variance of a projected batch gradient in its two parts, nats^2 per tau^2; the first and their sum are >= 0."""

    variance: float  # from the entries' own variances: the diagonal of the gradient's covariance
    covariance: float  # from pairs of entries: the rest of it

    @property
    def total(self) -> float:
        """The projection's variance."""
        return self.variance + self.covariance


def noise_split(covector_P: Array, variance_P: Array, scalar_B: Array, batch_size: int = 1) -> NoiseSplit:
    """Split the noise of a projected gradient into the part of single entries and the part of pairs ([D] Prop 6).

    With the covector ``c`` (``dZ/dW``, or ``u_1 v_1' / s_1`` of one layer) and the gradients ``g_i`` of samples,
    ``Var(c . g) = sum_p c_p^2 Var(g_p) + sum_{p != q} c_p c_q Cov(g_p, g_q)``. The whole needs one number of each
    sample, the first part the entries' second moments, and the last one is the difference.

    Args:
        covector_P: of all entries, per unit of the gradient.
        variance_P: unbiased variance over samples of each entry of their gradients.
        scalar_B: ``c . g_i`` of each sample, at least 2.
        batch_size: of the batches whose mean's noise is asked for, >= 1; independent draws ([D] Prop 5).

    Raises:
        ValueError: the shapes do not agree, there are fewer than 2 samples, or ``batch_size`` is out of range.
    """
    if covector_P.shape != variance_P.shape:
        raise ValueError(
            f"noise_split(covector_P=..., variance_P=...) must have one shape, got {covector_P.shape} and "
            f"{variance_P.shape}."
        )
    if len(scalar_B) < 2:
        raise ValueError(f"noise_split(scalar_B=...) must be of at least 2 samples, got {len(scalar_B)}.")
    if batch_size < 1:
        raise ValueError(f"noise_split(batch_size=...) must be at least 1, got {batch_size!r}.")
    own = float(np.sum(covector_P**2 * variance_P))
    whole = float(np.var(scalar_B, ddof=1))
    return NoiseSplit(own / batch_size, (whole - own) / batch_size)


def clipped(terms: Terms, factor: float) -> Terms:
    """Return the measurement of a step whose gradient was multiplied by ``factor`` before the optimizer saw it.

    The direction was measured as applied; the noise, read from the backward pass, scales with the square. How the
    factor itself varies with the batch is left out.

    Args:
        terms: as measured.
        factor: in (0, 1].

    Raises:
        ValueError: ``factor`` is out of range.
    """
    if not 0.0 < factor <= 1.0:
        raise ValueError(f"clipped(factor=...) must be in (0, 1], got {factor!r}.")
    return replace(terms, noise_LL=terms.noise_LL * factor**2, noise_curvature_L=terms.noise_curvature_L * factor**2)


def finite_population(batch_size: int, population: int) -> float:
    """Return the factor on the variance of a batch's mean when its samples are drawn without replacement.

    ``1 - M/N`` for ``M`` of ``N`` samples, beside the unbiased (``N - 1``) variance of the population; 0 for all of it.

    Raises:
        ValueError: not ``1 <= batch_size <= population``.
    """
    if not 1 <= batch_size <= population:
        raise ValueError(
            f"finite_population(batch_size=..., population=...) must be 1 <= batch_size <= population, "
            f"got {batch_size!r} and {population!r}."
        )
    return 1.0 - batch_size / population


def batches_of(terms: Terms, batch_size: int, population: int | None = None) -> Terms:
    """Return the measurement with the noise that batches of another size would have.

    Args:
        terms: its noise belongs to means of ``terms.batch_size`` samples ([D] Prop 5: ``1 / M``), independent ones
            or, where ``terms.population`` says so, of a finite population.
        batch_size: samples of the batches in question.
        population: rows they are drawn from without replacement; None for independent draws.

    Raises:
        ValueError: ``batch_size`` or ``population`` is out of range, or the measured batches were the whole
            population: they have no noise to scale.
    """
    if batch_size < 1:
        raise ValueError(f"batches_of(batch_size=...) must be at least 1, got {batch_size!r}.")
    factor = terms.batch_size / batch_size
    if terms.population is not None:
        if terms.batch_size >= terms.population:
            raise ValueError(
                f"batches_of(terms=...) must be of batches smaller than their population, got {terms.batch_size} of "
                f"{terms.population}."
            )
        factor /= finite_population(terms.batch_size, terms.population)
    if population is not None:
        factor *= finite_population(batch_size, population)
    return replace(
        terms,
        noise_LL=terms.noise_LL * factor,
        noise_curvature_L=terms.noise_curvature_L * factor,
        batch_size=batch_size,
        population=population,
    )
