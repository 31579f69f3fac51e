"""Normalisations and dropout. Two readings: the worst case over all inputs, and the largest on the given batch.

For ``y = gamma (x - mean) / sigma`` with ``sigma^2 = var + eps`` over n entries,
``J = diag(gamma) (I - 11'/n - z z'/n) / sigma`` with ``z = (x - mean) / sigma``: a projection but for ``eps``, so
``|J| <= max|gamma| / sigma`` at x and ``max|gamma| / sqrt(eps)`` anywhere, reached at constant x if gamma is uniform.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lipadvisor.modules.constant import Constant, Kind
from lipadvisor.modules.operator_norm import jacobian_norm
from lipadvisor.modules.registry import Entry, register, register_all

__all__ = ["CenterNorm", "local_constant"]

SOURCE = "arXiv 2306.09338, section 3 (normalisation)"


class CenterNorm(nn.Module):
    """``gamma * d/(d-1) * (x - mean(x)) + beta`` over the last axis: LayerNorm without the division, hence Lipschitz.

    Args:
        dim: width d of the last axis, >= 2.

    References:
        Qi et al., LipsFormer, ICLR 2023 (arXiv 2304.09856), section 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 2:
            raise ValueError(f"CenterNorm(dim=...) must be at least 2, got {dim}.")
        self.dim = dim
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Centre the last axis of ``x`` (..., dim)."""
        return self.weight * (self.dim / (self.dim - 1)) * (x - x.mean(-1, keepdim=True)) + self.bias


def _largest(weight: Tensor | None) -> float:
    return 1.0 if weight is None else float(weight.detach().abs().max())


def _uniform(weight: Tensor | None) -> bool:
    return weight is None or bool((weight.detach().abs() == weight.detach().abs().flatten()[0]).all())


def _worst(module: Any, weight: Tensor | None, eps: float) -> Constant:
    value = _largest(weight) / math.sqrt(eps) if eps > 0 else math.inf
    kind = Kind.EXACT if _uniform(weight) else Kind.UPPER
    return Constant(value, kind, "worst case, at inputs without variance", SOURCE)


def _here(value: float) -> Constant:
    return Constant(value, Kind.LOCAL, "bound on the given batch: max|gamma| / std(x)", SOURCE)


def _rows(x: Tensor, axes: int) -> Tensor:
    return x.detach().double().flatten(-axes) if axes > 1 else x.detach().double()


def _layer(module: nn.LayerNorm, inputs: tuple[Tensor, ...]) -> Constant:
    if not inputs:
        return _worst(module, module.weight, module.eps)
    rows = _rows(inputs[0], len(module.normalized_shape))
    return _here(_largest(module.weight) / math.sqrt(float(rows.var(-1, unbiased=False).min()) + module.eps))


def _rms_eps(module: Any, x: Tensor | None) -> float:
    """Epsilon under its names; torch's default is the machine epsilon of the input."""
    for name in ("eps", "variance_epsilon"):
        value = getattr(module, name, None)
        if value is not None:
            return float(value)
    weight = getattr(module, "weight", None)
    like = x if x is not None else weight
    return float(torch.finfo(torch.get_default_dtype() if like is None else like.dtype).eps)


def _rms(module: Any, inputs: tuple[Tensor, ...]) -> Constant:
    weight = getattr(module, "weight", None)
    if not inputs:
        return _worst(module, weight, _rms_eps(module, None))
    rows = _rows(inputs[0], len(getattr(module, "normalized_shape", (1,))))
    size = math.sqrt(float((rows**2).mean(-1).min()) + _rms_eps(module, inputs[0]))
    return _here(_largest(weight) / size if size > 0 else math.inf)


def _grouped(groups: int, weight: Tensor | None, eps: float, x: Tensor) -> Constant:
    blocks = x.detach().double().reshape(len(x), groups, -1)
    std = (blocks.var(-1, unbiased=False) + eps).sqrt()
    size = torch.ones(x.shape[1], dtype=torch.float64) if weight is None else weight.detach().abs().double().cpu()
    gamma = size.reshape(groups, -1).amax(1)
    return _here(float((gamma / std.cpu()).max()))


def _group(module: nn.GroupNorm, inputs: tuple[Tensor, ...]) -> Constant:
    if not inputs:
        return _worst(module, module.weight, module.eps)
    return _grouped(module.num_groups, module.weight, module.eps, inputs[0])


def _running(module: Any) -> Constant:
    gamma = 1.0 if module.weight is None else module.weight.detach().double().abs()
    value = float((gamma / (module.running_var.double() + module.eps).sqrt()).max())
    return Constant(value, Kind.EXACT, "evaluation mode: running statistics", SOURCE)


def _instance(module: Any, inputs: tuple[Tensor, ...]) -> Constant:
    if module.track_running_stats and not module.training:
        return _running(module)
    if not inputs:
        return _worst(module, module.weight, module.eps)
    return _grouped(inputs[0].shape[1], module.weight, module.eps, inputs[0])


def _batch(module: Any, inputs: tuple[Tensor, ...]) -> Constant:
    if module.running_var is not None and not module.training:
        return _running(module)
    if not inputs:
        return _worst(module, module.weight, module.eps)
    x = inputs[0].detach().double().movedim(1, 0).flatten(1)
    gamma = torch.ones(()) if module.weight is None else module.weight.detach().double().abs()
    value = float((gamma / (x.var(1, unbiased=False) + module.eps).sqrt()).max())
    return Constant(value, Kind.LOCAL, "the whole batch as one input: max|gamma| / std(x)", SOURCE)


def _center(module: CenterNorm, inputs: tuple[Tensor, ...]) -> Constant:
    # gamma d/(d-1) (I - 11'/d): the norm of diag(gamma) times a projection, from a d x d Gram matrix.
    d, gamma = module.dim, module.weight.detach().double()
    P = torch.eye(d, dtype=torch.float64) - 1.0 / d
    value = float(torch.linalg.matrix_norm(gamma[:, None] * P, 2)) * d / (d - 1)
    return Constant(value, Kind.EXACT, "", "arXiv 2304.09856, section 4; d/(d-1) for gamma = 1")


def _dropout(module: Any, inputs: tuple[Tensor, ...]) -> Constant:
    if not module.training or module.p == 0:
        return Constant(1.0, Kind.EXACT, "evaluation mode", "")
    value = 1 / (1 - module.p) if module.p < 1 else 0.0
    return Constant(value, Kind.EXACT, "training mode, over all masks", SOURCE)


def _alpha_dropout(module: Any, inputs: tuple[Tensor, ...]) -> Constant:
    if not module.training or module.p == 0:
        return Constant(1.0, Kind.EXACT, "evaluation mode", "")
    low = 1.7580993408473766  # -alpha' of Klambauer et al. 2017, to which dropped units are set
    value = ((1 - module.p) * (1 + module.p * low**2)) ** -0.5 if module.p < 1 else 0.0
    return Constant(value, Kind.EXACT, "training mode, over all masks", "arXiv 1706.02515, section 3")


def local_constant(module: Any, inputs: tuple[Any, ...]) -> Constant:
    """Return the Jacobian's norm on the batch, by Lanczos: the rule for modules without a formula.

    All float inputs vary jointly; a tensor that comes twice (self-attention) is one variable.

    Raises:
        ValueError: no input was given.
    """
    if not inputs:
        raise ValueError(f"the constant of {type(module).__name__} needs an input: it is local.")
    variables: list[Tensor] = []
    for value in inputs:
        if isinstance(value, Tensor) and value.is_floating_point() and not any(value is v for v in variables):
            variables.append(value)
    sizes = [variable.numel() for variable in variables]
    x = torch.cat([variable.detach().flatten() for variable in variables])

    def function(z: Tensor) -> Tensor:
        parts = [part.reshape(v.shape) for part, v in zip(z.split(sizes), variables, strict=True)]
        args = [next((p for p, v in zip(parts, variables, strict=True) if v is value), value) for value in inputs]
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            output = module(*args)
        y: Tensor = output[0] if isinstance(output, tuple) else output
        return y

    norm = jacobian_norm(function, x)
    note = "Jacobian norm on the given batch, from below"
    return Constant(norm.value, Kind.LOCAL, note if norm.converged else f"{note}; residual {norm.residual:.1e}", "")


# Analytic Jacobians at one sample.


def _normalized_block(z: Tensor, sigma: Tensor, gamma: Tensor | None, centered: bool) -> Tensor:
    n = len(z)
    J = torch.eye(n, dtype=z.dtype) - torch.outer(z, z) / n - (1.0 / n if centered else 0.0)
    J = J / sigma
    return J if gamma is None else gamma.detach().flatten()[:, None] * J


def _blocks(x: Tensor, rows: Tensor, gammas: list[Tensor | None], eps: float, centered: bool) -> Tensor:
    parts = []
    for row, gamma in zip(rows, gammas, strict=True):
        shifted = row - row.mean() if centered else row
        sigma = ((shifted**2).mean() + eps).sqrt()
        parts.append(_normalized_block(shifted / sigma, sigma, gamma, centered))
    J: Tensor = torch.block_diag(*parts)
    return J


def _layer_jacobian(module: nn.LayerNorm, x: Tensor) -> Tensor:
    rows = x.reshape(-1, math.prod(module.normalized_shape))
    return _blocks(x, rows, [module.weight] * len(rows), module.eps, True)


def _rms_jacobian(module: Any, x: Tensor) -> Tensor:
    rows = x.reshape(-1, math.prod(getattr(module, "normalized_shape", x.shape[-1:])))
    return _blocks(x, rows, [getattr(module, "weight", None)] * len(rows), _rms_eps(module, x), False)


def _grouped_jacobian(groups: int, weight: Tensor | None, eps: float, x: Tensor) -> Tensor:
    rows = x.reshape(groups, -1)
    plane = x.numel() // x.shape[0]
    gammas: list[Tensor | None] = [None] * groups
    if weight is not None:
        gammas = list(weight.detach().repeat_interleave(plane).reshape(groups, -1))
    return _blocks(x, rows, gammas, eps, True)


def _running_jacobian(module: Any, x: Tensor) -> Tensor:
    scale: Tensor = (module.running_var + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * module.weight.detach()
    return torch.diag(scale.to(x.dtype).repeat_interleave(x.numel() // x.shape[0]))


def _batch_jacobian(module: Any, x: Tensor) -> Tensor:
    if module.training or module.running_var is None:
        raise ValueError("BatchNorm has a Jacobian for one sample in evaluation mode only: call eval() first.")
    return _running_jacobian(module, x)


def _instance_jacobian(module: Any, x: Tensor) -> Tensor:
    if module.track_running_stats and not module.training:
        return _running_jacobian(module, x)
    return _grouped_jacobian(x.shape[0], module.weight, module.eps, x)


def _center_jacobian(module: CenterNorm, x: Tensor) -> Tensor:
    d = module.dim
    block: Tensor = module.weight.detach()[:, None] * (torch.eye(d, dtype=x.dtype) - 1.0 / d) * (d / (d - 1))
    J: Tensor = torch.block_diag(*[block] * (x.numel() // d))
    return J


def _dropout_jacobian(module: Any, x: Tensor) -> Tensor:
    if module.training and module.p > 0:
        raise ValueError("dropout has a fixed Jacobian in evaluation mode only: call eval() first.")
    return torch.eye(x.numel(), dtype=x.dtype)


# The private bases stand for the lazy classes.
register(nn.LayerNorm, Entry("layer_norm", _layer, _layer_jacobian))
register(nn.RMSNorm, Entry("rms_norm", _rms, _rms_jacobian))
register("RMSNorm", Entry("rms_norm", _rms, _rms_jacobian))
register("T5LayerNorm", Entry("rms_norm", _rms, _rms_jacobian))
register(
    nn.GroupNorm,
    Entry("group_norm", _group, lambda m, x: _grouped_jacobian(m.num_groups, m.weight, m.eps, x)),
)
register_all(
    (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.modules.instancenorm._InstanceNorm),
    Entry("instance_norm", _instance, _instance_jacobian),
)
register_all(
    (
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
        nn.SyncBatchNorm,
        nn.modules.batchnorm._BatchNorm,
    ),  # and lazy ones
    Entry("batch_norm", _batch, _batch_jacobian),
)
register(CenterNorm, Entry("center_norm", _center, _center_jacobian))
register(nn.LocalResponseNorm, Entry("local_response_norm", local_constant))
register_all((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), Entry("dropout", _dropout, _dropout_jacobian))
register_all((nn.AlphaDropout, nn.FeatureAlphaDropout), Entry("dropout", _alpha_dropout, _dropout_jacobian))
