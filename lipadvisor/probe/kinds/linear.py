"""``nn.Linear``, whatever the leading dimensions: a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lipadvisor.probe.kinds.kind import Candidate, Options, wide
from lipadvisor.spectra import LinearOperator

__all__ = ["LinearUse", "MatrixForm", "find_linear", "places"]


def find_linear(module: nn.Module, options: Options) -> tuple[Candidate, ...] | None:
    """Return the weight of a linear layer; None for other modules."""
    if not isinstance(module, nn.Linear):
        return None
    form = MatrixForm(module.out_features, module.in_features)
    return (Candidate("weight", "linear", (form.outputs, form.inputs), form, LinearUse(module)),)


@dataclass(frozen=True, slots=True)
class MatrixForm:
    """A weight of shape (outputs, inputs) that is its operator's matrix."""

    outputs: int
    inputs: int

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """(outputs, inputs)."""
        return (self.outputs, self.inputs)

    @property
    def matrix(self) -> bool:
        """Whether the kernel is the operator's matrix: yes."""
        return True

    def view(self, tensor: Tensor) -> Tensor:
        """Return the tensor as it is."""
        return tensor

    def operator(self, input_shape: tuple[int, ...] | None) -> LinearOperator:
        """Return the matrix as an operator."""
        return LinearOperator(self.outputs, self.inputs)


@dataclass(frozen=True, slots=True)
class LinearUse:
    """A call ``y = W x + b`` on the last dimension: samples along the first one, places along those between."""

    module: nn.Module

    @property
    def flat(self) -> bool:
        """Whether a sample's gradient is a sum of few outer products: yes."""
        return True

    def read(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Tensor | None:
        """Return the input."""
        x = arguments[0] if arguments else keywords.get("input")
        return x.detach() if isinstance(x, Tensor) else None

    def count(self, kept: Tensor, grad: Tensor) -> int:
        """Return the number of samples."""
        return grad.shape[0] if grad.dim() > 1 else 1

    def pair(self, kept: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs (B, T, N) and output gradients (B, T, M)."""
        return places(wide(kept)), places(wide(grad))

    def scalars(self, jacobian: Tensor, kept: Tensor, grad: Tensor) -> Tensor:
        """Return ``sum_t d_it' J a_it`` (B,)."""
        inputs, grads = self.pair(kept, grad)
        return ((inputs @ jacobian.mT) * grads).flatten(1).sum(1)

    def weighted(self, weight_B: Tensor, kept: Tensor, grad: Tensor) -> Tensor:
        """Return ``sum_it w_i d_it a_it'`` (M, N)."""
        inputs, grads = self.pair(kept, grad)
        return (grads * weight_B[:, None, None]).flatten(0, 1).mT @ inputs.flatten(0, 1)


def places(x: Tensor) -> Tensor:
    """Return (B, ..., n) as (B, T, n); a single vector (n,) is one sample."""
    if x.dim() == 2:
        return x.unsqueeze(1)
    return x[None, None] if x.dim() == 1 else x.reshape(x.shape[0], -1, x.shape[-1])
