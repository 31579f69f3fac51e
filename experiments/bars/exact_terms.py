"""What a measured step should say, computed the dear way: dense operators, full SVDs, per-sample gradients, in float64.

Nothing here shares code with the probe: operators come from torch's own layers applied to unit vectors, per-sample
gradients from ``torch.func``, and the second-order form from all singular vectors.

Shapes: ``B`` samples, ``M`` outputs and ``N`` inputs of a layer, ``R`` the smaller of the two.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.grad import conv2d_input

__all__ = ["DenseLayer", "ExactLayer", "exact_layer", "input_shapes", "optimizer_direction", "sample_gradients"]


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """A Linear or Conv2d layer as a dense matrix of its weight; linear in it.

    Attributes:
        module: whose geometry counts.
        input_shape: of one input, (N,) or (C, H, W).
    """

    module: nn.Linear | nn.Conv2d
    input_shape: tuple[int, ...]

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the operator (M, N) of a weight."""
        if isinstance(self.module, nn.Linear):
            return weight
        size = int(np.prod(self.input_shape))
        units = torch.eye(size, dtype=weight.dtype).reshape(size, *self.input_shape)
        return self._convolve(units, weight).flatten(1).mT

    def images(self, weights: Tensor, v_N: Tensor) -> Tensor:
        """Return ``W_i v`` (B, M) for weights (B, ...)."""
        if isinstance(self.module, nn.Linear):
            return weights @ v_N
        maps = self._convolve(v_N.reshape(1, *self.input_shape), weights.flatten(0, 1))
        return maps.reshape(len(weights), -1)

    def coimages(self, weights: Tensor, u_M: Tensor) -> Tensor:
        """Return ``W_i' u`` (B, N) for weights (B, ...)."""
        if isinstance(self.module, nn.Linear):
            return u_M @ weights
        zero = torch.zeros(1, *self.input_shape, dtype=weights.dtype)
        rows = []
        for weight in weights:
            shape = self._convolve(zero, weight).shape
            rows.append(
                conv2d_input(
                    zero.shape,
                    weight,
                    u_M.reshape(shape),
                    self.module.stride,
                    self.module.padding,
                    self.module.dilation,
                ).reshape(-1)
            )
        return torch.stack(rows)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        assert isinstance(self.module, nn.Conv2d)
        module = self.module
        return nn.functional.conv2d(x, weight, None, module.stride, module.padding, module.dilation)


@dataclass(frozen=True, slots=True)
class ExactLayer:
    """What is exact of one layer at one step; rates are divided by ``s_1`` as in :class:`lipadvisor.terms.Terms`.

    Attributes:
        log_norm: nats.
        gap: ``1 - s_2 / s_1``.
        noise: variance over batches of ``u' (P g) v / s_1``.
        noise_curvature: ``E q(noise) / s_1``.
        update_ratio: ``s_1(U) / s_1``.
        pairs: the two top left and right vectors, (2, M) and (2, N).
    """

    log_norm: float
    gap: float
    noise: float
    noise_curvature: float
    update_ratio: float
    pairs: tuple[Tensor, Tensor]

    def crossed(self, before: ExactLayer) -> bool:
        """Return whether the top pair is rather another one of ``before`` than its top pair: values have crossed."""
        overlap_2 = (before.pairs[0] @ self.pairs[0][0]).abs() * (before.pairs[1] @ self.pairs[1][0]).abs()
        return bool(overlap_2[1] > overlap_2[0])


def exact_layer(dense: DenseLayer, weight: Tensor, direction: Tensor, noises: Tensor) -> ExactLayer:
    """Return what is exact of a layer.

    Args:
        dense: its geometry.
        weight: before the step.
        direction: U, what the optimizer adds, per unit of learning rate.
        noises: ``P * g_i`` of each sample, (B, ...).
    """
    U_MR, s_R, Vh_RN = torch.linalg.svd(dense.matrix(weight), full_matrices=False)
    samples = len(noises)
    scalars_B = (dense.images(noises, Vh_RN[0]) * U_MR[:, 0]).sum(1)
    centred = noises - noises.mean(0)
    image_BM, coimage_BN = dense.images(centred, Vh_RN[0]), dense.coimages(centred, U_MR[:, 0])
    form_B = _form(U_MR, s_R, Vh_RN, image_BM, coimage_BN)
    top = float(s_R[0])
    size = float(torch.linalg.svdvals(dense.matrix(direction))[0])
    return ExactLayer(
        log_norm=float(np.log(top)),
        gap=float(1.0 - s_R[1] / s_R[0]),
        noise=float(scalars_B.var()) / samples / top**2,
        noise_curvature=float(form_B.sum()) / (samples * (samples - 1)) / top,
        update_ratio=size / top,
        pairs=(U_MR[:, :2].mT.clone(), Vh_RN[:2].clone()),
    )


def _form(U_MR: Tensor, s_R: Tensor, Vh_RN: Tensor, image_BM: Tensor, coimage_BN: Tensor) -> Tensor:
    """Return the second-order form q (B,) of changes, by the sum over all singular vectors ([D], Lemma 12)."""
    a_BR, b_BR = image_BM @ U_MR, coimage_BN @ Vh_RN.mT
    top = s_R[0]
    within_BR = (top * (a_BR.square() + b_BR.square()) + 2.0 * s_R * a_BR * b_BR)[:, 1:] / (top**2 - s_R[1:] ** 2)
    beyond_B = image_BM.square().sum(1) - a_BR.square().sum(1) + coimage_BN.square().sum(1) - b_BR.square().sum(1)
    return within_BR.sum(1) + beyond_B / top


def sample_gradients(model: nn.Module, names: Sequence[str], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return each sample's gradient (B, ...) of the weights of the modules ``names``, in float64."""
    twin = copy.deepcopy(model).double()
    weights = {f"{name}.weight": twin.get_parameter(f"{name}.weight").detach() for name in names}
    others = {name: p.detach() for name, p in twin.named_parameters() if name not in weights}

    def loss(at: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(twin, {**others, **at}, (row.unsqueeze(0),))
        return nn.functional.cross_entropy(logits, label.unsqueeze(0))

    found: dict[str, Tensor] = vmap(grad(loss), (None, 0, 0))(weights, x.double(), y)
    return {name: found[f"{name}.weight"] for name in names}


def input_shapes(model: nn.Module, names: Sequence[str], x: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the shape of one input of each module."""
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = []
    for name in names:

        def note(module: nn.Module, arguments: tuple[Any, ...], output: Any, name: str = name) -> None:
            shapes[name] = tuple(arguments[0].shape[1:])

        hooks.append(model.get_submodule(name).register_forward_hook(note))
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return shapes


def optimizer_direction(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> tuple[Tensor, Tensor]:
    """Return U and the preconditioner P of SGD with momentum or AdamW, after the step, in float64 from its state."""
    group, state = optimizer.param_groups[0], optimizer.state[weight]
    if isinstance(optimizer, torch.optim.SGD):
        return -state["momentum_buffer"].double(), torch.ones_like(weight, dtype=torch.float64)
    step = float(state["step"])
    first, second = (1.0 - beta**step for beta in group["betas"])
    scale = 1.0 / ((state["exp_avg_sq"].double() / second).sqrt() + group["eps"])
    return -scale * state["exp_avg"].double() / first, scale
