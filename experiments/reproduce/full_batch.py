"""One step with all samples as its batch: its measurement, and the noise that batches have around it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from lipadvisor.dynamics import finite_population
from lipadvisor.experiments.reproduce.regularizers import soft_cross_entropy
from lipadvisor.probe import Probe
from lipadvisor.terms import Terms

__all__ = ["full_batch_terms", "gradient_variance"]


def full_batch_terms(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    classes: int,
    lr: float,
    batch_size: int | None = None,
) -> Terms:
    """Return the measurement of one step with all samples as its batch, made on float64 copies.

    What a checkpoint alone can tell of its future: the full gradient through the optimizer's state, and the noise of
    the mean over all N samples (:func:`lipadvisor.dynamics.batches_of` gives that of smaller batches).

    Args:
        model: the checkpoint.
        optimizer: its optimizer.
        inputs: all samples.
        targets: their labels.
        classes: number of classes.
        lr: learning rate of the step.
        batch_size: of the steps to predict. Adam's second moment then takes in the squares that batches of this size
            have in the mean, ``G^2`` plus their variance; without it, those of the full gradient.
    """
    twin = copy.deepcopy(model).double()
    copied = type(optimizer)(twin.parameters(), **_options(optimizer))
    own = dict(model.named_parameters())
    for name, parameter in twin.named_parameters():
        state = optimizer.state.get(own[name], {})
        copied.state[parameter] = {
            key: value.detach().to(torch.float64 if key != "step" else value.dtype).clone()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }
    for group in copied.param_groups:
        group["lr"] = lr
    probe = Probe(twin, copied, "full", interval=1, example_input=inputs[:2].double())
    target = functional.one_hot(targets, classes).double()
    if batch_size is not None and isinstance(copied, torch.optim.AdamW):
        _add_batch_squares(twin, copied, inputs.double(), target, batch_size)
    probe.arm(0)
    soft_cross_entropy(twin(inputs.double()), target).backward()
    probe.before_update()
    copied.step()
    probe.after_update({0: lr}, {0: 0.0})
    terms = probe.collect(0)
    probe.close()
    assert terms is not None
    return terms


def _add_batch_squares(
    model: nn.Module, optimizer: torch.optim.AdamW, inputs: Tensor, target: Tensor, batch_size: int
) -> None:
    """Add to Adam's second moment what the step to come will lack: ``(1 - b_2)`` times the batch mean's variance."""
    share = finite_population(batch_size, len(inputs)) / batch_size
    variances = gradient_variance(model, inputs, target)
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        b_2 = float(optimizer.param_groups[0]["betas"][1])
        if "exp_avg_sq" in state:
            state["exp_avg_sq"].add_(variances[name], alpha=share * (1 - b_2) / b_2)


def gradient_variance(model: nn.Module, inputs: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return the unbiased variance over samples of each entry of the per-sample gradients, by parameter name.

    Args:
        model: computes the same for each sample, whatever the others.
        inputs: (N, ...), N at least 2.
        target: probabilities (N, C).
    """
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return soft_cross_entropy(functional_call(model, weights, (one.unsqueeze(0),)), label.unsqueeze(0))

    slope = vmap(grad(loss), in_dims=(None, 0, 0))
    sums = {name: torch.zeros_like(value) for name, value in weights.items()}
    squares = {name: torch.zeros_like(value) for name, value in weights.items()}
    for part, labels in zip(inputs.split(128), target.split(128), strict=True):
        for name, gradient in slope(weights, part, labels).items():
            sums[name] += gradient.sum(0)
            squares[name] += gradient.square().sum(0)
    count = len(inputs)
    return {name: (squares[name] - sums[name].square() / count).clamp_min(0) / (count - 1) for name in weights}


def _options(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    wanted = ("lr", "momentum", "betas", "eps", "weight_decay")
    return {key: value for key, value in optimizer.param_groups[0].items() if key in wanted}
