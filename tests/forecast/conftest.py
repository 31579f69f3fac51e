"""Synthetic measurements with a known law: nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from lipadvisor.terms import Array, Terms


def _terms(step: int, log_norm_L: Array, change_L: Array, lr: float | Array, **given: Any) -> Terms:
    count = len(log_norm_L)
    values: dict[str, Any] = {
        "step": step,
        "names": tuple(f"layer{i}" for i in range(count)),
        "kinds": ("linear",) * count,
        "shapes": ((8, 8),) * count,
        "groups": (0,) * count,
        "lr_L": np.broadcast_to(np.asarray(lr, dtype=np.float64), (count,)).copy(),
        "weight_decay_L": np.zeros(count),
        "composition_L": np.ones(count),
        "log_norm_L": np.array(log_norm_L, dtype=np.float64),
        "gap_L": np.full(count, 0.3),
        "log_gain_L": np.zeros(count),
        "first_L": np.zeros(count),
        "curvature_L": np.zeros(count),
        "change_L": np.array(change_L, dtype=np.float64),
        "update_ratio_L": np.full(count, 0.01),
        "noise_LL": np.zeros((count, count)),
        "noise_curvature_L": np.zeros(count),
        "batch_size": 32,
        "optimizer": "sgd",
        "momentum": 0.0,
        "optimizer_step": step + 1,
        "status_L": ("ok",) * count,
    }
    values |= given
    values.setdefault("network_log_norm", float(values["composition_L"] @ values["log_norm_L"]))
    return Terms(**values)


def _run(
    law: Callable[[float], float],
    lr_T: Sequence[float] | Array,
    sigma: float = 0.0,
    layers: int = 2,
    seed: int = 0,
    weight_decay_T: Sequence[float] | Array | None = None,
    **given: Any,
) -> list[Terms]:
    """Steps of ``d log_norm = lr law(tau) (1 + l) + lr sigma xi + ln(1 - lr wd)`` for layer ``l``."""
    generator = np.random.default_rng(seed)
    weight_decay_T = np.zeros(len(lr_T)) if weight_decay_T is None else weight_decay_T
    log_norm_L, tau, out = np.zeros(layers), 0.0, []
    share_L = 1.0 + np.arange(layers)
    for step, (lr, wd) in enumerate(zip(lr_T, weight_decay_T, strict=True)):
        shock_L = sigma * generator.standard_normal(layers)
        change_L = lr * (law(tau) * share_L + shock_L) + np.log1p(-lr * wd)
        noise = {"noise_LL": sigma**2 * np.eye(layers), "weight_decay_L": np.full(layers, wd)}
        out.append(_terms(step, log_norm_L, change_L, lr, **(noise | given)))
        log_norm_L, tau = log_norm_L + change_L, tau + lr
    return out


@pytest.fixture
def make_terms() -> Callable[..., Terms]:
    return _terms


@pytest.fixture
def run_of() -> Callable[..., list[Terms]]:
    return _run
