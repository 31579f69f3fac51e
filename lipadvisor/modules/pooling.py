"""Pooling. A maximum repeats an input once for each window that it wins; an average is a linear map."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lipadvisor.modules.constant import Constant, Kind
from lipadvisor.modules.linear import columns
from lipadvisor.modules.operator_norm import linear_map_norm
from lipadvisor.modules.registry import Entry, register, register_all

__all__ = ["windows_per_input"]


def windows_per_input(module: Any, size: tuple[int, ...]) -> Tensor:
    """Return, for each position of an input of spatial ``size``, how many windows of a pooling module contain it."""
    axes = len(size)
    counts = torch.ones((), dtype=torch.float64)
    for axis, length in enumerate(size):
        k, s, p, d = (_at(getattr(module, name), axis) for name in ("kernel_size", "stride", "padding", "dilation"))
        reach = d * (k - 1) + 1
        steps = (length + 2 * p - reach) / s
        outputs = (math.ceil(steps) if module.ceil_mode else math.floor(steps)) + 1
        if module.ceil_mode and (outputs - 1) * s >= length + p:
            outputs -= 1  # torch drops a window that would start in the right padding
        line = torch.zeros(length, dtype=torch.float64)
        for start in range(outputs):
            for tap in range(k):
                at = start * s - p + tap * d
                if 0 <= at < length:
                    line[at] += 1
        counts = counts.unsqueeze(-1) * line.reshape((1,) * axis + (-1,)) if axis else line
    assert counts.ndim == axes
    return counts


def _at(value: int | tuple[int, ...], axis: int) -> int:
    return int(value[axis]) if isinstance(value, tuple) else int(value)


def _maximum(module: Any, inputs: tuple[Tensor, ...]) -> Constant:
    source = "arXiv 2306.09338; the Jacobian selects one input per window"
    axes = 1 if isinstance(module, nn.MaxPool1d) else 2 if isinstance(module, nn.MaxPool2d) else 3
    if inputs:
        counts = windows_per_input(module, tuple(inputs[0].shape[-axes:]))
        return Constant(math.sqrt(float(counts.max())), Kind.EXACT, "for this input size", source)
    windows = 1
    for axis in range(axes):
        k, s, d = (_at(getattr(module, name), axis) for name in ("kernel_size", "stride", "dilation"))
        windows *= k if d > 1 else math.ceil(k / s)
    return Constant(math.sqrt(windows), Kind.EXACT if windows == 1 else Kind.UPPER, "", source)


def _maximum_jacobian(module: Any, x: Tensor) -> Tensor:
    axes = 1 if isinstance(module, nn.MaxPool1d) else 2 if isinstance(module, nn.MaxPool2d) else 3
    pool = {1: nn.functional.max_pool1d, 2: nn.functional.max_pool2d, 3: nn.functional.max_pool3d}[axes]
    _, where = pool(
        x.unsqueeze(0),
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        ceil_mode=module.ceil_mode,
        return_indices=True,
    )
    plane = math.prod(x.shape[-axes:])
    where = where[0].reshape(x.shape[0], -1) + plane * torch.arange(x.shape[0])[:, None]
    J = torch.zeros(where.numel(), x.numel(), dtype=x.dtype)
    J[torch.arange(where.numel()), where.flatten()] = 1
    return J


def _average(module: nn.Module, inputs: tuple[Tensor, ...]) -> Constant:
    if not inputs:
        raise ValueError(f"the constant of {type(module).__name__} needs an input: its size enters.")
    shape = (1, 1, *inputs[0].shape[2:])  # channels do not mix
    norm = linear_map_norm(module, shape)
    return Constant(norm.value, Kind.EXACT, "for this input size", "s_1 of the averaging operator")


def _adaptive_maximum(module: Any, inputs: tuple[Tensor, ...]) -> Constant:
    source = "an input may win each window that contains it"
    if not inputs:
        return Constant(math.inf, Kind.UPPER, "input size unknown", source)
    size = inputs[0].shape[2:]
    wanted = module.output_size if isinstance(module.output_size, tuple) else (module.output_size,) * len(size)
    most = 1
    for n, m in zip(size, wanted, strict=True):
        m = n if m is None else m
        line = torch.zeros(n)
        for i in range(m):
            line[(i * n) // m : -((-(i + 1) * n) // m)] += 1
        most *= int(line.max())
    return Constant(math.sqrt(most), Kind.EXACT, "for this input size", source)


def _power_average(module: Any, inputs: tuple[Tensor, ...]) -> Constant:
    p, source = float(module.norm_type), "|x|_p <= k^(1/p - 1/2) |x|_2 for p < 2, and <= |x|_2 beyond"
    if p < 1 or (p % 2 and p != 1):
        return Constant(math.inf, Kind.UPPER, "a signed sum under a root", source)
    axes = 1 if isinstance(module, nn.LPPool1d) else 2 if isinstance(module, nn.LPPool2d) else 3
    kernel = [_at(module.kernel_size, axis) for axis in range(axes)]
    strides = [_at(module.stride or module.kernel_size, axis) for axis in range(axes)]
    overlap = math.prod(math.ceil(k / s) for k, s in zip(kernel, strides, strict=True))
    return Constant(max(1.0, math.prod(kernel) ** (1 / p - 0.5)) * math.sqrt(overlap), Kind.UPPER, "", source)


def _fractional(module: Any, inputs: tuple[Tensor, ...]) -> Constant:
    axes = 2 if isinstance(module, nn.FractionalMaxPool2d) else 3
    taps = math.prod(_at(module.kernel_size, axis) for axis in range(axes))
    return Constant(math.sqrt(taps), Kind.UPPER, "random windows", "at most one win per tap of the kernel")


def _unpool(module: nn.Module, inputs: tuple[Tensor, ...]) -> Constant:
    return Constant(1.0, Kind.EXACT, "for fixed, distinct indices", "a permutation into zeros")


for _axes in ("1d", "2d", "3d"):
    register(getattr(nn, f"MaxPool{_axes}"), Entry("max_pool", _maximum, _maximum_jacobian))
    register(getattr(nn, f"AvgPool{_axes}"), Entry("avg_pool", _average, lambda m, x: columns(m, x)))
    register(getattr(nn, f"AdaptiveAvgPool{_axes}"), Entry("avg_pool", _average, lambda m, x: columns(m, x)))
    register(getattr(nn, f"AdaptiveMaxPool{_axes}"), Entry("max_pool", _adaptive_maximum))
    register(getattr(nn, f"MaxUnpool{_axes}"), Entry("max_unpool", _unpool))
register_all((nn.LPPool1d, nn.LPPool2d, nn.LPPool3d), Entry("lp_pool", _power_average))
register_all((nn.FractionalMaxPool2d, nn.FractionalMaxPool3d), Entry("max_pool", _fractional))
