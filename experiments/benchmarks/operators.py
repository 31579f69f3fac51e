"""Top singular triples of B weights at once, by warm-started power iteration on the true operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipadvisor.experiments.benchmarks.population import Population

__all__ = ["Operator", "Pair", "find_operators", "refresh"]

_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Operator:
    """How the weights (B, ...) of one layer act on flat vectors (B, N)."""

    name: str  # of the module
    key: str  # of its weight among the parameters
    kind: str  # "linear" or "conv2d"
    shape: tuple[int, int]  # (fan_out, fan_in) of the matrix view
    image: tuple[int, int, int] = (0, 0, 0)  # (channels, height, width) of a convolution's input
    padding: int = 0

    @property
    def inputs(self) -> int:
        """Entries of one input."""
        channels, height, width = self.image
        return channels * height * width if self.kind == "conv2d" else self.shape[1]

    def apply(self, weight: Tensor, v: Tensor) -> Tensor:
        """Return (B, M) for ``v`` (B, N)."""
        if self.kind == "linear":
            return torch.bmm(weight, v.unsqueeze(2)).squeeze(2)
        members, (channels, height, width) = len(weight), self.image
        maps = v.reshape(1, members * channels, height, width)
        y = functional.conv2d(maps, weight.flatten(0, 1), padding=self.padding, groups=members)
        return y.reshape(members, -1)

    def adjoint(self, weight: Tensor, u: Tensor) -> Tensor:
        """Return (B, N) for ``u`` (B, M)."""
        if self.kind == "linear":
            return torch.bmm(u.unsqueeze(1), weight).squeeze(1)
        members, (_, height, width) = len(weight), self.image
        rows, columns = (size + 2 * self.padding - weight.shape[-1] + 1 for size in (height, width))
        maps = u.reshape(1, members * weight.shape[1], rows, columns)
        x = functional.conv_transpose2d(maps, weight.flatten(0, 1), padding=self.padding, groups=members)
        return x.reshape(members, -1)


@dataclass(frozen=True, slots=True)
class Pair:
    """Estimates of the top triple of each member: ``s`` (B,), ``u`` (B, M), ``v`` (B, N), unit vectors."""

    s: Tensor
    u: Tensor
    v: Tensor


def refresh(operator: Operator, weight: Tensor, v: Tensor, iterations: int) -> Pair:
    """Return the triple after ``iterations`` of power iteration from ``v`` (B, N); ``s`` is a lower bound."""
    for _ in range(iterations):
        u = operator.apply(weight, v)
        u = u / u.norm(dim=1, keepdim=True).clamp_min(_TINY)
        v = operator.adjoint(weight, u)
        s = v.norm(dim=1)
        v = v / s.clamp_min(_TINY).unsqueeze(1)
    return Pair(s, u, v)


def find_operators(population: Population) -> tuple[Operator, ...]:
    """Return the layers that the probe measures, Linear and Conv2d, in the model's order."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            shapes[name] = tuple(arguments[0].shape)

        return hook

    layers = [(n, m) for n, m in population.template.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    handles = [module.register_forward_pre_hook(note(name)) for name, module in layers]
    with torch.no_grad():
        population.template(population.data.train.inputs[:4])
    for handle in handles:
        handle.remove()
    return tuple(_operator(name, module, shapes[name]) for name, module in layers)


def _operator(name: str, module: nn.Linear | nn.Conv2d, seen: tuple[int, ...]) -> Operator:
    key = f"{name}.weight" if name else "weight"
    rows = module.weight.shape[0]
    if isinstance(module, nn.Linear):
        return Operator(name, key, "linear", (rows, module.in_features))
    fan_in = module.weight[0].numel()
    return Operator(name, key, "conv2d", (rows, fan_in), (seen[1], seen[2], seen[3]), int(module.padding[0]))
