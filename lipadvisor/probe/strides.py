"""The step that an optimizer made: its direction, how far it went, and how finely it has to be followed.

Shapes: ``l`` layers of a pack; lists have one entry for each layer of the probe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipadvisor.probe import optimizers
from lipadvisor.probe.pack import Pack
from lipadvisor.probe.response import Pace

__all__ = ["Strides"]

SMALL_STEP = 1e-4  # relative update below which the difference of float32 weights has lost its last digits


@dataclass(slots=True)
class Strides:
    """What is known of the steps of all layers.

    Attributes:
        optimizer: that makes them.
        ratio_L: last relative update per unit of lr; infinite before the first.
        width_L: ``1 - s_R / s_1``, relative width of the tracked block.
        knobs: learning rate and decoupled weight decay of each layer in the present step.
    """

    optimizer: torch.optim.Optimizer
    ratio_L: list[float]
    width_L: list[float]
    knobs: tuple[tuple[float, float], ...] = ()

    def direction(self, pack: Pack) -> Tensor:
        """Return U: from the weights, or from the optimizer's state where the step is lost in rounding."""
        assert pack.old is not None
        assert pack.new is not None
        knobs = [self.knobs[index] for index in pack.indices]
        inverse = _factor(pack, [1.0 / lr if lr > 0 else 0.0 for lr, _ in knobs])
        kept = _factor(pack, [1.0 - lr * weight_decay for lr, weight_decay in knobs])
        moved = pack.new.kernel - pack.old.kernel if kept == 1.0 else pack.new.kernel - pack.old.kernel * kept
        direction = moved * inverse
        for place, (index, (lr, _)) in enumerate(zip(pack.indices, knobs, strict=True)):
            ratio = self.ratio_L[index]
            if lr * (1.0 if math.isinf(ratio) else ratio) < SMALL_STEP:
                layer = pack.layers[place]
                known = optimizers.known_direction(self.optimizer, layer.weight, layer.group)
                if known is not None:
                    pack.put(direction, place, known)
        return direction

    def length(self, pack: Pack) -> float | Tensor:
        """Return how far along U the weights go, decay apart: W' = (1 - lr wd) (W + lr U / (1 - lr wd))."""
        knobs = [self.knobs[index] for index in pack.indices]
        return _factor(pack, [lr / (1.0 - lr * weight_decay) for lr, weight_decay in knobs])

    def degree(self, pack: Pack) -> int:
        """Return the degree of the refresh's filter: small steps need little."""
        return 2 if self._relative(pack) < 0.03 else 4

    def pace(self, pack: Pack) -> Pace:
        """Return how to cut up the step: each stretch must be short for the width of the tracked block."""
        width = min(self.width_L[index] for index in pack.indices)
        lr = max(self.knobs[index][0] for index in pack.indices)
        return Pace(lr, min(max(0.4 * width, 0.01), 0.08), self._relative(pack))

    def _relative(self, pack: Pack) -> float:
        """Return the largest relative step of a pack's layers, judged by the last update's size."""
        steps = (self.knobs[index][0] * self.ratio_L[index] for index in pack.indices)
        return max(step if math.isfinite(step) else 0.05 for step in steps)


def _factor(pack: Pack, values: list[float]) -> float | Tensor:
    """Return numbers of a pack's layers as what multiplies its kernels: one number if they are the same."""
    if len(set(values)) == 1:
        return values[0]
    assert pack.old is not None
    kernel = pack.old.kernel
    return torch.tensor(values, dtype=kernel.dtype).to(kernel.device, non_blocking=True).reshape(-1, 1, 1)
