"""A layer as a linear operator.

How the parts combine::

    LayerOperator (apply, adjoint, outer)  --->  TrackedBlock (block.py)  --->  resolvents and q(E) (curvature.py)

An operator knows shapes and geometry, never a weight: the kernel is an argument, because the same map is applied with
the weight ``W``, with the optimizer's update ``U`` and with a preconditioned Jacobian ``P * J``. A new kind of layer is
one new file with one class that satisfies :class:`LayerOperator`.

Shapes: ``K`` vectors in a block, ``N`` inputs and ``M`` outputs of the operator.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["LayerOperator"]


class LayerOperator(Protocol):
    """The linear map ``x -> kernel * x`` of one layer on flat vectors, bilinear in kernel and vector."""

    @property
    def inputs(self) -> int:
        """N, the dimension of the operator's domain."""
        ...

    @property
    def outputs(self) -> int:
        """M, the dimension of the operator's range."""
        ...

    def apply(self, kernel: Tensor, x_KN: Tensor) -> Tensor:
        """Return the (K, M) block of images."""
        ...

    def adjoint(self, kernel: Tensor, y_KM: Tensor) -> Tensor:
        """Return the (K, N) block of images under the adjoint."""
        ...

    def outer(self, y_KM: Tensor, x_KN: Tensor) -> Tensor:
        """Return ``sum_k d <y_k, kernel * x_k> / d kernel``, of the kernel's shape."""
        ...
