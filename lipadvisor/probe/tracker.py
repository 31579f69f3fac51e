"""One layer under measurement: its operator, its warm-started vectors, and what a step did to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipadvisor.probe.layers import TrackedLayer
from lipadvisor.probe.noise import NoiseImages, is_exact
from lipadvisor.spectra import (
    CgResolvent,
    FlatResolvent,
    GramResolvent,
    LayerOperator,
    Resolvent,
    TrackedBlock,
    cold_start,
    refresh,
    start_vectors,
)
from lipadvisor.spectra.change import bordered_corner, project_change
from lipadvisor.spectra.curvature import complement_form, split_change

__all__ = ["LayerTracker", "Response"]


@dataclass(frozen=True, slots=True)
class Response:
    """What one change does to the top of a layer's spectrum, still on the device.

    Attributes:
        first: ``u' E v``.
        curvature: ``q(E)``.
        corner: small matrix whose largest singular value is the predicted s_1.
        noise_curvature: ``E q(noise)``, if noise was given.
    """

    first: Tensor
    curvature: Tensor
    corner: Tensor
    noise_curvature: Tensor | None


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
        new: copy of the weight after the step, and its block in ``new_block``.
        new_version: of the parameter when it was copied: while it stands, the weight has not been written to.
    """

    layer: TrackedLayer
    rank: int
    generator: torch.Generator
    operator: LayerOperator | None = None
    v_RN: Tensor | None = None
    update_KN: Tensor | None = None
    old: Tensor | None = None
    block: TrackedBlock | None = None
    new: Tensor | None = None
    new_block: TrackedBlock | None = None
    new_version: int = -1

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
        """Bring ``block`` up to the present weight; the last step's refresh is taken over if of this weight."""
        assert self.operator is not None
        assert self.v_RN is not None
        if self.new is not None and self.new_block is not None and self.new_version == self.layer.weight._version:
            self.old, self.block = self.new, self.new_block
        else:
            self.old = self.kernel().clone()
            self.block = refresh(self.operator, self.old, self.v_RN, degree)
        return self.block

    def follow(self, degree: int) -> TrackedBlock:
        """Bring ``new_block`` up to the present weight, from ``block``, and keep a copy of that weight."""
        assert self.operator is not None
        assert self.block is not None
        self.new, self.new_version = self.kernel().clone(), self.layer.weight._version
        self.new_block = refresh(self.operator, self.new, self.block.v_RN, degree)
        return self.new_block

    def standing(self) -> list[Tensor] | None:
        """Return the refresh that the next step may start from, as plain tensors; None if there is none."""
        if self.new_block is None or self.new_version != self.layer.weight._version:
            return None
        return [self.new_block.u_RM.clone(), self.new_block.s_R.clone(), self.new_block.v_RN.clone()]

    def stand(self, tensors: list[Tensor] | None) -> None:
        """Take back what :meth:`standing` gave, for the weight as it is now."""
        self.new = self.new_block = None
        if tensors is None or self.operator is None:
            return
        self.new, self.new_version = self.kernel().clone(), self.layer.weight._version
        u_RM, s_R, v_RN = (tensor.to(self.new, copy=True) for tensor in tensors)
        complete = len(s_R) == min(self.operator.inputs, self.operator.outputs)
        self.new_block = TrackedBlock(u_RM, s_R, v_RN, complete)

    def resolvent(self, kernel: Tensor, block: TrackedBlock) -> Resolvent:
        """Return the resolvent of the block's complement, the cheapest that is exact."""
        assert self.operator is not None
        if block.complete:
            return FlatResolvent(block.s_R[0])
        if is_exact(self.operator):
            return GramResolvent.build(kernel, block)
        return CgResolvent(self.operator, kernel, block)

    def respond(
        self, kernel: Tensor, block: TrackedBlock, direction: Tensor, length: float, noise: NoiseImages | None
    ) -> Response:
        """Return what ``W + length * direction`` does to the top of the spectrum, and the noise's form beside it.

        All changes share one solve with the complement.
        """
        assert self.operator is not None
        change = project_change(self.operator, direction, block)
        corner_RR = torch.diag(block.s_R) + change.corner_RR * length
        p_1M, y_1N = change.turning(block, corner_RR)
        image_KM, coimage_KN = change.image_RM[:1], change.coimage_RN[:1]
        if noise is not None:
            image_KM, coimage_KN = torch.cat([image_KM, noise.image_KM]), torch.cat([coimage_KN, noise.coimage_KN])
        split = split_change(block, image_KM, coimage_KN)
        p_KM, y_KN = torch.cat([p_1M, split.p_KM]), torch.cat([y_1N, split.y_KN])
        x_KM, z_KN = self.resolvent(kernel, block).solve(p_KM, y_KN)
        q_K = split.block_K + complement_form(p_KM, y_KN, x_KM, z_KN)[1:]
        moved = torch.add(kernel, direction, alpha=length)
        corner = bordered_corner(self.operator, moved, change, corner_RR, length, x_KM[:1], z_KN[:1])
        noise_q = q_K[1:].sum() * noise.factor if noise is not None else None
        return Response(change.corner_RR[0, 0], q_K[0], corner, noise_q)

    def predict(
        self, direction: Tensor, length: float, substeps: int, noise: NoiseImages | None
    ) -> tuple[Response, list[tuple[Tensor, Tensor]]]:
        """Return the response at the old weight, and (corner, s_1) of each stretch of the way to the new one.

        A step that is long for the norm is followed in stretches, each predicted from a block brought up to its start.
        """
        assert self.operator is not None
        assert self.block is not None
        assert self.old is not None
        response = self.respond(self.old, self.block, direction, length / substeps, noise)
        stretches = [(response.corner, self.block.s_R[0])]
        block = self.block
        for index in range(1, substeps):
            kernel = torch.add(self.old, direction, alpha=length * index / substeps)
            block = refresh(self.operator, kernel, block.v_RN)
            corner = self.respond(kernel, block, direction, length / substeps, None).corner
            stretches.append((corner, block.s_R[0]))
        return response, stretches

    def update_norm(self, direction: Tensor) -> Tensor:
        """Return s_1 of the direction, on the safe side: Ritz value of a warm-started power step, plus residual."""
        assert self.operator is not None
        assert self.update_KN is not None
        v_KN = self.operator.adjoint(direction, self.operator.apply(direction, self.update_KN))
        v_KN = torch.linalg.qr(v_KN.mT)[0].mT
        squared_KN = self.operator.adjoint(direction, self.operator.apply(direction, v_KN))
        ritz_KK = squared_KN @ v_KN.mT
        residual = torch.addmm(squared_KN, ritz_KK, v_KN, alpha=-1.0).norm()
        self.update_KN = v_KN
        mean, half = 0.5 * (ritz_KK[0, 0] + ritz_KK[-1, -1]), 0.5 * (ritz_KK[0, 0] - ritz_KK[-1, -1])
        size: Tensor = (mean + torch.hypot(half, ritz_KK[0, -1]) + residual).sqrt()
        return size
