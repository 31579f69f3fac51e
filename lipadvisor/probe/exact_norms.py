"""The norms of the weights as they are now, to full accuracy and without anything that is carried along.

For once in a while: each layer starts its subspace iteration from vectors of a fixed seed, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from lipadvisor.probe.kinds import TrackedLayer
from lipadvisor.spectra import cold_start, start_vectors
from lipadvisor.terms import Array

__all__ = ["exact_log_norms"]

_RANK = 8  # vectors of the iteration
_TOLERANCE = 1e-9


def exact_log_norms(layers: Sequence[TrackedLayer], input_shapes: Mapping[int, tuple[int, ...]]) -> Array:
    """Return ln of the operator norms of the layers' weights, then of the network, nats, shape ``(L + 1,)``.

    ``nan`` where a weight is not finite or zero, or a convolution's input size is not known; so is the network then, if
    that layer counts in it.

    Args:
        layers: to measure.
        input_shapes: of the convolutions' maps, by the layer's place.
    """
    log_norm_L = np.array([_log_norm(layer, input_shapes.get(place)) for place, layer in enumerate(layers)])
    composition_L = np.array([layer.composition for layer in layers])
    return np.append(log_norm_L, composition_L @ np.where(composition_L > 0.0, log_norm_L, 0.0))


def _log_norm(layer: TrackedLayer, input_shape: tuple[int, ...] | None) -> float:
    operator = layer.operator(input_shape)
    kernel = layer.value().double()
    if operator is None or not bool(kernel.isfinite().all()):
        return math.nan
    generator = torch.Generator().manual_seed(0)
    block = cold_start(operator, kernel, start_vectors(operator, _RANK, kernel, generator), _TOLERANCE)
    norm = float(block.s_R[0])
    return math.log(norm) if norm > 0.0 else math.nan
