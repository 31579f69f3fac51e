"""What a user may say of a training's samples, and what is said of its noise in return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from lipadvisor.probe.population import population_of

__all__ = ["NoiseReport", "check_noise_arguments"]


def check_noise_arguments(independent_samples: object, population: int | DataLoader[Any] | None) -> int | None:
    """Check what a probe was told of its samples; return the number of rows they are drawn from, if it is known.

    Raises:
        ValueError: an argument is out of range.
    """
    if independent_samples is not None and not isinstance(independent_samples, bool):
        raise ValueError(f"Probe(independent_samples=...) must be None, True or False, got {independent_samples!r}.")
    if isinstance(population, DataLoader):
        return population_of(population)
    if population is not None and (isinstance(population, bool) or not isinstance(population, int) or population < 1):
        raise ValueError(f"Probe(population=...) must be an integer >= 1, a DataLoader or None, got {population!r}.")
    return population


@dataclass(frozen=True, slots=True)
class NoiseReport:
    """How the noise was measured last, and what its checks said so far.

    Attributes:
        method: "samples"; "differences" of successive gradients; "updates" for those of the updates of an optimizer
            whose use of a gradient is not known; "none" before the first measurement.
        coupled_by: layers that coupled the samples at the last measured step.
        factor: by which the captured gradients had to be multiplied to give the optimizer's: 1/S under a loss scale S.
        unmatched: measured steps at which a layer's samples did not add up to its gradient, by name; none if never.
        pairs: successive differences taken in so far.
        ratio: running ratio of the variance from differences to that from samples; nan where it is not known.
        compared: pairs that entered the ratio.
        disagreements: of these, how many found the ratio out of bounds (3, either way, after 40 pairs).
    """

    method: str
    coupled_by: tuple[str, ...]
    factor: float
    unmatched: tuple[tuple[str, int], ...]
    pairs: int
    ratio: float
    compared: int
    disagreements: int
