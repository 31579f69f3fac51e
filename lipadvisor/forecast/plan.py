"""The future that a forecast is made for: learning rates and weight decays, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipadvisor.dynamics import network_lr
from lipadvisor.forecast.motion import Mask
from lipadvisor.terms import Array

__all__ = ["Plan", "Standing", "planned", "spread", "validated_horizon"]

_KEYS = ("lr", "weight_decay")


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be applied over ``h`` steps to the ``S = L + 1`` series: the layers, then the network."""

    lr_hS: Array
    log_decay_hS: Array  # ln(1 - lr weight_decay) of each step, nats; the network's is the weighted sum
    changes: Array  # shape (h,): largest |ln(lr / present lr)| over the layers, up to and with this step


@dataclass(frozen=True, slots=True)
class Standing:
    """The knobs in force, of ``G`` layers or parameter groups: what a plan does not name goes on from them.

    Attributes:
        lr_G: learning rates.
        weight_decay_G: decoupled weight decays, per unit of ``tau``.
        per_step_G: whose decay is coupled to its own rate: under another rate it goes on as what it takes off a weight
            per step. Else its coefficient goes on, as that of an optimizer does.
    """

    lr_G: Array
    weight_decay_G: Array
    per_step_G: Mask


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


def spread(plan: Mapping[str, Any] | None, horizon: int, standing: Standing) -> tuple[Array, Array]:
    """Check a plan and spread it over the steps; what it leaves open goes on from the knobs in force.

    A planned value holds for every layer or group. Where a planned learning rate meets a decay that is not planned,
    the decay keeps its coefficient or, for those of ``standing.per_step_G``, what it takes off a weight per step.

    Args:
        plan: ``{"lr": x, "weight_decay": y}``, each a number or an array of length ``horizon``; either may be missing.
        horizon: number of steps.
        standing: knobs in force.

    Returns:
        Learning rates, and what decay takes off a weight, ``lr * weight_decay``; shapes ``(h, G)``. A step at a rate
        of zero takes nothing.

    Raises:
        ValueError: an unknown key, a value that is negative, not finite or of the wrong length, or one with which
            decay would take the whole weight in a step. It names what was planned, and nothing else.
    """
    plan = {} if plan is None else plan
    if not isinstance(plan, Mapping):
        raise ValueError(f"forecast(plan=...) must be a dict with the keys {_KEYS}, got {plan!r}.")
    for key in plan:
        if key not in _KEYS:
            raise ValueError(f"forecast(plan=...) must have no keys but {_KEYS}, got {key!r}.")
    lr_h = None if plan.get("lr") is None else _values("lr", plan["lr"], horizon)
    decay_h = None if plan.get("weight_decay") is None else _values("weight_decay", plan["weight_decay"], horizon)
    shape = (horizon, len(standing.lr_G))
    lr_hG = np.broadcast_to(standing.lr_G if lr_h is None else lr_h[:, None], shape)
    decay_hG = np.broadcast_to(standing.weight_decay_G if decay_h is None else decay_h[:, None], shape)
    shrink_hG = lr_hG * decay_hG
    if lr_h is not None and decay_h is None:
        kept_G = standing.lr_G * standing.weight_decay_G
        shrink_hG = np.where(standing.per_step_G, np.where(lr_hG > 0.0, kept_G, 0.0), shrink_hG)
    if (lr_h is not None or decay_h is not None) and float(shrink_hG.max()) >= 1.0:
        step, group = np.unravel_index(int(shrink_hG.argmax()), shape)
        raise ValueError(_too_much(lr_h is not None, decay_h is not None, lr_hG[step, group], decay_hG[step, group]))
    return lr_hG, shrink_hG


def _too_much(lr_planned: bool, decay_planned: bool, lr: float, decay: float) -> str:
    if lr_planned and decay_planned:
        return f"plan['lr'] * plan['weight_decay'] must be below 1, got {float(lr * decay)!r}."
    if lr_planned:
        return f"plan['lr'] must be below {1.0 / decay:.6g}, one over the decay in force, got {float(lr)!r}."
    return f"plan['weight_decay'] must be below {1.0 / lr:.6g}, one over the rate in force, got {float(decay)!r}."


def planned(
    plan: Mapping[str, Any] | None,
    horizon: int,
    standing: Standing,
    composition_L: Array,
    measured_lr_L: Array,
) -> Plan:
    """Check a plan and spread it over steps and layers (:func:`spread`).

    Args:
        plan: future ``lr`` and ``weight_decay``.
        horizon: number of steps.
        standing: knobs in force, layer by layer.
        composition_L: weights of the layers in the network's log-norm.
        measured_lr_L: learning rates that the forecast was learned at last: changes are counted from there.

    Raises:
        ValueError: the plan is impossible.
    """
    lr_hL, shrink_hL = spread(plan, horizon, standing)
    with np.errstate(divide="ignore", invalid="ignore"):
        decay_hL = np.log1p(-np.minimum(shrink_hL, 1.0))
        change_hL = np.abs(np.log(lr_hL) - np.log(measured_lr_L))
    named = plan is not None and plan.get("lr") is not None
    lr_h = lr_hL[:, 0] if named else np.full(horizon, network_lr(standing.lr_G))
    # 0 / 0 is no change; from or to 0 is one, but a rate of zero moves nothing that could surprise.
    change_hL = np.where((lr_hL == measured_lr_L) | (lr_hL == 0.0), 0.0, change_hL)
    return Plan(
        lr_hS=np.column_stack((lr_hL, lr_h)),
        log_decay_hS=np.column_stack((decay_hL, decay_hL @ composition_L)),
        changes=np.maximum.accumulate(np.max(change_hL, axis=1)),
    )
