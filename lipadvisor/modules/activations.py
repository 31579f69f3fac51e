"""Activations: the supremum of |f'| for elementwise ones, and the softmax family."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lipadvisor.modules.constant import Constant, Kind
from lipadvisor.modules.registry import Entry, register

__all__ = ["gelu_supremum", "softplus_supremum", "steepest"]

SOURCE = "arXiv 2306.09338, section 3"
Derivative = Callable[[Any, Tensor], Tensor]


def steepest(function: Callable[[Tensor], Tensor], low: float = -12.0, high: float = 12.0) -> float:
    """Return ``max |f'|`` on [low, high] of a smooth elementwise function, by a grid refined twice (to 1e-9)."""
    for _ in range(3):
        x = torch.linspace(low, high, 4001, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(function(x).sum(), x)
        at = int(slope.abs().argmax())
        width = (high - low) / 4000
        low, high = float(x.detach()[at]) - 2 * width, float(x.detach()[at]) + 2 * width
    return float(slope.abs().max())


def gelu_supremum() -> float:
    """Return the largest slope of the exact GELU, at x = sqrt(2): ``Phi(x) + x phi(x)`` = 1.1289."""
    x = math.sqrt(2.0)
    return 0.5 * (1 + math.erf(x / math.sqrt(2))) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


_SILU = steepest(nn.functional.silu)  # 1.0998, at the root of x tanh(x/2) = 2
_MISH = steepest(nn.functional.mish)  # 1.0885
_GELU_TANH = steepest(lambda x: nn.functional.gelu(x, approximate="tanh"))
_GELU = gelu_supremum()


def softplus_supremum(threshold: float) -> float:
    """Return the largest slope of torch's softplus, which goes over to x at ``beta x = threshold`` by a step.

    The step is ``log(1 + exp(-threshold)) / beta``: inf where float32 sees it beside ``x = threshold / beta``.
    """
    seen = threshold <= 0 or math.log1p(math.exp(-threshold)) / threshold > torch.finfo(torch.float32).eps
    return math.inf if seen else 1.0


def _elementwise(
    kind: type[nn.Module], name: str, supremum: Callable[[Any], float], derivative: Derivative, condition: str = ""
) -> None:
    def constant(module: Any, inputs: tuple[Tensor, ...]) -> Constant:
        value = supremum(module)
        return Constant(value, Kind.EXACT, condition if math.isfinite(value) else "discontinuous", SOURCE)

    def jacobian(module: Any, x: Tensor) -> Tensor:
        return torch.diag(derivative(module, x).flatten())

    register(kind, Entry(name, constant, jacobian))


def _step(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


def _between(x: Tensor, low: float, high: float) -> Tensor:
    return ((x > low) & (x < high)).to(x.dtype)


def _normal_density(x: Tensor) -> Tensor:
    return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _gelu_slope(module: nn.GELU, x: Tensor) -> Tensor:
    if module.approximate == "tanh":
        c = math.sqrt(2 / math.pi)
        t = torch.tanh(c * (x + 0.044715 * x**3))
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * _normal_density(x)


def _mish_slope(_: nn.Mish, x: Tensor) -> Tensor:
    t = torch.tanh(nn.functional.softplus(x))
    return t + x * (1 - t * t) * torch.sigmoid(x)


def _selu_slope(_: nn.SELU, x: Tensor) -> Tensor:
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return scale * torch.where(x > 0, torch.ones_like(x), alpha * torch.exp(x))


def _prelu_slope(module: nn.PReLU, x: Tensor) -> Tensor:
    slope: Tensor = module.weight
    if slope.numel() > 1:
        slope = slope.reshape(-1, *(1,) * (x.ndim - 1))
    return torch.where(x > 0, torch.ones_like(x), slope.to(x.dtype).expand_as(x))


def _leaky(module: Any, x: Tensor) -> Tensor:
    return torch.where(x > 0, torch.ones_like(x), torch.full_like(x, module.negative_slope))


def _rrelu(module: nn.RReLU, x: Tensor) -> Tensor:
    return torch.where(x > 0, torch.ones_like(x), torch.full_like(x, (module.lower + module.upper) / 2))


def _rrelu_supremum(module: nn.RReLU) -> float:
    low, high = abs(module.lower), abs(module.upper)
    return max(1.0, low, high) if module.training else max(1.0, abs(module.lower + module.upper) / 2)


def _one(_: Any) -> float:
    return 1.0


_elementwise(nn.Identity, "identity", _one, lambda m, x: torch.ones_like(x))
_elementwise(nn.ReLU, "relu", _one, lambda m, x: _step(x))
_elementwise(nn.ReLU6, "relu6", _one, lambda m, x: _between(x, 0, 6))
_elementwise(nn.Hardtanh, "hardtanh", _one, lambda m, x: _between(x, m.min_val, m.max_val))
_elementwise(nn.LeakyReLU, "leaky_relu", lambda m: max(1.0, abs(m.negative_slope)), _leaky)
_elementwise(nn.RReLU, "rrelu", _rrelu_supremum, _rrelu, "Jacobian: evaluation mode")
_elementwise(nn.PReLU, "prelu", lambda m: max(1.0, float(m.weight.detach().abs().max())), _prelu_slope)
_elementwise(nn.Sigmoid, "sigmoid", lambda m: 0.25, lambda m, x: torch.sigmoid(x) * torch.sigmoid(-x))
_elementwise(nn.Hardsigmoid, "hardsigmoid", lambda m: 1 / 6, lambda m, x: _between(x, -3, 3) / 6)
_elementwise(nn.Tanh, "tanh", _one, lambda m, x: 1 - torch.tanh(x) ** 2)
_elementwise(nn.Tanhshrink, "tanhshrink", _one, lambda m, x: torch.tanh(x) ** 2)
_elementwise(nn.SiLU, "silu", lambda m: _SILU, lambda m, x: torch.sigmoid(x) * (1 + x * torch.sigmoid(-x)))
_elementwise(nn.Mish, "mish", lambda m: _MISH, _mish_slope)
_elementwise(
    nn.Hardswish,
    "hardswish",
    lambda m: 1.5,
    lambda m, x: torch.where(x >= 3, torch.ones_like(x), torch.where(x <= -3, torch.zeros_like(x), (2 * x + 3) / 6)),
)
_elementwise(
    nn.ELU,
    "elu",
    lambda m: max(1.0, abs(m.alpha)),
    lambda m, x: torch.where(x > 0, torch.ones_like(x), m.alpha * torch.exp(x)),
)
_elementwise(
    nn.CELU, "celu", _one, lambda m, x: torch.where(x > 0, torch.ones_like(x), torch.exp(x / m.alpha)), "alpha > 0"
)
_elementwise(nn.SELU, "selu", lambda m: 1.6732632423543772 * 1.0507009873554805, _selu_slope)
_elementwise(nn.GELU, "gelu", lambda m: _GELU_TANH if m.approximate == "tanh" else _GELU, _gelu_slope)
_elementwise(
    nn.Softplus,
    "softplus",
    lambda m: softplus_supremum(m.threshold),
    lambda m, x: torch.where(m.beta * x > m.threshold, torch.ones_like(x), torch.sigmoid(m.beta * x)),
    "the step at beta x = threshold is below float32's rounding",
)
_elementwise(nn.Softsign, "softsign", _one, lambda m, x: 1 / (1 + x.abs()) ** 2)
_elementwise(nn.LogSigmoid, "log_sigmoid", _one, lambda m, x: torch.sigmoid(-x))
_elementwise(nn.Softshrink, "softshrink", _one, lambda m, x: 1 - _between(x, -m.lambd, m.lambd))
_elementwise(
    nn.Hardshrink,
    "hardshrink",
    lambda m: math.inf if m.lambd > 0 else 1.0,
    lambda m, x: 1 - _between(x, -m.lambd, m.lambd),
)
_elementwise(
    nn.Threshold,
    "threshold",
    lambda m: 1.0 if m.value == m.threshold else math.inf,
    lambda m, x: (x > m.threshold).to(x.dtype),
)


# The softmax family. J = diag(p) - p p' has norm at most 1/2, approached at p = (1/2, 1/2, 0, ...).


def _softmax_axis(module: Any, x: Tensor) -> int:
    if isinstance(module, nn.Softmax2d):
        return 0  # channels of one sample
    if module.dim is None:
        raise ValueError(f"{type(module).__name__}(dim=...) must be set, got None.")
    return int(module.dim) - 1 if module.dim > 0 else int(module.dim)


def _along(x: Tensor, axis: int, block: Callable[[Tensor], Tensor]) -> Tensor:
    """Jacobian of a map that acts on each fibre along ``axis`` by itself; ``block`` gives one fibre's Jacobian."""
    index = torch.arange(x.numel()).reshape(x.shape).movedim(axis, -1).reshape(-1, x.shape[axis])
    fibres = x.movedim(axis, -1).reshape(-1, x.shape[axis])
    J = torch.zeros(x.numel(), x.numel(), dtype=x.dtype)
    for where, fibre in zip(index, fibres, strict=True):
        J[where[:, None], where[None, :]] = block(fibre)
    return J


def _softmax_block(z: Tensor) -> Tensor:
    p = torch.softmax(z, 0)
    return torch.diag(p) - torch.outer(p, p)


def _log_softmax_block(z: Tensor) -> Tensor:
    return torch.eye(len(z), dtype=z.dtype) - torch.softmax(z, 0).expand(len(z), -1)


def _half(module: Any, inputs: tuple[Tensor, ...]) -> Constant:
    return Constant(0.5, Kind.EXACT, "at least two classes", "arXiv 1704.00805, Prop. 4, with the norm of diag(p)-pp'")


def _log_softmax(module: Any, inputs: tuple[Tensor, ...]) -> Constant:
    if not inputs:
        raise ValueError("the constant of LogSoftmax needs its input: it is the root of the number of classes.")
    # I - 1 p' is convex in p, so its norm is largest at a vertex: the Laplacian of a star, sqrt(n).
    return Constant(math.sqrt(inputs[0].shape[module.dim]), Kind.EXACT, "approached as one class takes all", SOURCE)


def _glu(module: nn.GLU, inputs: tuple[Tensor, ...]) -> Constant:
    if not inputs:
        return Constant(math.inf, Kind.EXACT, "not Lipschitz on unbounded inputs: a * sigmoid(b)", SOURCE)
    a, b = (part.detach() for part in inputs[0].chunk(2, module.dim))
    gate = torch.sigmoid(b)
    slope = (gate**2 + (a * gate * (1 - gate)) ** 2).sqrt()  # each output sees two inputs that nothing else sees
    return Constant(float(slope.max()), Kind.LOCAL, "on the given batch; not Lipschitz on unbounded inputs", SOURCE)


register(nn.Softmax, Entry("softmax", _half, lambda m, x: _along(x, _softmax_axis(m, x), _softmax_block)))
register(nn.Softmin, Entry("softmin", _half, lambda m, x: -_along(-x, _softmax_axis(m, x), _softmax_block)))
register(nn.Softmax2d, Entry("softmax2d", _half, lambda m, x: _along(x, _softmax_axis(m, x), _softmax_block)))
register(
    nn.LogSoftmax, Entry("log_softmax", _log_softmax, lambda m, x: _along(x, _softmax_axis(m, x), _log_softmax_block))
)
register(nn.GLU, Entry("glu", _glu))


def _numerically(module: nn.Module, inputs: tuple[Tensor, ...]) -> Constant:
    return Constant(steepest(module), Kind.EXACT, "largest slope on [-12, 12]", "grid of autograd slopes, float64")


for _name in ("GELUActivation", "FastGELUActivation", "QuickGELUActivation", "SiLUActivation", "MishActivation"):
    register(_name, Entry("activation", _numerically))
