"""Policies by name, as the command line and the studies call them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from lipadvisor.policies.contract import Policy
from lipadvisor.policies.greedy import Greedy
from lipadvisor.policies.initialization import Initialization
from lipadvisor.policies.lipschitz import Lipschitz
from lipadvisor.policies.plateau import Plateau
from lipadvisor.policies.predictive import Predictive
from lipadvisor.policies.schedules import Constant, Cosine, Linear, OneCycle, Step, WarmupStableDecay
from lipadvisor.policies.spectral_cap import SpectralCap
from lipadvisor.policies.spectral_initialization import SpectralInitialization

__all__ = ["POLICIES", "named_policy"]

POLICIES: dict[str, Callable[..., Policy[Any]]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "wsd": WarmupStableDecay,
    "one_cycle": OneCycle,
    "step": Step,
    "plateau": Plateau,
    "greedy": Greedy,
    "spectral_cap": SpectralCap,
    "lipschitz": Lipschitz,
    "predictive": Predictive,
    "initialization": Initialization,
    "spectral_initialization": SpectralInitialization,
}


def named_policy(name: str, **parameters: Any) -> Policy[Any]:
    """Return the policy called ``name`` with the given parameters, the others at their defaults.

    Raises:
        ValueError: there is no policy of that name, it has no such parameter, or a value is out of range.
    """
    if name not in POLICIES:
        raise ValueError(f"named_policy(name=...) must be one of {sorted(POLICIES)}, got {name!r}.")
    kind = POLICIES[name]
    known = [f.name for f in dataclasses.fields(kind) if f.init]  # type: ignore[arg-type]
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(f"policy {name!r} has no parameter {unknown[0]!r}; it has {known}.")
    try:
        return kind(**parameters)
    except (TypeError, OverflowError) as error:  # of another type than its rule is about
        told = ", ".join(f"{key}={value!r}" for key, value in parameters.items())
        raise ValueError(f"policy {name!r} cannot be made with {told}: {error}.") from error
