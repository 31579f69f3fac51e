"""The largest eigenvalue of preconditioner times Hessian, by power iteration on Hessian-vector products."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.nn import functional

from lipadvisor.experiments.reproduce.regularizers import soft_cross_entropy

__all__ = ["sharpness"]


def sharpness(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    classes: int,
    iterations: int = 40,
    seed: int = 0,
) -> float:
    """Return the eigenvalue of ``P H`` that is largest in size, per unit of ``tau``; a lower bound of its size.

    Args:
        model: computes the same for each sample, whatever the others.
        optimizer: its optimizer; Adam's preconditioner is read from its state.
        inputs: samples the Hessian is taken over.
        targets: their labels.
        classes: number of classes.
        iterations: of the power method, >= 1.
        seed: of the start.
    """
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    target = functional.one_hot(targets, classes).to(inputs.dtype)
    roots = {}
    for name, parameter in model.named_parameters():
        roots[name] = _preconditioner(optimizer, parameter).sqrt()

    def loss(at: dict[str, Tensor]) -> Tensor:
        return soft_cross_entropy(functional_call(model, at, (inputs,)), target)

    slope = grad(loss)
    generator = torch.Generator().manual_seed(seed)
    vector = {name: torch.randn(value.shape, generator=generator) for name, value in weights.items()}
    value = 0.0
    for _ in range(iterations):
        size = torch.sqrt(sum((v.square().sum() for v in vector.values()), torch.zeros(())))
        vector = {name: v / size for name, v in vector.items()}
        # Symmetric form P^(1/2) H P^(1/2): the same eigenvalues.
        pushed = jvp(slope, (weights,), ({name: roots[name] * v for name, v in vector.items()},))[1]
        image = {name: roots[name] * pushed[name] for name in vector}
        value = float(sum((image[name] * vector[name]).sum() for name in vector))
        vector = image
    return value


def _preconditioner(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> Tensor:
    """Return ``P = 1 / (sqrt(vhat) + eps)`` of Adam and AdamW, ones for the others."""
    state, options = optimizer.state.get(parameter, {}), optimizer.param_groups[0]
    if "exp_avg_sq" not in state:
        return torch.ones_like(parameter)
    correction = 1.0 - float(options["betas"][1]) ** float(state["step"])
    root: Tensor = (state["exp_avg_sq"] / correction).sqrt() + options["eps"]
    return root.reciprocal()
