"""Checks a probe's arguments before any work starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch.utils.data import DataLoader

from lipadvisor.probe.population import population_of

__all__ = ["LEVELS", "check_arguments", "check_noise_arguments", "globs"]

LEVELS = ("norms", "drift", "noise", "full")


def check_arguments(level: str, max_overhead: float, interval: int | None, renew_every: int = 1) -> None:
    """Check what is to be measured, and how often.

    Raises:
        ValueError: an argument is out of range.
    """
    if level not in LEVELS:
        raise ValueError(f"Probe(level=...) must be one of {LEVELS}, got {level!r}.")
    if not 0.0 < max_overhead <= 1.0:
        raise ValueError(f"Probe(max_overhead=...) must be in (0, 1], got {max_overhead!r}.")
    if interval is not None and (isinstance(interval, bool) or not isinstance(interval, int) or interval < 1):
        raise ValueError(f"Probe(interval=...) must be an integer >= 1 or None, got {interval!r}.")
    if isinstance(renew_every, bool) or not isinstance(renew_every, int) or renew_every < 1:
        raise ValueError(f"Probe(renew_every=...) must be an integer >= 1, got {renew_every!r}.")


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


def globs(argument: str, value: str | Iterable[str]) -> tuple[str, ...]:
    """Return globs over names; a string is one of them, and not many of a letter each.

    Raises:
        ValueError: one of them is no string.
    """
    whole = isinstance(value, Iterable) and not isinstance(value, (bytes, Mapping))
    found: tuple[Any, ...] = (value,) if isinstance(value, str) else tuple(value) if whole else (None,)
    if not all(isinstance(glob, str) for glob in found):
        raise ValueError(f"Probe({argument}=...) must be globs over the names of layers, got {value!r}.")
    return found
