"""Reads training losses without waiting for the device."""

from __future__ import annotations

import torch

__all__ = ["LossReader"]


class LossReader:
    """Turns losses into numbers; on an accelerator one step late, when the copy has long arrived."""

    def __init__(self) -> None:
        self._pending: torch.Tensor | None = None

    def read(self, loss: torch.Tensor | float | None) -> float | None:
        """Return ``loss`` as a number; the previous step's for a tensor on an accelerator, ``None`` at first."""
        if not isinstance(loss, torch.Tensor):
            return None if loss is None else float(loss)
        if loss.device.type == "cpu":
            return float(loss.item())
        late, self._pending = self._pending, loss.detach().to("cpu", non_blocking=True)
        return None if late is None else float(late)
