"""Checks an advisor's arguments before any work starts."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch

from lipadvisor.apply import MODES
from lipadvisor.trajectory import TrajectoryStore

__all__ = ["as_loss", "check_arguments", "check_inspection", "check_plan", "open_store"]

MOST_STEPS = 1_000_000  # of a forecast: one array of it for each layer fits into memory


def check_arguments(
    model: Any,
    optimizer: Any,
    policy: Any,
    total_steps: int | None,
    mode: str,
    max_overhead: Any,
    seed: Any,
    snapshot_every: int | str | None,
    on_error: str,
    out: Any,
    sink: Any,
    record_limit: Any,
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
    if isinstance(policy, type):
        raise TypeError(f"Advisor(policy=...) must be an object, got the class {policy.__name__}: call it.")
    if not all(callable(getattr(policy, method, None)) for method in ("init", "decide")):
        rule = "the name of a policy, or an object with init() and decide()"
        raise TypeError(f"Advisor(policy=...) must be {rule}, got {policy!r}.")
    _check_knobs(optimizer)
    if total_steps is not None and not _is_count(total_steps):
        raise ValueError(f"Advisor(total_steps=...) must be an integer >= 1 or None, got {total_steps!r}.")
    if mode not in MODES:
        raise ValueError(f"Advisor(mode=...) must be one of {', '.join(MODES)}, got {mode!r}.")
    if not _is_number(max_overhead):
        raise ValueError(f"Advisor(max_overhead=...) must be a number in (0, 1], got {max_overhead!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"Advisor(seed=...) must be an integer in [0, 2**63), got {seed!r}.")
    if record_limit is not None and not _is_count(record_limit):
        raise ValueError(f"Advisor(record_limit=...) must be an integer >= 1 or None, got {record_limit!r}.")
    if snapshot_every not in (None, "auto") and not _is_count(snapshot_every):
        rule = "an integer >= 1, None or 'auto'"
        raise ValueError(f"Advisor(snapshot_every=...) must be {rule}, got {snapshot_every!r}.")
    if on_error not in ("warn", "raise"):
        raise ValueError(f"Advisor(on_error=...) must be 'warn' or 'raise', got {on_error!r}.")
    if out is not None and sink is not None:
        raise ValueError("Advisor(out=..., sink=...): give one of them, not both.")
    if out is not None and (not isinstance(out, (str, os.PathLike)) or not os.fspath(out)):
        raise ValueError(f"Advisor(out=...) must be the path of a directory, got {out!r}.")
    if out is not None and os.path.exists(out) and not os.path.isdir(out):
        raise ValueError(f"Advisor(out=...) must be a directory, got the file {os.fspath(out)!r}.")
    if sink is not None and not callable(sink):
        raise ValueError(f"Advisor(sink=...) must be callable, got {sink!r}.")


def check_plan(horizon: Any, plan: Any) -> Mapping[str, Any]:
    """Return the plan of a forecast; an empty one stands for the present knobs.

    Raises:
        TypeError: it is no mapping.
        ValueError: the horizon is beyond all reason, or a knob is None.
    """
    if plan is not None and not isinstance(plan, Mapping):
        rule = "a dict of future 'lr' and 'weight_decay', or None"
        raise TypeError(f"forecast(plan=...) must be {rule}, got {plan!r}.")
    if isinstance(horizon, int) and horizon > MOST_STEPS:
        raise ValueError(f"forecast(horizon=...) must be at most {MOST_STEPS}, got {horizon!r}.")
    for knob, values in (plan or {}).items():
        if values is None:
            raise ValueError(f"forecast(plan=...): {knob!r} must be a number or an array; leave it out to go on as is.")
    return plan or {}


def as_loss(loss: Any) -> float:
    """Return a validation loss as a number; nan and infinity are losses too.

    Raises:
        ValueError: it is no number, and no tensor of one.
    """
    if isinstance(loss, (str, bytes)) or loss is None:
        raise ValueError(f"report_validation(loss=...) must be a number, got {loss!r}.")
    try:
        return float(loss)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"report_validation(loss=...) must be a number, got {loss!r:.100}.") from error


def open_store(out: str | os.PathLike[str]) -> TrajectoryStore:
    """Return the store in the directory ``out``, which is made.

    Raises:
        OSError: it cannot be made or written.
    """
    try:
        return TrajectoryStore(out)
    except OSError as error:
        rule = "a directory that can be written"
        raise OSError(f"Advisor(out=...) must be {rule}, got {os.fspath(out)!r}: {error}") from error


def check_inspection(loss_fn: Any, every: Any, quantities: Any) -> None:
    """Check what ``Advisor.inspect`` was given.

    Raises:
        ValueError: names the argument, its rule and the value.
    """
    if not callable(loss_fn):
        raise ValueError(f"Advisor.inspect(loss_fn=...) must be a function that returns the loss, got {loss_fn!r}.")
    listed = isinstance(quantities, Sequence) and not isinstance(quantities, (str, bytes))
    if not listed or not all(isinstance(name, str) for name in quantities):
        raise ValueError(f"inspect(quantities=...) must be a tuple of names, got {quantities!r:.100}.")
    if every is not None and not _is_count(every):
        raise ValueError(f"Advisor.inspect(every=...) must be an integer >= 1 or None, got {every!r}.")


def _check_knobs(optimizer: torch.optim.Optimizer) -> None:
    for index, group in enumerate(optimizer.param_groups):
        if "lr" not in group:
            raise ValueError(
                f"Advisor(optimizer=...) must have a learning rate in every group, group {index} has none."
            )
        for knob in ("lr", "weight_decay"):
            value = float(group.get(knob, 0.0))
            if not (math.isfinite(value) and value >= 0.0):
                rule = "finite and not negative"
                raise ValueError(f"Advisor(optimizer=...): {knob} of group {index} must be {rule}, got {value}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
