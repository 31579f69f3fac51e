"""Checks an advisor's arguments before any work starts."""

from __future__ import annotations

import math
from typing import Any

import torch

from lipadvisor.apply import MODES

__all__ = ["check_arguments"]


def check_arguments(
    model: Any,
    optimizer: Any,
    policy: Any,
    total_steps: int | None,
    mode: str,
    snapshot_every: int | str | None,
    on_error: str,
    out: Any,
    sink: Any,
) -> None:
    """Check what ``Advisor`` was given, apart from what the probe checks itself.

    Raises:
        TypeError: ``model``, ``optimizer`` or ``policy`` is none; names the argument and the value's type.
        ValueError: names the argument, its rule and the value.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"Advisor(model=...) must be a torch.nn.Module, got {type(model).__name__}.")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"Advisor(optimizer=...) must be a torch.optim.Optimizer, got {type(optimizer).__name__}.")
    if not all(callable(getattr(policy, method, None)) for method in ("init", "decide")):
        rule = "the name of a policy, or an object with init() and decide()"
        raise TypeError(f"Advisor(policy=...) must be {rule}, got {policy!r}.")
    _check_knobs(optimizer)
    if total_steps is not None and not _is_count(total_steps):
        raise ValueError(f"Advisor(total_steps=...) must be an integer >= 1 or None, got {total_steps!r}.")
    if mode not in MODES:
        raise ValueError(f"Advisor(mode=...) must be one of {', '.join(MODES)}, got {mode!r}.")
    if snapshot_every not in (None, "auto") and not _is_count(snapshot_every):
        rule = "an integer >= 1, None or 'auto'"
        raise ValueError(f"Advisor(snapshot_every=...) must be {rule}, got {snapshot_every!r}.")
    if on_error not in ("warn", "raise"):
        raise ValueError(f"Advisor(on_error=...) must be 'warn' or 'raise', got {on_error!r}.")
    if out is not None and sink is not None:
        raise ValueError("Advisor(out=..., sink=...): give one of them, not both.")
    if sink is not None and not callable(sink):
        raise ValueError(f"Advisor(sink=...) must be callable, got {sink!r}.")


def _check_knobs(optimizer: torch.optim.Optimizer) -> None:
    for index, group in enumerate(optimizer.param_groups):
        for knob in ("lr", "weight_decay"):
            value = float(group.get(knob, 0.0))
            if not (math.isfinite(value) and value >= 0.0):
                rule = "finite and not negative"
                raise ValueError(f"Advisor(optimizer=...): {knob} of group {index} must be {rule}, got {value}.")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
