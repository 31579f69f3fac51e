"""Random measurements, float64; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lipadvisor.terms import Terms


def _terms(seed: int = 0, count: int = 3, **given: Any) -> Terms:
    generator = np.random.default_rng(seed)
    factor = generator.standard_normal((count, 2 * count))
    step = int(given.get("step", 0))
    values: dict[str, Any] = {
        "step": step,
        "names": tuple(f"layer{i}" for i in range(count)),
        "kinds": ("linear",) * count,
        "shapes": ((8, 8),) * count,
        "groups": (0,) * count,
        "lr_L": np.full(count, 0.05),
        "weight_decay_L": np.full(count, 0.01),
        "composition_L": generator.uniform(0.2, 1.0, count),
        "log_norm_L": generator.standard_normal(count),
        "gap_L": generator.uniform(0.1, 0.9, count),
        "log_gain_L": np.zeros(count),
        "first_L": generator.standard_normal(count),
        "curvature_L": generator.uniform(0.5, 5.0, count),
        "change_L": 0.01 * generator.standard_normal(count),
        "update_ratio_L": generator.uniform(0.1, 1.0, count),
        "noise_LL": factor @ factor.T / count,
        "noise_curvature_L": generator.uniform(0.5, 5.0, count),
        "batch_size": 32,
        "optimizer": "sgd",
        "momentum": 0.0,
        "optimizer_step": step + 1,
        "status_L": ("ok",) * count,
    }
    values |= given
    values.setdefault("network_log_norm", float(values["composition_L"] @ values["log_norm_L"]))
    return Terms(**values)


@pytest.fixture
def random_terms() -> Callable[..., Terms]:
    return _terms
