"""The slow way: every sample's gradient by vmap(grad) in float64, full SVDs, sums as they are defined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lipadvisor.probe import Probe

Loss = Callable[[Tensor, Tensor], Tensor]


def sample_gradients(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Gradient (B, *shape) of each sample's own ``loss(output, target)``, by parameter, in float64."""
    values = {name: p.detach().double() for name, p in model.named_parameters()}
    buffers = {name: b.detach() for name, b in model.named_buffers()}

    def one(parameters: dict[str, Tensor], xi: Tensor, yi: Tensor) -> Tensor:
        return loss(functional_call(model, (parameters, buffers), (xi[None],)), yi[None])

    data = x.double() if x.is_floating_point() else x
    return vmap(grad(one), in_dims=(None, 0, 0))(values, data, y)


def dense(probe: Probe, index: int, kernel: Tensor) -> Tensor:
    """The matrix (M, N) of a layer's operator with ``kernel``."""
    layer = probe.layers[index]
    operator = layer.operator(probe._capture.input_shapes.get(index))
    assert operator is not None
    return operator.apply(layer.form.view(kernel), torch.eye(operator.inputs, dtype=kernel.dtype)).mT


def form(W: Tensor, E: Tensor) -> Tensor:
    """q(E) by its definition, theory section 3."""
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    a, b = U.mT @ (E @ Vh[0]), Vh @ (E.mT @ U[:, 0])
    inside = ((s[0] * (a**2 + b**2) + 2 * s * a * b)[1:] / (s[0] ** 2 - s[1:] ** 2)).sum()
    rest = (E @ Vh[0]).square().sum() - a.square().sum() + (E.mT @ U[:, 0]).square().sum() - b.square().sum()
    return inside + rest / s[0]


@dataclass(frozen=True)
class Truth:
    noise_LL: Tensor  # covariance over batches of u' (P * G) v / s
    curvature_L: Tensor  # E q(noise) / s
    scalars_LB: Tensor  # u' (P * x_i) v / s of each sample's share of the gradient


def noise(probe: Probe, weights: Sequence[Tensor], shares: Sequence[Tensor], scales: Sequence[Tensor | None]) -> Truth:
    """The noise of a gradient that is the sum of independent shares (B, *shape), one list entry for each layer.

    Args:
        probe: for the layers' operators.
        weights: before the step.
        shares: of every sample, of the gradient that the optimizer was given.
        scales: preconditioners.
    """
    scalars, curvatures = [], []
    for index, (weight, share_B, scale) in enumerate(zip(weights, shares, scales, strict=True)):
        W = dense(probe, index, weight.detach().double())
        U, s, Vh = torch.linalg.svd(W, full_matrices=False)
        own = share_B.double() if scale is None else share_B.double() * scale.double()
        matrices = [dense(probe, index, g) for g in own]
        scalars.append(torch.stack([U[:, 0] @ g @ Vh[0] / s[0] for g in matrices]))
        mean = torch.stack(matrices).mean(0)
        count = len(matrices)
        curvatures.append(torch.stack([form(W, g - mean) for g in matrices]).sum() / s[0] * count / (count - 1))
    scalars_LB = torch.stack(scalars)
    centred_LB = scalars_LB - scalars_LB.mean(1, keepdim=True)
    count = scalars_LB.shape[1]
    return Truth(centred_LB @ centred_LB.mT * (count / (count - 1)), torch.stack(curvatures), scalars_LB)


def adam_scale(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> Tensor:
    """``1 / (sqrt(vhat) + eps)`` after the step."""
    state, group = optimizer.state[weight], optimizer.param_groups[0]
    correction = 1 - group["betas"][1] ** float(state["step"])
    return 1 / ((state["exp_avg_sq"].double() / correction).sqrt() + group["eps"])
