"""Noise of other batches than the measured one: clipped, of another size, from a finite population."""

from __future__ import annotations

from dataclasses import replace

from lipadvisor.terms import Terms

__all__ = ["batches_of", "clipped", "finite_population"]


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
