"""Log gains of the operations between modules, as torch.export names them, on the values of one batch.

Each gain bounds the operation's Jacobian with respect to one input at these values, so the composed bound is an upper
bound of the network's local Lipschitz constant on the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lipadvisor.modules.activations import gelu_supremum, softplus_supremum
from lipadvisor.modules.operator_norm import jacobian_norm

__all__ = ["CONCATENATIONS", "PASSING", "carries", "gains"]

PASSING = frozenset(
    [
        "view",
        "reshape",
        "_unsafe_view",
        "transpose",
        "t",
        "permute",
        "unsqueeze",
        "squeeze",
        "slice",
        "select",
        "to",
        "_to_copy",
        "clone",
        "contiguous",
        "flatten",
        "detach",
        "detach_",
        "alias",
        "chunk",
        "split",
        "split_with_sizes",
        "unbind",
        "narrow",
        "movedim",
        "dropout",
        "dropout_",
        "feature_dropout",
        "lift_fresh",
        "neg",
        "unflatten",
        "view_as",
        "reshape_as",
        "type_as",
        "tensor_split",
        "lift_fresh_copy",
        "numpy_T",
        "swapaxes",
        "roll",
        "flip",
        "real",
        "imag",
        "view_as_real",
        "view_as_complex",
        "conj",
        "_conj",
        "conj_physical",
        "_conj_physical",
        "resolve_conj",
        "resolve_neg",
    ]
)  # each output entry is one input entry, and none comes twice
CONCATENATIONS = frozenset(["cat", "stack", "hstack", "vstack", "concat"])
_CONSTANTS = {
    "relu": 1.0,
    "relu_": 1.0,
    "tanh": 1.0,
    "sigmoid": 0.25,
    "gelu": gelu_supremum(),
    "softmax": 0.5,
    "_softmax": 0.5,
    "_safe_softmax": 0.5,
    "abs": 1.0,
    "sin": 1.0,
    "cos": 1.0,
    "clamp": 1.0,
    "hardtanh": 1.0,
    "masked_fill": 1.0,
    "tril": 1.0,
    "triu": 1.0,
}
_POINTWISE = frozenset(
    [
        "pow",
        "rsqrt",
        "sqrt",
        "exp",
        "log",
        "square",
        "reciprocal",
        "silu",
        "silu_",
        "elu",
        "erf",
        "mish",
        "hardswish",
        "leaky_relu",
    ]
)
_PLACEMENTS = frozenset(["slice_scatter", "select_scatter", "diagonal_scatter"])
_ADDITIONS = frozenset(["add", "sub", "rsub", "add_", "sub_", "__iadd__", "iadd", "where"])
_PRODUCTS = frozenset(["mul", "mul_", "__mul__"])
_MATRIX = frozenset(["matmul", "bmm"])
_ALSO_COMPLEX = frozenset(["abs", "masked_fill", "tril", "triu"])  # tanh and its like have poles there


def carries(value: Any) -> bool:
    """Whether a value may carry the signal: a tensor of real or complex floating-point numbers."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def gains(name: str, call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[int, float]:
    """Return, for each positional tensor argument that :func:`carries`, a bound of the Jacobian in it.

    Complex numbers count as pairs of real ones.

    Args:
        name: the operation's name without overload.
        call: the operation.
        args: positional arguments with values; sequences of tensors count for :data:`CONCATENATIONS` alone.
        kwargs: keyword arguments.
    """
    floats = [i for i, value in enumerate(args) if carries(value)]
    if name in PASSING or name in _PLACEMENTS:
        return dict.fromkeys(floats, 1.0)
    if name == "copy":  # of what it is written over nothing is left
        return {0: 0.0, **_broadcast(name, call, [torch.zeros_like(args[0]), args[1]], {}, [1])}
    if name == "expand" or name in _ADDITIONS:
        return _broadcast(name, call, args, kwargs, floats)
    if name in _PRODUCTS:
        return _product(args, floats)
    if name in ("div", "div_"):
        return _quotient(args, floats)
    if name in _MATRIX and len(floats) == 2:
        return _matrix_product(args)
    if name in ("mean", "sum"):
        return _reduction(name, call, args, kwargs)
    if name == "scaled_dot_product_attention":
        return _attention(args, kwargs)
    intricate = any(args[i].is_complex() for i in floats) and name not in _ALSO_COMPLEX
    if name in _POINTWISE and not intricate:
        return {floats[0]: _slope(call, args, kwargs, floats[0])} if len(floats) == 1 else _general(call, args, kwargs)
    if name == "softplus":
        return {0: softplus_supremum(float(args[2] if len(args) > 2 else kwargs.get("threshold", 20.0)))}
    if name in _CONSTANTS and not intricate and floats == [0]:
        return {0: _CONSTANTS[name]}
    return _general(call, args, kwargs)


def _repeats(x: Tensor, shape: torch.Size) -> float:
    """Root of how often each entry of x is repeated when it is broadcast to ``shape``."""
    return math.sqrt(math.prod(shape) / max(x.numel(), 1))


def _broadcast(
    name: str, call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], floats: list[int]
) -> dict[int, float]:
    shape = call(*args, **kwargs).shape
    result = {i: _repeats(args[i], shape) for i in floats}
    scale = abs(float(kwargs.get("alpha", 1)))
    scaled = 0 if name == "rsub" else 1
    if scale != 1 and scaled in result:
        result[scaled] *= scale
    return result


def _weighted(factor: Tensor, x: Tensor, shape: torch.Size) -> float:
    """Norm of ``dx -> factor * dx`` broadcast to ``shape``: columns are disjoint, so the longest one."""
    squares = (factor.detach().abs().double() ** 2).expand(shape)
    return math.sqrt(float(squares.sum_to_size(x.shape).max())) if x.numel() else 0.0


def _product(args: Sequence[Any], floats: list[int]) -> dict[int, float]:
    a, b = args[0], args[1]
    if not isinstance(b, Tensor):
        return {0: float(abs(b))}
    if not isinstance(a, Tensor):
        return {1: float(abs(a))}
    shape = torch.broadcast_shapes(a.shape, b.shape)
    return {i: _weighted(args[1 - i], args[i], shape) for i in floats}


def _quotient(args: Sequence[Any], floats: list[int]) -> dict[int, float]:
    a, b = args[0], args[1]
    if not isinstance(b, Tensor):
        return {0: 1 / float(abs(b))}
    shape = torch.broadcast_shapes(a.shape, b.shape) if isinstance(a, Tensor) else b.shape
    result = {1: _weighted(torch.as_tensor(a) / b**2, b, shape)} if 1 in floats else {}
    if 0 in floats:
        result[0] = _weighted(1 / b, a, shape)
    return result


def _matrix_product(args: Sequence[Any]) -> dict[int, float]:
    a, b = args[0].detach(), args[1].detach()
    if a.ndim < 2 or b.ndim < 2:
        return {0: float(b.norm()), 1: float(a.norm())}
    repeat = math.prod(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
    left, right = (
        float(torch.linalg.matrix_norm(x.to(torch.complex128 if x.is_complex() else torch.float64), 2).max())
        for x in (b, a)
    )
    return {
        0: left * math.sqrt(repeat / max(math.prod(a.shape[:-2]), 1)),
        1: right * math.sqrt(repeat / max(math.prod(b.shape[:-2]), 1)),
    }


def _reduction(name: str, call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[int, float]:
    merged = args[0].numel() / max(call(*args, **kwargs).numel(), 1)
    return {0: math.sqrt(merged) if name == "sum" else 1 / math.sqrt(merged)}


def _attention(args: Sequence[Any], kwargs: dict[str, Any]) -> dict[int, float]:
    """Bounds in q, k, v: |P|, and the covariances of values and keys under P, head by head.

    ``dy_i = sum_j P_ij dv_j + c sum_j P_ij (v_j - y_i)(dq_i . k_j + q_i . dk_j)``.
    """
    q, k, v = (value.detach().float() for value in args[:3])
    mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
    causal = args[5] if len(args) > 5 else kwargs.get("is_causal", False)
    c = kwargs.get("scale") or q.shape[-1] ** -0.5
    repeat = q.shape[-3] // k.shape[-3] if q.ndim > 2 and k.ndim > 2 else 1
    if repeat > 1:  # grouped queries: each key head serves several
        k, v = k.repeat_interleave(repeat, -3), v.repeat_interleave(repeat, -3)
    S = c * q @ k.transpose(-1, -2)
    if causal:
        S = S.masked_fill(torch.ones(S.shape[-2:], dtype=torch.bool, device=S.device).triu(1), -math.inf)
    if mask is not None:
        S = S.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else S + mask
    P = torch.softmax(S, -1).nan_to_num(0.0)
    y = P @ v
    by_query = by_key = 0.0
    flat = zip(*(x.reshape(-1, *x.shape[-2:]) for x in (P, v, y, k, q)), strict=True)
    for P_h, v_h, y_h, k_h, q_h in flat:
        spread = P_h[:, :, None] * (v_h[None] - y_h[:, None])  # (N, N, d)
        by_query = max(
            by_query, float(torch.einsum("ijd,ije->ide", spread, k_h.expand(len(q_h), -1, -1)).norm(dim=(1, 2)).max())
        )
        rows = spread.flatten(1).norm(dim=1) * q_h.norm(dim=1)
        by_key = max(by_key, float(rows.norm()))
    by_value = math.sqrt(float(P.sum(-2).max()))  # |P| <= root of the largest column sum, rows sum to 1
    group = math.sqrt(repeat)
    return {0: c * by_query, 1: c * by_key * group, 2: by_value * group}


def _slope(call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], at: int) -> float:
    with torch.enable_grad():
        x = args[at].detach().double().requires_grad_(True)
        (slope,) = torch.autograd.grad(call(*args[:at], x, *args[at + 1 :], **kwargs).sum(), x)
    return float(slope.abs().max())


def _general(call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[int, float]:
    """The Jacobian's norm at these values, by Lanczos, input by input: for operations without a rule."""
    result = {}
    for i, value in enumerate(args):
        if carries(value):

            def function(x: Tensor, i: int = i, paired: bool = value.is_complex()) -> Tensor:
                z = torch.view_as_complex(x) if paired else x.clone()  # a copy: the operation may write to it
                output = call(*args[:i], z, *args[i + 1 :], **kwargs)
                parts = output if isinstance(output, (tuple, list)) else (output,)
                flat = [_in_pairs(part).flatten() for part in parts if carries(part)]
                return torch.cat(flat) if flat else x.new_zeros(1)

            result[i] = jacobian_norm(function, _in_pairs(value), steps=16, restarts=2).value * (1 + 1e-3)
    return result


def _in_pairs(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
