"""Norms of stacked kernels to the last digit, and how the chain's bound answers to its weights.

Everything is float64, so that the change of a norm over one step is not lost in rounding. Shapes: ``R`` kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipadvisor.probe import Probe, TrackedLayer
from lipadvisor.spectra import Conv2dOperator, LayerOperator, TrackedBlock, cold_start, refresh, start_vectors
from lipadvisor.terms import Array

__all__ = ["bound_covector", "input_shapes", "log_norms", "top_block"]


def log_norms(layer: TrackedLayer, input_shape: tuple[int, ...] | None, kernels_R: Tensor) -> Array:
    """Return ln of the operator norm of each of the kernels, (R,), nats.

    Matrices through the eigenvalues of the smaller Gram matrix; convolutions by a block iteration that starts from
    the vectors of the replica before, to about 1e-12.

    Args:
        layer: whose weight the kernels are.
        input_shape: of one batch of its inputs, for a convolution.
        kernels_R: (R, ...), float64.
    """
    operator = layer.operator(input_shape)
    if operator is None:
        raise ValueError(f"log_norms(input_shape=...) must be given for the convolution {layer.name!r}.")
    if not isinstance(operator, Conv2dOperator):
        gram = kernels_R @ kernels_R.mT if kernels_R.shape[-2] <= kernels_R.shape[-1] else kernels_R.mT @ kernels_R
        return np.asarray(0.5 * torch.linalg.eigvalsh(gram)[:, -1].log().numpy(), dtype=np.float64)
    return np.array([float(s) for s in _iterated(operator, kernels_R)])


def top_block(layer: TrackedLayer, input_shape: tuple[int, ...], kernel: Tensor) -> tuple[TrackedBlock, Tensor]:
    """Return the block of ``kernel`` and the kernel-shaped Jacobian of its largest singular value."""
    operator = layer.operator(input_shape)
    assert operator is not None
    generator = torch.Generator().manual_seed(0)
    block = cold_start(operator, kernel, start_vectors(operator, 8, kernel, generator), 1e-13)
    return block, operator.outer(block.u_RM[:1], block.v_RN[:1]).reshape(kernel.shape)


def _iterated(operator: LayerOperator, kernels_R: Tensor) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    block = cold_start(operator, kernels_R[0], start_vectors(operator, 8, kernels_R[0], generator), 1e-13)
    found = []
    for kernel in kernels_R:
        for _ in range(3):
            block = refresh(operator, kernel, block.v_RN, 6)
        found.append(block.s_R[0].log())
    return found


def input_shapes(model: nn.Module, layers: tuple[TrackedLayer, ...], example: Tensor) -> list[tuple[int, ...]]:
    """Return the shape of each layer's input when the model sees ``example``."""
    shapes: dict[int, tuple[int, ...]] = {}

    def hook(index: int) -> Any:
        def note(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            shapes[index] = tuple(arguments[0].shape)

        return note

    handles = [layer.module.register_forward_hook(hook(index)) for index, layer in enumerate(layers)]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return [shapes[index] for index in range(len(layers))]


def bound_covector(model: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """Return ``dZ/dW`` of the chain's bound, float64, nats per unit of weight, by parameter name.

    Args:
        model: its Linear and Conv2d weights are what Z is made of.
        example: a batch of inputs, for the sizes of the convolutions' maps.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers = Probe(model, torch.optim.SGD(model.parameters(), lr=1.0)).layers
    covector = {}
    for layer, shape in zip(layers, input_shapes(model, layers, example), strict=True):
        block, jacobian = top_block(layer, shape, layer.weight.detach().double())
        covector[names[id(layer.weight)]] = jacobian / block.s_R[0]
    return covector
