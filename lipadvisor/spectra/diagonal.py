"""The operator of a gain: a diagonal matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["DiagonalOperator"]


@dataclass(frozen=True, slots=True)
class DiagonalOperator:
    """``y = c * kernel * x``, entry by entry; its singular values are the sizes of the entries.

    Attributes:
        size: number of entries.
        factor: returns ``c`` (size,), as it is now; None stands for ones.
    """

    size: int
    factor: Callable[[], Tensor | None] | None = None

    @property
    def inputs(self) -> int:
        """N."""
        return self.size

    @property
    def outputs(self) -> int:
        """M = N."""
        return self.size

    def apply(self, kernel: Tensor, x_KN: Tensor) -> Tensor:
        """Return the (K, N) block of images."""
        return x_KN * self._scaled(kernel).unsqueeze(-2)

    def adjoint(self, kernel: Tensor, y_KM: Tensor) -> Tensor:
        """Return the (K, N) block of images: the matrix is its own transpose."""
        return self.apply(kernel, y_KM)

    def outer(self, y_KM: Tensor, x_KN: Tensor) -> Tensor:
        """Return ``sum_k c * y_k * x_k`` (N,)."""
        return self._scaled((y_KM * x_KN).sum(-2))

    def top(self, kernel: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the ``count`` top singular triples as they are: ``u`` (count, N), ``s`` (count,), ``v`` (count, N).

        Gains start out all alike: an iteration would have nothing to hold on to, and none is needed.
        """
        entries = self._scaled(kernel)
        s_R, places_R = entries.abs().topk(count, dim=-1)
        v_RN = torch.nn.functional.one_hot(places_R, self.size).to(kernel)
        return v_RN * entries.gather(-1, places_R).sign().unsqueeze(-1), s_R, v_RN

    def _scaled(self, kernel: Tensor) -> Tensor:
        factor = None if self.factor is None else self.factor()
        return kernel if factor is None else kernel * factor.to(kernel)
