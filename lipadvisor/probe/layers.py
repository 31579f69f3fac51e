"""Which weights of a model are measured, and why the others are not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from lipadvisor.spectra import Conv2dOperator, LayerOperator, LinearOperator

__all__ = ["Skipped", "TrackedLayer", "find_layers"]


@dataclass(frozen=True, slots=True)
class TrackedLayer:
    """One measured weight.

    Attributes:
        name: of the module, as in ``model.named_modules()``.
        kind: "linear" or "conv2d".
        shape: (fan_out, fan_in) of the matrix view.
        group: index of the optimizer's parameter group that holds the weight.
        weight: the parameter itself.
        module: the module that owns it.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    group: int
    weight: nn.Parameter
    module: nn.Module

    def operator(self, input_shape: tuple[int, ...] | None) -> LayerOperator | None:
        """Return the layer as an operator; None for a convolution whose input size is not known yet.

        Args:
            input_shape: shape of one batch of inputs, (B, C, H, W) for a convolution.
        """
        if isinstance(self.module, nn.Conv2d):
            if input_shape is None:
                return None
            module = self.module
            return Conv2dOperator(
                (int(input_shape[-3]), int(input_shape[-2]), int(input_shape[-1])),
                (self.weight.shape[0], self.weight.shape[1], self.weight.shape[2], self.weight.shape[3]),
                (module.stride[0], module.stride[1]),
                _symmetric_padding(module) or (0, 0),
                (module.dilation[0], module.dilation[1]),
                module.groups,
            )
        return LinearOperator(*self.shape)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A weight that is not measured, with the reason."""

    name: str
    reason: str


def find_layers(
    model: nn.Module, optimizer: torch.optim.Optimizer, include: tuple[str, ...], exclude: tuple[str, ...]
) -> tuple[tuple[TrackedLayer, ...], tuple[Skipped, ...]]:
    """Return the layers that can be measured, in the model's order, and those that cannot.

    Args:
        model: any module.
        optimizer: the one that holds its parameters.
        include: globs over module names; one must match.
        exclude: globs over module names; none may match.

    Raises:
        ValueError: the optimizer holds none of the model's trainable parameters (one is named), or no layer is left.
    """
    groups = {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if trainable and not any(id(p) in groups for _, p in trainable):
        raise ValueError(
            f"Probe(optimizer=...) must hold the model's parameters, and it holds none of them: "
            f"{trainable[0][0]!r} is missing."
        )
    layers: list[TrackedLayer] = []
    skipped: list[Skipped] = []
    seen: dict[int, str] = {}
    for name, module in model.named_modules():
        own = [key for key, p in module.named_parameters(recurse=False) if p.dim() >= 2]
        if not own:
            continue
        reason = _obstacle(name, module, groups, seen, include, exclude)
        if reason is not None:
            skipped.append(Skipped(name, reason))
            continue
        assert isinstance(module, (nn.Linear, nn.Conv2d))
        weight = module.weight
        assert isinstance(weight, nn.Parameter)
        seen[id(weight)] = name
        kind = "linear" if isinstance(module, nn.Linear) else "conv2d"
        shape = (weight.shape[0], math.prod(weight.shape[1:]))
        layers.append(TrackedLayer(name, kind, shape, groups[id(weight)], weight, module))
    if not layers:
        why = "; ".join(f"{s.name or type(model).__name__}: {s.reason}" for s in skipped[:3]) or "it has no weights"
        raise ValueError(f"Probe(model=...) must have a supported layer (Linear, Conv2d), got none ({why}).")
    return tuple(layers), tuple(skipped)


def _obstacle(
    name: str,
    module: nn.Module,
    groups: dict[int, int],
    seen: dict[int, str],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
) -> str | None:
    if not any(fnmatchcase(name, glob) for glob in include) or any(fnmatchcase(name, glob) for glob in exclude):
        return "excluded by name"
    if not isinstance(module, (nn.Linear, nn.Conv2d)):
        return f"{type(module).__name__} is not supported"
    if "weight" not in module._parameters:
        return "its weight is parametrized"
    weight = module.weight
    if weight.numel() == 0 or isinstance(weight, nn.parameter.UninitializedParameter):
        return "its weight is empty"
    if not weight.requires_grad:
        return "its weight does not require a gradient"
    if id(weight) not in groups:
        return "its weight is not in the optimizer"
    if id(weight) in seen:
        return f"it shares its weight with {seen[id(weight)]!r}"
    if isinstance(module, nn.Conv2d):
        if module.padding_mode != "zeros":
            return f"padding mode {module.padding_mode!r} is not supported"
        if _symmetric_padding(module) is None:
            return "asymmetric padding is not supported"
    return None


def _symmetric_padding(module: nn.Conv2d) -> tuple[int, int] | None:
    """Return (vertical, horizontal) padding; None where 'same' pads more on one side than on the other."""
    if not isinstance(module.padding, str):
        return (module.padding[0], module.padding[1])
    if module.padding == "valid":
        return (0, 0)
    total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if any(t % 2 for t in total):
        return None
    return (total[0] // 2, total[1] // 2)
