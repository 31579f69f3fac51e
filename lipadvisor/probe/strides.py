"""The step that an optimizer made: its direction, how far it went, and how finely it has to be followed.

Shapes: ``l`` layers of a pack; lists have one entry for each layer of the probe.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lipadvisor.probe import optimizers
from lipadvisor.probe.kinds import TrackedLayer
from lipadvisor.probe.kinds.parametrized import Computed
from lipadvisor.probe.pack import LARGE, Pack
from lipadvisor.probe.response import Pace
from lipadvisor.spectra.before import Before
from lipadvisor.terms import Array

__all__ = ["Strides"]

DEGREES = (0.006, 0.015, 0.03)  # relative steps up to which filters of degree 0, 1 and 2 keep up
TURNING = 0.1  # relative step over relative gap from which the top pair is turned within the block
SMALL_STEP = 1e-4  # relative update below which the difference of float32 weights has lost its last digits
WIDE = (torch.float32, torch.float64)


@dataclass(slots=True)
class Strides:
    """What is known of the steps of all layers.

    Attributes:
        optimizer: that makes them.
        ratio_L: last relative update per unit of lr; infinite before the first.
        width_L: ``1 - s_R / s_1``, relative width of the tracked block.
        gap_L: ``1 - s_2 / s_1``; 0 before the first.
        knobs: learning rate and decoupled weight decay of each layer in the present step.
        doubted: a step was not what the optimizer's state said.
    """

    optimizer: torch.optim.Optimizer
    ratio_L: list[float]
    width_L: list[float]
    gap_L: list[float] = field(default_factory=list)
    knobs: tuple[tuple[float, float], ...] = ()
    doubted: bool = False

    def __post_init__(self) -> None:
        """Nothing is known of the gaps yet."""
        self.gap_L = self.gap_L or [0.0] * len(self.width_L)

    def note_knobs(
        self, layers: Sequence[TrackedLayer], lr_by_group: Mapping[int, float], decay_by_group: Mapping[int, float]
    ) -> None:
        """Take down what is in force in the present step; decay that does not shrink a layer counts as update."""
        self.knobs = tuple(
            (float(lr_by_group.get(one.group, 0.0)), float(decay_by_group.get(one.group, 0.0)) if one.decays else 0.0)
            for one in layers
        )

    def note_spectrum(self, packs: Sequence[Pack], s_L: Array, second_L: Array, last_L: Array) -> None:
        """Take down how wide each tracked block is, from its first, second and last singular values."""
        for pack in packs:
            complete = pack.old is not None and pack.old.block.complete
            for index in pack.indices:
                if s_L[index] > 0 and math.isfinite(last_L[index]):
                    self.width_L[index] = 1.0 if complete else float(1.0 - last_L[index] / s_L[index])
                    self.gap_L[index] = float(1.0 - second_L[index] / s_L[index])

    def note_ratios(self, packs: Sequence[Pack], ratio_L: Array) -> None:
        """Take down the relative updates; a pack with one that is not finite looks for its update's vectors anew."""
        for pack in packs:
            good = [index for index in pack.indices if math.isfinite(ratio_L[index])]
            for index in good:
                self.ratio_L[index] = float(ratio_L[index])
            if len(good) < len(pack.indices) and pack.update_KN is not None:
                pack.update_KN = torch.ones_like(pack.update_KN)

    def state_dict(self) -> dict[str, list[float]]:
        """Return what is carried from one measurement to the next."""
        return {"ratios": list(self.ratio_L), "widths": list(self.width_L), "gaps": list(self.gap_L)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.ratio_L, self.width_L, self.gap_L = (
            [float(value) for value in state[name]] for name in ("ratios", "widths", "gaps")
        )

    def first(self, pack: Pack) -> bool:
        """Return whether nothing is known yet of some layer's updates."""
        return any(math.isinf(self.ratio_L[index]) for index in pack.indices)

    def direction(self, pack: Pack) -> Tensor:
        """Return U: from the weights, or from the optimizer's state where the step is lost in rounding."""
        if pack.known:
            stepped, sign = self.step(pack)
            return stepped * sign
        assert pack.old is not None
        assert pack.moved is not None
        knobs = [self.knobs[index] for index in pack.indices]
        inverse = _factor(pack, [1.0 / lr if lr > 0 else 0.0 for lr, _ in knobs])
        kept = _factor(pack, [1.0 - lr * weight_decay for lr, weight_decay in knobs])
        if isinstance(kept, float):  # a tensor where the pack's layers differ
            direction = torch.sub(pack.moved.kernel, pack.old.kernel, alpha=kept).mul_(inverse)
        else:
            direction = (pack.moved.kernel - pack.old.kernel * kept).mul_(inverse)
        for place, (index, (lr, _)) in enumerate(zip(pack.indices, knobs, strict=True)):
            ratio = self.ratio_L[index]
            if lr * (1.0 if math.isinf(ratio) else ratio) < SMALL_STEP:
                layer = pack.layers[place]
                if isinstance(layer.source, Computed) or layer.weight.dtype not in WIDE:
                    continue  # the state is not of the weight; half precision rounds most of a small step away
                known = optimizers.known_direction(self.optimizer, layer.weight, layer.group)
                if known is not None:
                    pack.put(direction, place, known)
        return direction

    def step(self, pack: Pack) -> tuple[Tensor, float]:
        """Return U, or -U where that is at hand, and the sign; sets ``pack.before`` where there is no copy."""
        if not pack.known:
            return self.direction(pack), 1.0
        assert pack.old is not None
        assert pack.moved is not None
        layer, (lr, weight_decay) = pack.layers[0], self.knobs[pack.indices[0]]
        found, kept = optimizers.step_in_state(self.optimizer, layer.weight, layer.group), 1.0 - lr * weight_decay
        if pack.moved.versions == pack.old.versions:  # no step was made
            direction, sign, kept = pack.moved.kernel.new_zeros(1).expand_as(pack.moved.kernel), 1.0, 1.0
        elif found is None:
            direction, sign = pack.moved.kernel.new_full((1,), math.nan).expand_as(pack.moved.kernel), 1.0
        else:
            direction, sign = layer.view(found[0])[None], found[1]
        pack.before = Before(pack.moved.kernel, direction, sign * lr / kept, kept)
        return direction, sign

    def tells(self, pack: Pack) -> bool:
        """Return whether the optimizer's state will have the step of ``pack``: no copy of its weights is needed."""
        layer = pack.layers[0]
        large = pack.operator is not None and not pack.exact and math.prod(pack.shape) >= LARGE
        large = large and pack.alone and pack.flat and layer.weight.grad is not None
        if not large or layer.weight.dtype != torch.float32 or self.doubted or layer.weight.device.type != "cpu":
            return False
        return optimizers.state_will_tell(self.optimizer, layer.weight, layer.group)

    def agrees(self, pack: Pack, first: float, came: float) -> bool:
        """Return whether ``u' W' v`` after a step is what its state says; if not, copies are made from here on.

        Args:
            pack: whose step it was, of one layer.
            first: ``u' U v``.
            came: ``u' W' v``, by the moved weights.
        """
        assert pack.old is not None
        (lr, weight_decay), way = self.knobs[pack.indices[0]], self.knobs[pack.indices[0]][0] * first
        off = abs(came - (1.0 - lr * weight_decay) * float(pack.old.block.s_R[0, 0]) - way)
        if off <= 3e-6 * abs(came) + 1e-3 * abs(way):
            return True
        self.doubted = True
        return False

    def between(self, pack: Pack, before: Tensor, after: Tensor) -> Tensor:
        """Return U of a step from the weights ``before`` to those ``after`` (l, *kernel shape), as they say it."""
        knobs = [self.knobs[index] for index in pack.indices]
        inverse = _factor(pack, [1.0 / lr if lr > 0 else 0.0 for lr, _ in knobs])
        return (after - before * self.kept(pack)) * inverse

    def length(self, pack: Pack) -> float | Tensor:
        """Return how far along U the weights go, decay apart: W' = (1 - lr wd) (W + lr U / (1 - lr wd))."""
        knobs = [self.knobs[index] for index in pack.indices]
        return _factor(pack, [lr / (1.0 - lr * weight_decay) for lr, weight_decay in knobs])

    def kept(self, pack: Pack) -> float | Tensor:
        """Return what the decoupled decay leaves of the weights."""
        return _factor(
            pack, [1.0 - lr * weight_decay for lr, weight_decay in (self.knobs[index] for index in pack.indices)]
        )

    def degree(self, pack: Pack) -> int:
        """Return the degree of the refresh's filter: the smaller the step, the less it takes to follow it.

        What is lost was measured: predictions integrated over 300 steps end within 0.002 nats of the norms. In float64
        exactness is what is asked for.
        """
        relative = self.relative(pack) + pack.way
        if pack.start_RN is not None and pack.start_RN.dtype == torch.float64:
            return 2 if relative < DEGREES[-1] else 4
        degrees = (0, 1, 2, 4)
        return degrees[bisect(DEGREES, relative)]

    def pace(self, pack: Pack) -> Pace:
        """Return how to cut up the step: each stretch must be short for the width of the tracked block."""
        width = min(self.width_L[index] for index in pack.indices)
        lr = max(self.knobs[index][0] for index in pack.indices)
        relative = self.relative(pack)
        turned = any(self.knobs[i][0] * self.ratio_L[i] > TURNING * self.gap_L[i] for i in pack.indices)
        return Pace(lr, min(max(0.4 * width, 0.01), 0.08), relative, turned)

    def relative(self, pack: Pack) -> float:
        """Return the largest relative step of a pack's layers, judged by the last update's size."""
        steps = (self.knobs[index][0] * self.ratio_L[index] for index in pack.indices)
        return max(step if math.isfinite(step) else 0.05 for step in steps)


def _factor(pack: Pack, values: list[float]) -> float | Tensor:
    """Return numbers of a pack's layers as what multiplies its kernels: one number if they are the same."""
    if len(set(values)) == 1:
        return values[0]
    assert pack.start_RN is not None
    vectors = pack.start_RN
    return torch.tensor(values, dtype=vectors.dtype).to(vectors.device, non_blocking=True).reshape(-1, 1, 1)
