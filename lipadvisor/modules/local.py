"""The local Lipschitz constant of a network on a batch: the lower bound beside the composed upper one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lipadvisor.modules.operations import carries
from lipadvisor.modules.operator_norm import Norm, jacobian_norm
from lipadvisor.modules.running import arguments, observed, run

__all__ = ["local_lipschitz", "perturbed"]


class _Sources:
    """Adds one flat perturbation to the network's float inputs, or to the outputs of the modules named."""

    def __init__(self, model: nn.Module, batch: Any, sources: tuple[str, ...]) -> None:
        self.model, self.batch, self.sources = model, batch, sources
        self.sizes: list[int] = []
        if sources:
            with torch.no_grad():
                self._run(lambda tensor: self.sizes.append(tensor.numel()) or tensor)  # type: ignore[func-returns-value]
        else:
            self.sizes = [value.numel() * (1 + value.is_complex()) for value in self._signals()]

    def _signals(self) -> list[Tensor]:
        args, kwargs = arguments(self.batch)
        return [v for v in (*args, *kwargs.values()) if carries(v)]

    def _run(self, change: Any) -> Tensor:
        modules = dict(self.model.named_modules())
        hooks = [modules[name].register_forward_hook(lambda m, a, out: change(out)) for name in self.sources]
        try:
            return run(self.model, self.batch)
        finally:
            for hook in hooks:
                hook.remove()

    def __call__(self, delta: Tensor) -> Tensor:
        parts = iter(delta.split(self.sizes))
        if self.sources:
            return self._run(lambda out: out + next(parts).reshape(out.shape).to(out.dtype))
        args, kwargs = arguments(self.batch)

        def moved(value: Any) -> Any:
            return _shifted(value, next(parts)) if carries(value) else value

        moved_args = tuple(moved(value) for value in args)
        return run(self.model, {name: moved(v) for name, v in kwargs.items()} if kwargs else moved_args)


def _shifted(value: Tensor, delta: Tensor) -> Tensor:
    if value.is_complex():  # pairs of real numbers
        return value + torch.view_as_complex(delta.reshape(*value.shape, 2)).to(value.dtype)
    return value + delta.reshape(value.shape).to(value.dtype)


def perturbed(model: nn.Module, batch: Any, sources: tuple[str, ...]) -> tuple[_Sources, Tensor]:
    """Return the network as a function of a flat perturbation of its input, and the perturbation 0."""
    function = _Sources(model, batch, sources)
    like = next(model.parameters(), torch.zeros(()))
    return function, torch.zeros(sum(function.sizes), dtype=like.dtype.to_real(), device=like.device)


def local_lipschitz(
    model: nn.Module, batch: Any, sources: tuple[str, ...] = (), steps: int = 12, restarts: int = 2, seed: int = 0
) -> Norm:
    """Return ``max_x |J_f(x)|_2`` over the batch, from below, by Lanczos on Jacobian products.

    Args:
        model: any module; left as it is.
        batch: as in :func:`~lipadvisor.modules.compose`.
        sources: modules whose outputs are the variable (embeddings of integer inputs); empty: the float inputs.
        steps: Jacobian products between restarts, each about three forward passes.
        restarts: at most so many.
        seed: of the starting vector.
    """
    with observed(model):
        function, zero = perturbed(model, batch, sources)
        return jacobian_norm(function, zero, steps, seed, restarts)
