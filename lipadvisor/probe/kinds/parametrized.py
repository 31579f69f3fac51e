"""Weights that are computed from parameters: ``torch.nn.utils.parametrizations`` and the older hooks.

What is measured is the weight as it acts. A step moves the parameters ``theta``; what it did to the weight is read from
the weight itself, all decay included. A sample's gradient reaches the weight through the parameters: with ``D`` the
derivative of the weight to them and ``P`` the optimizer's preconditioner there, as ``D P D' g``.

Computing a weight may change it (the power iteration of a spectral norm, in training mode): here it is computed as in
eval mode, and nothing moves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize

from lipadvisor.probe.kinds.kind import marks

__all__ = ["Computed", "ThroughParameters", "computed_source", "constrained_parameters"]


@dataclass(slots=True, eq=False)
class Computed:
    """A weight that is computed.

    Attributes:
        weight: the largest of the parameters: it stands for them.
        recipe: module without inputs that computes the weight from its parameters.
        names: of the parameters in the recipe.
        parameters: themselves.
        kept: their values before the step.
    """

    weight: nn.Parameter
    recipe: nn.Module
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    kept: tuple[Tensor, ...] = field(default=())

    def value(self) -> Tensor:
        """Return the weight as it acts now, detached; nothing moves."""
        with torch.no_grad():
            return self._compute([p.detach() for p in self.parameters])

    def versions(self) -> tuple[float | Tensor, ...]:
        """Return the marks of all that the weight is computed from, those of its buffers last."""
        own = tuple(mark for parameter in self.parameters for mark in marks(parameter))
        return own + tuple(buffer._version for buffer in self.recipe.buffers())

    @property
    def buffers(self) -> int:
        """How many of the marks, the last ones, are of what the recipe itself may change in each pass."""
        return sum(1 for _ in self.recipe.buffers())

    def keep(self) -> None:
        """Copy the parameters as they are before the step."""
        self.kept = tuple(p.detach().clone() for p in self.parameters)

    def pull(self, w: Tensor) -> tuple[Tensor, ...]:
        """Return ``D' w``, one for each parameter, at the kept values."""
        with torch.enable_grad():
            theta = [x.clone().requires_grad_() for x in self.kept]
            weight = self._compute(theta)
            return torch.autograd.grad(weight, theta, w.to(weight), materialize_grads=True)

    def push(self, tangents: Sequence[Tensor]) -> Tensor:
        """Return ``D t``, of the weight's shape, at the kept values: the derivative of ``pull`` along ``w``."""
        with torch.enable_grad():
            theta = [x.clone().requires_grad_() for x in self.kept]
            weight = self._compute(theta)
            w = torch.zeros_like(weight).requires_grad_()
            pulled = torch.autograd.grad(weight, theta, w, create_graph=True, materialize_grads=True)
            pairs = [(g, t.to(g)) for g, t in zip(pulled, tangents, strict=True) if g.requires_grad]
            return torch.autograd.grad([g for g, _ in pairs], w, [t for _, t in pairs])[0]

    def _compute(self, theta: Sequence[Tensor]) -> Tensor:
        with _evaluating(self.recipe):
            weight: Tensor = functional_call(self.recipe, dict(zip(self.names, theta, strict=True)), ())
        return weight


@dataclass(frozen=True, slots=True)
class ThroughParameters:
    """How the optimizer answers a gradient at a computed weight: ``D P D'``.

    Attributes:
        source: of the weight.
        scales: P of each parameter; None stands for ones.
        view: from the weight's shape to the kernel's.
        unview: back.
    """

    source: Computed
    scales: tuple[Tensor | None, ...]
    view: Callable[[Tensor], Tensor]
    unview: Callable[[Tensor], Tensor]

    def answer(self, kernel: Tensor) -> Tensor:
        """Return ``D P D' x`` for x of the kernel's shape."""
        return self.forward(self.source.pull(self.unview(kernel)))

    def forward(self, grads: Sequence[Tensor]) -> Tensor:
        """Return ``D P t`` of the kernel's shape, for gradients at the parameters; nan where it has no derivative."""
        scaled = [g if scale is None else g * scale for g, scale in zip(grads, self.scales, strict=True)]
        try:
            return self.view(self.source.push(scaled))
        except (RuntimeError, NotImplementedError):  # not every function can be differentiated twice
            return torch.full_like(self.view(self.source.value()), float("nan"))


def computed_source(owner: nn.Module, key: str) -> Computed | str:
    """Return where the weight ``key`` of ``owner`` comes from, or why that is not known."""
    recipe: nn.Module
    if parametrize.is_parametrized(owner, key):
        recipe = owner.get_submodule(f"parametrizations.{key}")
    else:
        hook = next((h for h in owner._forward_pre_hooks.values() if _computes(h, key)), None)
        if hook is None:
            return "its weight is no parameter, and how it is computed is not known"
        recipe = _Hooked(owner, hook)
    named = [(name, p) for name, p in recipe.named_parameters() if _belongs(name, key, recipe)]
    if not named:
        return "its weight is computed from no parameter"
    largest = max((p for _, p in named), key=lambda p: p.numel())
    return Computed(largest, recipe, tuple(name for name, _ in named), tuple(p for _, p in named))


def constrained_parameters(model: nn.Module) -> tuple[nn.Parameter, ...]:
    """Return the parameters of orthogonal weights, which no decay should act on.

    It cannot shrink what they make. Worse, torch's Householder map (its choice for weights that are not square) reads
    signs off their diagonal as whole numbers: once decay has made a 1 a 0.999 the weight is zero.
    """
    orthogonal = getattr(parametrizations, "_Orthogonal", ())
    lists = (module for module in model.modules() if isinstance(module, parametrize.ParametrizationList))
    return tuple(p for one in lists if any(isinstance(part, orthogonal) for part in one) for p in one.parameters())


class _Hooked(nn.Module):
    """The recipe of a hook that computes a weight before each call."""

    def __init__(self, owner: nn.Module, hook: Any) -> None:
        super().__init__()
        self.owner, self.hook = owner, hook
        self.training = False

    def forward(self) -> Tensor:
        """Return the weight."""
        iterates = "do_power_iteration" in inspect.signature(self.hook.compute_weight).parameters
        still = {"do_power_iteration": False} if iterates else {}
        weight: Tensor = self.hook.compute_weight(self.owner, **still)
        return weight


def _computes(hook: Any, key: str) -> bool:
    """Whether a hook is that of the older weight or spectral norm, for this weight."""
    return getattr(hook, "name", None) == key and callable(getattr(hook, "compute_weight", None))


def _belongs(name: str, key: str, recipe: nn.Module) -> bool:
    return not isinstance(recipe, _Hooked) or name.startswith(f"owner.{key}_")


@contextmanager
def _evaluating(recipe: nn.Module) -> Iterator[None]:
    """Put the modules of a recipe into eval mode, without their own ``eval`` methods, and back."""
    modules = [module for module in recipe.modules() if module.training]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True
