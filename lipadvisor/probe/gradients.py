"""The gradient that the optimizer was given, as it acts on a pack's tracked pairs.

This is the sum that the captured samples must add up to, and what successive differences are taken of. It is read
after the optimizer's step, with the preconditioner that contains it, and needs no hooks.

Shapes: ``l`` layers of the pack, ``K`` pairs, ``M`` outputs, ``N`` inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipadvisor.probe import optimizers
from lipadvisor.probe.kinds.parametrized import ThroughParameters
from lipadvisor.probe.pack import Pack, Refreshed

__all__ = ["GradientNotes", "View", "applied_gradient", "given_gradients", "note_gradients", "view", "view_each"]


@dataclass(frozen=True, slots=True)
class GradientNotes:
    """What was known of the gradients before the optimizer acted.

    Attributes:
        versions: of each layer's ``.grad``, by the layer's index; None where there is none.
        scaled: whether the optimizer itself divides out a loss scale (fused optimizers under a gradient scaler).
    """

    versions: dict[int, int | None]
    scaled: bool


def note_gradients(optimizer: torch.optim.Optimizer, packs: Sequence[Pack]) -> GradientNotes:
    """Return the notes for :func:`applied_gradient`."""
    layers = ((i, layer) for pack in packs for i, layer in zip(pack.indices, pack.layers, strict=True))
    versions = {i: None if layer.weight.grad is None else layer.weight.grad._version for i, layer in layers}
    return GradientNotes(versions, getattr(optimizer, "grad_scale", None) is not None)


def applied_gradient(
    optimizer: torch.optim.Optimizer,
    pack: Pack,
    versions: Sequence[int | None],
    scaled: bool,
    scale: Tensor | ThroughParameters | None,
) -> Tensor:
    """Return ``P * G`` (l, *kernel shape) after the step; zeros without a gradient, nan where it has been overwritten.

    Args:
        optimizer: that made the step.
        pack: settled.
        versions: of the pack's gradients before the step.
        scaled: see :class:`GradientNotes`.
        scale: preconditioner P; None stands for ones.
    """
    if isinstance(scale, ThroughParameters):
        return _through_parameters(pack, scale, versions[0], scaled)
    gradient = pack.gather(given_gradients(optimizer, pack, versions, scaled))
    return gradient if scale is None else gradient * scale


def given_gradients(
    optimizer: torch.optim.Optimizer, pack: Pack, versions: Sequence[int | None], scaled: bool
) -> list[Tensor]:
    """Return each layer's gradient of its parameter; for the arguments see :func:`applied_gradient`."""
    grads = []
    for layer, version in zip(pack.layers, versions, strict=True):
        grad = optimizers.raw_gradient(optimizer, layer.weight, layer.group, version, scaled)
        if layer.weight.grad is None:
            grad = torch.zeros_like(layer.weight)
        grads.append(torch.full_like(layer.weight, float("nan")) if grad is None else grad.detach())
    return grads


def _through_parameters(pack: Pack, scale: ThroughParameters, version: int | None, scaled: bool) -> Tensor:
    """Return ``D P g`` (1, *kernel shape) of a weight that is computed from parameters with the gradients ``g``."""
    source, first = scale.source, scale.source.weight.grad
    if first is not None and first._version != version and not scaled:  # written over by the step
        nothing = scale.view(source.value())
        return torch.full_like(nothing, float("nan")).unsqueeze(0)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in source.parameters]
    return scale.forward(grads).unsqueeze(0)


@dataclass(frozen=True, slots=True)
class View:
    """A gradient as one tracked pair of each layer sees it: ``G v`` (l, 1, M), ``G' u`` (l, 1, N), ``u' G v`` (l,)."""

    image_1M: Tensor
    coimage_1N: Tensor | None
    scalar_l: Tensor

    def tensors(self) -> list[Tensor | None]:
        """Return copies of what :meth:`of` takes."""
        coimage = None if self.coimage_1N is None else self.coimage_1N.clone()
        return [self.image_1M.clone(), coimage, self.scalar_l.clone()]

    @classmethod
    def of(cls, tensors: Sequence[Tensor | None], like: Tensor) -> View:
        """Return the view that :meth:`tensors` gave, on the device and in the type of ``like``."""
        image, coimage, scalar = tensors
        assert image is not None
        assert scalar is not None
        return cls(image.to(like), None if coimage is None else coimage.to(like), scalar.to(like))


def view(pack: Pack, gradient: Tensor, states: Sequence[Refreshed], both_sides: bool) -> list[View]:
    """Return what ``gradient`` does to the top pair of each of ``states``.

    Args:
        pack: settled.
        gradient: (l, *kernel shape).
        states: weights with their blocks.
        both_sides: also the images under the adjoint.
    """
    assert pack.operator is not None
    u_KM = torch.cat([state.block.u_RM[:, :1] for state in states], 1)
    v_KN = torch.cat([state.block.v_RN[:, :1] for state in states], 1)
    image_KM = pack.operator.apply(gradient, v_KN)
    coimage_KN = pack.operator.adjoint(gradient, u_KM) if both_sides else None
    scalar_lK = (image_KM * u_KM).sum(-1)
    return [
        View(image_KM[:, k : k + 1], None if coimage_KN is None else coimage_KN[:, k : k + 1], scalar_lK[:, k])
        for k in range(len(states))
    ]


def view_each(pack: Pack, grads: Sequence[Tensor], states: Sequence[Refreshed], both_sides: bool) -> list[View]:
    """Return the same for the gradients of large matrices, which are read where they are."""
    u_KM = torch.cat([state.block.u_RM[:, :1] for state in states], 1)
    v_KN = torch.cat([state.block.v_RN[:, :1] for state in states], 1)
    image_KM, coimage_KN = torch.zeros_like(u_KM), torch.zeros_like(v_KN)
    for place, (layer, grad) in enumerate(zip(pack.layers, grads, strict=True)):
        matrix = layer.form.view(grad).to(u_KM.dtype)
        rows, columns = matrix.shape
        image_KM[place, :, :rows] = v_KN[place, :, :columns] @ matrix.mT
        if both_sides:
            coimage_KN[place, :, :columns] = u_KM[place, :, :rows] @ matrix
    scalar_lK = (image_KM * u_KM).sum(-1)
    return [
        View(image_KM[:, k : k + 1], coimage_KN[:, k : k + 1] if both_sides else None, scalar_lK[:, k])
        for k in range(len(states))
    ]
