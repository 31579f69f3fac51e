"""The weights before a step as those after it less the step: two products stand for a copy of them.

Shapes: ``K`` vectors of ``N`` inputs or ``M`` outputs; ``l`` layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from lipadvisor.spectra.operator import LayerOperator
from lipadvisor.spectra.rows import Rows, adjoint, apply

__all__ = ["Before", "BeforeOperator"]


class Before(NamedTuple):
    """``W = moved / kept - length * step``: the kernel of a :class:`BeforeOperator`."""

    moved: Tensor
    step: Tensor
    length: float
    kept: float

    def weights(self) -> Tensor:
        """Return W itself: a copy."""
        return (self.moved / self.kept).sub_(self.step, alpha=self.length)


@dataclass(frozen=True, slots=True)
class BeforeOperator:
    """A layer acting with weights that are given as :class:`Before`."""

    operator: LayerOperator

    @property
    def inputs(self) -> int:
        """N."""
        return self.operator.inputs

    @property
    def outputs(self) -> int:
        """M."""
        return self.operator.outputs

    def apply(self, kernel: Before, x_KN: Rows) -> Rows:
        """Return the images (K, M)."""
        image_KM = apply(self.operator, kernel.moved, x_KN)
        return image_KM / kernel.kept - apply(self.operator, kernel.step, x_KN) * kernel.length

    def adjoint(self, kernel: Before, y_KM: Rows) -> Rows:
        """Return the images (K, N) under the adjoint."""
        image_KN = adjoint(self.operator, kernel.moved, y_KM)
        return image_KN / kernel.kept - adjoint(self.operator, kernel.step, y_KM) * kernel.length
