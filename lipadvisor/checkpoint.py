"""Makes a checkpoint of plain values and tensors, so that loading it needs no unpickling of foreign classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["arrays", "plain"]


def plain(value: Any) -> Any:
    """Return ``value`` with numpy arrays as tensors and numpy numbers as Python's, containers rebuilt.

    ``torch.load(weights_only=True)`` reads the result; :func:`arrays` turns the tensors back.
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))
    return value.item() if isinstance(value, np.generic) else value


def arrays(value: Any) -> Any:
    """Return ``value`` with tensors as numpy arrays, containers rebuilt: the inverse of :func:`plain`."""
    if isinstance(value, Mapping):
        return {key: arrays(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [arrays(item) for item in value]
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else value
