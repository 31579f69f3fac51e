"""The future that a forecast is made for: learning rates and weight decays, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipadvisor.dynamics import log_decay, network_lr
from lipadvisor.terms import Array

__all__ = ["Plan", "planned", "validated_horizon"]

_KEYS = ("lr", "weight_decay")


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be applied over ``h`` steps to the ``S = L + 1`` series: the layers, then the network."""

    lr_hS: Array
    log_decay_hS: Array  # ln(1 - lr weight_decay) of each step, nats; the network's is the weighted sum
    changes: Array  # shape (h,): largest |ln(lr / present lr)| over the layers, up to and with this step


def validated_horizon(horizon: Any) -> int:
    """Return ``horizon`` as an int.

    Raises:
        ValueError: it is not an integer of at least 1.
    """
    if isinstance(horizon, bool) or not isinstance(horizon, (int, np.integer)) or horizon < 1:
        raise ValueError(f"forecast(horizon=...) must be an integer of at least 1, got {horizon!r}.")
    return int(horizon)


def _values(key: str, value: Any, horizon: int) -> Array:
    try:
        values = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"plan[{key!r}] must be a number or an array of numbers, got {value!r}.") from None
    if values.shape not in ((), (horizon,)):
        raise ValueError(f"plan[{key!r}] must be a number or have length {horizon}, got shape {values.shape}.")
    bad = ~(np.isfinite(values) & (values >= 0.0))
    if bad.any():
        raise ValueError(
            f"plan[{key!r}] must be finite and not negative, got {float(np.atleast_1d(values[bad])[0])!r}."
        )
    return np.broadcast_to(values, (horizon,))


def planned(
    plan: Mapping[str, Any] | None,
    horizon: int,
    lr_L: Array,
    weight_decay_L: Array,
    composition_L: Array,
) -> Plan:
    """Check a plan and spread it over steps and layers; what it leaves open goes on as it is.

    A planned value holds for every layer, whatever its parameter group.

    Args:
        plan: ``{"lr": x, "weight_decay": y}``, each a number or an array of length ``horizon``; either may be missing.
        horizon: number of steps.
        lr_L: learning rates in force.
        weight_decay_L: decoupled weight decays in force, per unit of ``tau``.
        composition_L: weights of the layers in the network's log-norm.

    Raises:
        ValueError: an unknown key, a value that is negative, not finite or of the wrong length, or a product
            ``lr * weight_decay`` of 1 or more.
    """
    plan = {} if plan is None else plan
    if not isinstance(plan, Mapping):
        raise ValueError(f"forecast(plan=...) must be a dict with the keys {_KEYS}, got {plan!r}.")
    for key in plan:
        if key not in _KEYS:
            raise ValueError(f"forecast(plan=...) must have no keys but {_KEYS}, got {key!r}.")
    shape = (horizon, len(lr_L))
    lr_hL, weight_decay_hL = np.broadcast_to(lr_L, shape), np.broadcast_to(weight_decay_L, shape)
    if plan.get("lr") is not None:
        lr_hL = np.broadcast_to(_values("lr", plan["lr"], horizon)[:, None], shape)
    if plan.get("weight_decay") is not None:
        weight_decay_hL = np.broadcast_to(_values("weight_decay", plan["weight_decay"], horizon)[:, None], shape)
    largest = float(np.max(lr_hL * weight_decay_hL))
    if plan and largest >= 1.0:
        raise ValueError(f"plan['lr'] * plan['weight_decay'] must be below 1, got {largest!r}.")
    decay_hL = log_decay(lr_hL, weight_decay_hL)
    lr_h = network_lr(lr_L) if plan.get("lr") is None else lr_hL[:, 0]
    network_lr_h = np.broadcast_to(np.asarray(lr_h), (horizon,))
    with np.errstate(divide="ignore", invalid="ignore"):
        change_hL = np.abs(np.log(lr_hL) - np.log(lr_L))
    # 0 / 0 is no change; from or to 0 is one, but a rate of zero moves nothing that could surprise.
    change_hL = np.where((lr_hL == lr_L) | (lr_hL == 0.0), 0.0, change_hL)
    return Plan(
        lr_hS=np.column_stack((lr_hL, network_lr_h)),
        log_decay_hS=np.column_stack((decay_hL, decay_hL @ composition_L)),
        changes=np.maximum.accumulate(np.max(change_hL, axis=1)),
    )
