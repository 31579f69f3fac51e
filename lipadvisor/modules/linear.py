"""Linear maps: dense, convolutional, embeddings, and everything else whose output is affine in its input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lipadvisor.modules.constant import Constant, Kind
from lipadvisor.modules.operator_norm import linear_map_norm, matrix_norm
from lipadvisor.modules.registry import Entry, register, register_all

__all__ = ["columns", "one_hot_constant"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def columns(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the matrix (outputs, inputs) of an affine ``function`` of batches, column by column from unit vectors."""
    basis = torch.eye(x.numel(), dtype=x.dtype).reshape(x.numel(), *x.shape)
    with torch.no_grad():
        offset = function(torch.zeros_like(x).unsqueeze(0))
        return (function(basis) - offset).flatten(1).T


def _size_needed(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    if not inputs:
        raise ValueError(f"the constant of {type(module).__name__} needs an input: its size enters.")
    return inputs[0]


def _dense(module: Any, inputs: tuple[Tensor, ...]) -> Constant:
    return Constant(matrix_norm(module.weight), Kind.EXACT, _normalised(module), "s_1(W)")


def _normalised(module: nn.Module) -> str:
    """What a parametrization of the weight guarantees for any value of its parameters."""
    if not parametrize.is_parametrized(module, "weight"):
        return ""
    rules: Any = module.parametrizations
    for rule in rules["weight"]:
        kind = type(rule).__name__
        if kind == "_SpectralNorm":
            if isinstance(module, nn.modules.conv._ConvNd):
                return "spectral normalisation holds the reshaped matrix at 1, which is not this operator"
            return "spectral normalisation: 1 once its power iteration has converged"
        if kind == "_WeightNorm":
            g = rules["weight"].original0.detach()
            if isinstance(module, nn.modules.conv._ConvNd):
                return f"weight normalisation: |g| = {float(g.norm()):.6g} is that of the reshaped matrix"
            return f"weight normalisation: at most |g| = {float(g.norm()):.6g} for any direction"
    return ""


def _dense_jacobian(module: Any, x: Tensor) -> Tensor:
    rows = x.numel() // x.shape[-1]  # a linear layer acts on the last axis, token by token
    return torch.kron(torch.eye(rows, dtype=x.dtype), module.weight.detach())


def _operator(module: nn.Module, inputs: tuple[Tensor, ...]) -> Constant:
    x = _size_needed(module, inputs)
    shape = (1, *x.shape[1:])
    like = next((p for p in module.parameters()), x).detach()
    if not like.is_floating_point():
        like = torch.zeros((), dtype=torch.float64)
    small = math.prod(shape) <= 1 << 14
    if small and like.dtype != torch.float64:
        norm = linear_map_norm(_in_double(module), shape)
    else:
        norm = linear_map_norm(module, shape, like)
    note = "for this input size" if norm.converged else f"for this input size; residual {norm.residual:.1e}"
    note = "; ".join(part for part in (note, _normalised(module)) if part)
    return Constant(norm.value, Kind.EXACT, note, "s_1 of the true operator, Lanczos on it and its adjoint")


def _in_double(module: nn.Module) -> Callable[[Tensor], Tensor]:
    state = {name: value.detach().double() for name, value in module.named_parameters()}
    state |= {name: value.double() for name, value in module.named_buffers() if value.is_floating_point()}
    return lambda x: torch.func.functional_call(module, state, (x,))


def _operator_jacobian(module: nn.Module, x: Tensor) -> Tensor:
    return columns(module, x)


def one_hot_constant(W: Tensor) -> float:
    """Return ``max_ij |W_i - W_j| / sqrt(2)``: the constant of a table (rows, width) between one-hot inputs."""
    W = W.detach().double()
    return float(torch.cdist(W, W).max()) / math.sqrt(2.0)


def _table(module: Any, inputs: tuple[Tensor, ...]) -> Constant:
    note = "on convex combinations of one-hot inputs"
    if len(module.weight) <= 2048:
        note += f"; between one-hot inputs exactly {one_hot_constant(module.weight):.6g}"
    return Constant(matrix_norm(module.weight), Kind.UPPER, note, "s_1(W)")


def _isometry(module: nn.Module, inputs: tuple[Tensor, ...]) -> Constant:
    return Constant(1.0, Kind.EXACT, "", "a permutation of the entries")


def _bilinear(module: nn.Bilinear, inputs: tuple[Tensor, ...]) -> Constant:
    if len(inputs) < 2:
        return Constant(math.inf, Kind.EXACT, "not Lipschitz on unbounded inputs", "product of the inputs")
    W, a, b = module.weight.detach(), inputs[0].detach().flatten(0, -2), inputs[1].detach().flatten(0, -2)
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        joint = torch.cat([torch.einsum("oij,j->oi", W, y), torch.einsum("oij,i->oj", W, x)], 1)
        worst = max(worst, matrix_norm(joint))
    return Constant(worst, Kind.LOCAL, "on the given batch; not Lipschitz on unbounded inputs", "[W y, x' W]")


register(nn.Linear, Entry("linear", _dense, _dense_jacobian))
register("Conv1D", Entry("linear", _dense))  # GPT-2's transposed dense layer
for _kind in _CONVOLUTIONS:
    register(_kind, Entry(_kind.__name__.lower(), _operator, _operator_jacobian))
register_all((nn.Embedding, nn.EmbeddingBag), Entry("embedding", _table))
register(nn.Bilinear, Entry("bilinear", _bilinear))
register_all(
    (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    Entry("reshape", _isometry, lambda m, x: columns(m, x)),
)
register_all(
    (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.Fold, nn.Unfold),
    Entry("resample", _operator, _operator_jacobian),
)
for _name in ("ZeroPad", "ConstantPad", "ReflectionPad", "ReplicationPad", "CircularPad"):
    for _axes in (1, 2, 3):
        register(getattr(nn, f"{_name}{_axes}d"), Entry("padding", _operator, _operator_jacobian))
