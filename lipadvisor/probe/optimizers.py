"""What an optimizer's state says about the update it has just applied.

Every optimizer is measured by the weights it leaves behind. Two things are read from its state where its class is
known: the preconditioner ``P`` through which a gradient reaches the weights (after the step that contains the batch),
and the direction itself, for steps so small that the difference of the weights is lost in rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lipadvisor.probe.kinds import TrackedLayer
from lipadvisor.probe.kinds.parametrized import Computed, ThroughParameters
from lipadvisor.probe.pack import Pack

__all__ = [
    "coming_preconditioner",
    "first_moment",
    "known_direction",
    "optimizer_name",
    "preconditioner",
    "raw_gradient",
    "seen_steps",
    "state_will_tell",
    "step_in_state",
]

_NAMES: dict[type, str] = {torch.optim.SGD: "sgd", torch.optim.Adam: "adam", torch.optim.AdamW: "adamw"}


def optimizer_name(optimizer: torch.optim.Optimizer) -> str:
    """Return "sgd", "adam", "adamw" or "unknown"; only the very classes count, subclasses may do anything."""
    return _NAMES.get(type(optimizer), "unknown")


def first_moment(optimizer: torch.optim.Optimizer) -> float:
    """Return the first moment's coefficient of the first group: momentum, or beta_1, or 0."""
    group = optimizer.param_groups[0]
    if "betas" in group:
        return float(group["betas"][0])
    return float(group.get("momentum", 0.0) or 0.0)


def seen_steps(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> int | None:
    """Return how many updates the moments of ``weight`` have seen, where the optimizer counts them."""
    step = optimizer.state.get(weight, {}).get("step")
    return None if step is None else int(step)


def preconditioner(optimizer: torch.optim.Optimizer, pack: Pack) -> Tensor | ThroughParameters | None:
    """Return ``P = 1 / (sqrt(vhat) + eps)`` of a pack's weights (l, *shape), as it is now; None stands for ones.

    A weight that is computed from parameters is alone in its pack, and answers through them.
    """
    layer = pack.layers[0]
    if isinstance(layer.source, Computed):
        return _through_parameters(optimizer, layer, layer.source)
    if optimizer_name(optimizer) not in ("adam", "adamw"):
        return None
    groups = [optimizer.param_groups[layer.group] for layer in pack.layers]
    states = [optimizer.state.get(layer.weight, {}) for layer in pack.layers]
    used = [place for place, state in enumerate(states) if "exp_avg_sq" in state]
    if not used:
        return None
    keys = ["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq" for group in groups]
    ones = [
        None if key in state else torch.ones_like(layer.weight)
        for key, state, layer in zip(keys, states, pack.layers, strict=True)
    ]
    seconds = pack.gather(
        [state[key] if one is None else one for key, state, one in zip(keys, states, ones, strict=True)], fill=1.0
    )
    # A layer that has never had a gradient has no state, and what stands for it meets zeros alone.
    counts = [float(state.get("step", states[used[0]]["step"])) for state in states]
    corrections = [1.0 - float(g["betas"][1]) ** count for g, count in zip(groups, counts, strict=True)]
    if len(set(corrections)) == 1 and len({g["eps"] for g in groups}) == 1:
        inverse: Tensor = (seconds * (1.0 / corrections[0])).sqrt_().add_(groups[0]["eps"]).reciprocal_()
        return inverse
    columns = torch.tensor([[1.0 / c for c in corrections], [g["eps"] for g in groups]], dtype=seconds.dtype)
    inverse_l, eps_l = columns.to(seconds.device, non_blocking=True).reshape(2, -1, *[1] * (seconds.dim() - 1))
    preconditioner: Tensor = (seconds * inverse_l).sqrt_().add_(eps_l).reciprocal_()
    return preconditioner


def coming_preconditioner(optimizer: torch.optim.Optimizer, layer: TrackedLayer) -> Tensor | None:
    """Return P (*shape) as it will be after the step with the gradient that is there now; None if that is not known."""
    options, state, grad = optimizer.param_groups[layer.group], optimizer.state.get(layer.weight, {}), layer.weight.grad
    decoupled = optimizer_name(optimizer) == "adamw" or not options.get("weight_decay")
    second, step = state.get("exp_avg_sq"), state.get("step")
    if grad is None or second is None or step is None or options.get("amsgrad") or not decoupled:
        return None
    fading, count = float(options["betas"][1]), float(step) + 1.0
    given, second = layer.view(grad.detach()), layer.view(second)
    correction = 1.0 - fading**count
    root = (second * (fading / correction)).addcmul_(given, given, value=(1.0 - fading) / correction).sqrt_()
    inverse: Tensor = root.add_(options["eps"]).reciprocal_()
    return inverse


def _through_parameters(optimizer: torch.optim.Optimizer, layer: TrackedLayer, source: Computed) -> ThroughParameters:
    """Return how ``optimizer`` answers a gradient at a computed weight, per unit of the layer's learning rate."""
    options = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    lr = float(optimizer.param_groups[layer.group]["lr"])
    scales: list[Tensor | None] = []
    for parameter in source.parameters:
        group, state = options.get(id(parameter)), optimizer.state.get(parameter, {})
        share = 0.0 if group is None or lr == 0.0 else float(group["lr"]) / lr
        scale = None if share == 1.0 else torch.full_like(parameter, share)
        if group is not None and optimizer_name(optimizer) in ("adam", "adamw") and "exp_avg_sq" in state:
            scale = share / _root(state, group)
        scales.append(scale)
    unview = getattr(layer.form, "unview", None) or (lambda kernel: kernel)
    return ThroughParameters(source, tuple(scales), layer.view, unview)


def raw_gradient(
    optimizer: torch.optim.Optimizer, weight: nn.Parameter, group: int, version: int | None, scaled: bool
) -> Tensor | None:
    """Return the gradient as the optimizer was given it, after the step; None where it is gone.

    Args:
        optimizer: that made the step.
        weight: whose gradient.
        group: of the weight.
        version: of ``weight.grad`` before the step.
        scaled: whether the optimizer divided a loss scale out of it, in place.
    """
    grad = weight.grad
    if grad is None:
        return None
    if grad._version == version or scaled:
        return grad
    options, buffer = optimizer.param_groups[group], optimizer.state.get(weight, {}).get("momentum_buffer")
    if optimizer_name(optimizer) == "sgd" and options["nesterov"] and buffer is not None:
        given: Tensor = grad - buffer * options["momentum"]  # torch's fused loops write the step over the gradient
        return given
    return None


def known_direction(optimizer: torch.optim.Optimizer, weight: nn.Parameter, group: int) -> Tensor | None:
    """Return ``U`` of ``W' = (1 - lr wd) W + lr U`` from the state after the step; None if it cannot be known.

    Exact for SGD (momentum, Nesterov, L2 term) and for Adam and AdamW, maximizing or not. A weight without a gradient
    (frozen meanwhile, unused) took no step: what its state holds is of an earlier one.
    """
    if weight.grad is None:
        return None
    options, state = optimizer.param_groups[group], optimizer.state.get(weight, {})
    name = optimizer_name(optimizer)
    if name == "sgd":
        return _sgd_direction(weight, options, state.get("momentum_buffer"))
    if name in ("adam", "adamw") and "exp_avg" in state:
        correction = 1.0 - float(options["betas"][0]) ** float(state["step"])
        adam: Tensor = state["exp_avg"] / _root(state, options) * (-1.0 / correction)
        return adam
    return None


def state_will_tell(optimizer: torch.optim.Optimizer, weight: nn.Parameter, group: int) -> bool:
    """Return whether :func:`step_in_state` will have the step that is about to be made."""
    options = optimizer.param_groups[group]
    return optimizer_name(optimizer) == "sgd" and bool(options["momentum"]) and not options["nesterov"]


def step_in_state(optimizer: torch.optim.Optimizer, weight: nn.Parameter, group: int) -> tuple[Tensor, float] | None:
    """Return a tensor of the optimizer's, as it stands, and the sign that makes the direction U of it; None without.

    Only for momentum's buffer, L2 term included, which the weights move against.
    """
    buffer = optimizer.state.get(weight, {}).get("momentum_buffer")
    return None if buffer is None else (buffer, -1.0)


def _sgd_direction(weight: nn.Parameter, options: dict[str, Any], buffer: Tensor | None) -> Tensor | None:
    """Return ``-(g + wd W)``, ``-buffer``, or ``-(g + wd W + b buffer)``, with ``-g`` for ``g`` where it maximizes."""
    momentum, weight_decay = float(options["momentum"]), float(options["weight_decay"])
    if momentum != 0.0 and buffer is not None and not options["nesterov"]:
        return -buffer
    if weight.grad is None:
        return None
    ahead = buffer is not None and momentum != 0.0
    foreach = options.get("foreach") or (options.get("foreach") is None and weight.is_cuda)
    if ahead and foreach and not options.get("maximize") and weight_decay == 0.0:
        return -weight.grad  # torch's foreach loop writes the step over the gradient
    step = -weight.grad if options.get("maximize") else weight.grad
    if weight_decay != 0.0:
        step = step + weight.detach() * weight_decay
    if ahead:
        assert buffer is not None
        step = step + buffer * momentum
    return -step


def _root(state: dict[str, Any], options: dict[str, Any]) -> Tensor:
    """Return Adam's denominator ``sqrt(vhat) + eps``."""
    second: Tensor = state["max_exp_avg_sq"] if options.get("amsgrad") else state["exp_avg_sq"]
    correction = 1.0 - float(options["betas"][1]) ** float(state["step"])
    root: Tensor = (second / correction).sqrt_().add_(options["eps"])
    return root
