"""One layer under measurement: its operator, its warm-started vectors, and what a step did to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipadvisor.probe.layers import TrackedLayer
from lipadvisor.probe.noise import EXACT_SIDE
from lipadvisor.spectra import (
    CgResolvent,
    FlatResolvent,
    GramResolvent,
    LayerOperator,
    LinearOperator,
    Resolvent,
    TrackedBlock,
    cold_start,
    curvature_form,
    refresh,
    start_vectors,
)
from lipadvisor.spectra.change import BlockChange, project_change

__all__ = ["LayerTracker"]


@dataclass(slots=True)
class LayerTracker:
    """Mutable state of one layer.

    Attributes:
        layer: which weight.
        rank: vectors to track.
        generator: for start vectors.
        operator: None until the size of a convolution's input is known.
        v_RN: right vectors of the last good refresh.
        update_KN: right vectors of the last update.
        old: copy of the weight before the step, float32 or better.
        block: tracked block of ``old``.
    """

    layer: TrackedLayer
    rank: int
    generator: torch.Generator
    operator: LayerOperator | None = None
    v_RN: Tensor | None = None
    update_KN: Tensor | None = None
    old: Tensor | None = None
    block: TrackedBlock | None = None

    def kernel(self) -> Tensor:
        """Return the present weight in float32 or better, sharing memory where it can."""
        weight = self.layer.weight.detach()
        return weight if weight.dtype in (torch.float32, torch.float64) else weight.float()

    def settle(self, input_shape: tuple[int, ...] | None) -> bool:
        """Fix the operator and cold-start the block, once it can be; return whether the layer can be measured."""
        if self.operator is None:
            self.operator = self.layer.operator(input_shape)
            if self.operator is None:
                return False
        if self.v_RN is None:
            kernel = self.kernel()
            start_RN = start_vectors(self.operator, self.rank, kernel, self.generator)
            self.v_RN = cold_start(self.operator, kernel, start_RN).v_RN
            self.update_KN = start_RN[:2].clone()
        return True

    def refresh(self, degree: int) -> TrackedBlock:
        """Bring the block up to the present weight, and keep a copy of that weight."""
        assert self.operator is not None and self.v_RN is not None
        self.old = self.kernel().clone()
        self.block = refresh(self.operator, self.old, self.v_RN, degree)
        return self.block

    def resolvent(self, kernel: Tensor, sigma: Tensor) -> Resolvent:
        """Return the resolvent of the block's complement for ``kernel`` at ``sigma``, the cheapest that is exact."""
        assert self.operator is not None and self.block is not None
        if self.block.complete:
            return FlatResolvent(sigma)
        if isinstance(self.operator, LinearOperator) and min(self.layer.shape) <= EXACT_SIDE:
            return GramResolvent.build(kernel, self.block, sigma)
        return CgResolvent(self.operator, kernel, self.block, sigma)

    def drift(self, direction: Tensor, lr: float, weight_decay: float, resolvent: Resolvent) -> Tensor:
        """Return ``first, curvature, change, update_ratio`` (4,) of one step along ``direction``."""
        assert self.operator is not None and self.block is not None and self.old is not None
        block, top = self.block, self.block.s_R[0]
        change = project_change(self.operator, direction, block)
        first = change.corner_RR[0, 0] / top
        q = curvature_form(block, resolvent, change.image_RM[:1], change.coimage_RN[:1])[0] / top
        log_change = self._log_change(change, direction, lr, weight_decay)
        return torch.stack([first, q, log_change, self._update_norm(direction) / top])

    def _log_change(self, change: BlockChange, direction: Tensor, lr: float, weight_decay: float) -> Tensor:
        """Return the predicted change of ln s_1, decay included: ``W' = (1 - lr wd) (W + lr U / (1 - lr wd))``."""
        assert self.block is not None and self.old is not None
        keep = 1.0 - lr * weight_decay
        length = lr / keep
        sigma, p_1M, y_1N = change.rotated(self.block, length)
        resolvent = self.resolvent(self.old, sigma)
        top = sigma + 0.5 * resolvent.form(p_1M, y_1N)[0]
        return (top * keep / self.block.s_R[0]).log()

    def _update_norm(self, direction: Tensor) -> Tensor:
        """Return s_1 of the direction, on the safe side: two warm-started power steps, plus the residual."""
        assert self.operator is not None and self.update_KN is not None
        v_KN = self.update_KN
        for _ in range(2):
            v_KN = self.operator.adjoint(direction, self.operator.apply(direction, v_KN))
            v_KN = torch.linalg.qr(v_KN.mT)[0].mT
        squared_KN = self.operator.adjoint(direction, self.operator.apply(direction, v_KN))
        ritz_KK = squared_KN @ v_KN.mT
        residual = (squared_KN - ritz_KK @ v_KN).norm()
        self.update_KN = v_KN
        mean, half = 0.5 * (ritz_KK[0, 0] + ritz_KK[-1, -1]), 0.5 * (ritz_KK[0, 0] - ritz_KK[-1, -1])
        top = mean + (half.square() + ritz_KK[0, -1].square()).sqrt() if len(ritz_KK) > 1 else mean
        return (top + residual).sqrt()
