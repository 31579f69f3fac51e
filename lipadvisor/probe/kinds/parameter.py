"""Matrices that a module of no known kind holds itself: the fallback.

How such a parameter acts is not known: it is taken for a matrix (first dimension, the rest), its norm and what a step
does to it are exact, and its noise is that of successive steps. It stands beside the network's sum.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from lipadvisor.probe.kinds.kind import Candidate, Options
from lipadvisor.probe.kinds.linear import MatrixForm

__all__ = ["ParameterForm", "find_parameters"]


class ParameterForm(MatrixForm):
    """A parameter of two or more dimensions as a matrix (first dimension, the rest)."""

    __slots__ = ()

    def view(self, tensor: Tensor) -> Tensor:
        """Return the tensor as a matrix."""
        return tensor.flatten(1)


def find_parameters(module: nn.Module, options: Options) -> tuple[Candidate, ...] | str | None:
    """Return the matrices of a module that no other finder knows, where they are asked for."""
    keys = [key for key, p in module.named_parameters(recurse=False) if _is_matrix(p)]
    if not keys:
        return None
    if not options.parameters:
        return f"{type(module).__name__} is no known kind of layer; parameters=True measures its {', '.join(keys)}"
    found = []
    for key in keys:
        shape = getattr(module, key).shape
        form = ParameterForm(shape[0], math.prod(shape[1:]))
        found.append(Candidate(key, "parameter", (form.outputs, form.inputs), form, None, 0.0, suffix=key))
    return tuple(found)


def _is_matrix(parameter: nn.Parameter) -> bool:
    return parameter.dim() >= 2
