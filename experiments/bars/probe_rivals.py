"""Other ways to per-sample gradients, for comparison: each makes a function that computes them for one batch.

Their work replaces a plain step's backward pass or comes on top of it; what is timed is a whole step either way.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["RIVALS", "Step", "rival_step"]

Step = Callable[[Tensor, Tensor], None]
Make = Callable[[nn.Module], Callable[[Tensor, Tensor], object]]


def _vmap_grad(model: nn.Module) -> Callable[[Tensor, Tensor], object]:
    """Per-sample gradients by ``vmap(grad)`` of torch.func; they hold the batch's gradient as their mean."""
    weights = dict(model.named_parameters())
    buffers = dict(model.named_buffers())

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        output = torch.func.functional_call(model, (weights, buffers), (x.unsqueeze(0),))
        return nn.functional.cross_entropy(output, y.unsqueeze(0))

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))

    def gradients(x: Tensor, y: Tensor) -> object:
        found = each({name: weight.detach() for name, weight in weights.items()}, x, y)
        for name, weight in weights.items():
            weight.grad = found[name].mean(0)
        return found

    return gradients


def _opacus(model: nn.Module) -> Callable[[Tensor, Tensor], object]:
    """Per-sample gradients by Opacus' hooks (``p.grad_sample``)."""
    wrapped = importlib.import_module("opacus.grad_sample").GradSampleModule(model)

    def gradients(x: Tensor, y: Tensor) -> object:
        nn.functional.cross_entropy(wrapped(x), y).backward()
        return _taken(model, "grad_sample")

    return gradients


def _backpack(model: nn.Module) -> Callable[[Tensor, Tensor], object]:
    """Per-sample gradients by BackPACK's ``BatchGrad`` (``p.grad_batch``); modules it knows only."""
    package = importlib.import_module("backpack")
    extension: Any = importlib.import_module("backpack.extensions").BatchGrad()
    extended, loss = package.extend(model), package.extend(nn.CrossEntropyLoss())

    def gradients(x: Tensor, y: Tensor) -> object:
        with package.backpack(extension):
            loss(extended(x), y).backward()
        return _taken(model, "grad_batch")

    return gradients


# name -> (package that must be importable, what makes the function)
RIVALS: dict[str, tuple[str, Make]] = {
    "vmap(grad)": ("torch", _vmap_grad),
    "opacus": ("opacus", _opacus),
    "backpack": ("backpack", _backpack),
}


def rival_step(
    name: str, model: nn.Module, make: Callable[[nn.Module], torch.optim.Optimizer], example: tuple[Tensor, Tensor]
) -> tuple[Step | None, str]:
    """Return a training step on a copy of ``model`` that has per-sample gradients, or None with the reason.

    Args:
        name: one of ``RIVALS``.
        model: is copied.
        make: makes the optimizer.
        example: inputs and labels: one step is taken on them, to see whether the tool can.
    """
    package, prepare = RIVALS[name]
    if importlib.util.find_spec(package) is None:
        return None, "not installed"
    own = copy.deepcopy(model)
    optimizer = make(own)
    try:
        gradients = prepare(own)
        gradients(*example)
    except Exception as error:  # whatever a foreign package says about a network it does not take
        return None, f"{type(error).__name__}: {str(error).splitlines()[0][:90] if str(error) else ''}"

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        gradients(x, y)
        optimizer.step()

    return step, ""


def _taken(model: nn.Module, name: str) -> list[object]:
    """Return what a tool left at the parameters, and take it from there."""
    found = [getattr(p, name) for p in model.parameters()]
    for p in model.parameters():
        setattr(p, name, None)
    return found
