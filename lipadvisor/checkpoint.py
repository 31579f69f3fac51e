"""Makes a checkpoint of plain values and tensors, so that loading it needs no unpickling of foreign classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["plain"]


def plain(value: Any) -> Any:
    """Return ``value`` with numpy arrays as tensors and numpy numbers as Python's, containers rebuilt.

    ``torch.load(weights_only=True)`` reads the result; ``numpy.array`` turns the tensors back.
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))
    return value.item() if isinstance(value, np.generic) else value
