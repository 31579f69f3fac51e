"""What the optimizer's next step multiplies the Hessian by: the ingredients of the linearised update map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lipadvisor.probe.gathered import whole
from lipadvisor.probe.optimizers import first_moment, optimizer_name

__all__ = ["UpdateMap", "trained_parameters", "update_map"]


@dataclass(frozen=True, slots=True)
class UpdateMap:
    """Linearised: ``W' = (1 - lr weight_decay) W - lr P m'``, with ``m'`` the moment that took in ``(H + l2) W``.

    Attributes:
        optimizer: "sgd", "adam" or "adamw".
        momentum: coefficient of the first moment.
        nesterov: look-ahead momentum.
        lr: the largest learning rate of the groups.
        weight_decay: the smallest decoupled decay of the groups, per unit of tau.
        l2: the smallest L2 term that the optimizer adds to the gradients.
        scale_P: diagonal of the preconditioner, times each group's share of ``lr``; None stands for ones.
    """

    optimizer: str
    momentum: float
    nesterov: bool
    lr: float
    weight_decay: float
    l2: float
    scale_P: Tensor | None


def trained_parameters(optimizer: torch.optim.Optimizer) -> tuple[nn.Parameter, ...]:
    """Return the parameters that the optimizer moves, in its order."""
    return tuple(p for group in optimizer.param_groups for p in group["params"] if p.requires_grad)


def update_map(
    optimizer: torch.optim.Optimizer, lr_by_group: Mapping[int, float], weight_decay_by_group: Mapping[int, float]
) -> UpdateMap | None:
    """Return the map of the optimizer's next step; None for an optimizer that is not known.

    Adam's is that of a long run, with the bias of the first moment forgotten and the second moments as they are now.

    Args:
        optimizer: whose state is read.
        lr_by_group: learning rate in force, for each parameter group.
        weight_decay_by_group: decoupled weight decay in force, per unit of tau.
    """
    name = optimizer_name(optimizer)
    groups = list(enumerate(optimizer.param_groups))
    lr = max((lr_by_group[index] for index, _ in groups), default=0.0)
    if name == "unknown" or any(group.get("maximize") for _, group in groups):
        return None
    own_decay = [
        0.0 if name == "adamw" or group.get("decoupled_weight_decay") else float(group.get("weight_decay", 0.0))
        for _, group in groups
    ]
    share = {index: lr_by_group[index] / lr if lr > 0.0 else 1.0 for index, _ in groups}
    scale_P = None
    if name != "sgd" or len(set(share.values())) > 1:
        parts = [
            _scale(optimizer.state.get(p, {}), group, p) * share[index]
            for index, group in groups
            for p in group["params"]
            if p.requires_grad
        ]
        scale_P = torch.cat([part.reshape(-1).to(parts[0].device) for part in parts])
    return UpdateMap(
        optimizer=name,
        momentum=first_moment(optimizer),
        nesterov=bool(optimizer.param_groups[0].get("nesterov")),
        lr=lr,
        weight_decay=min((weight_decay_by_group[index] for index, _ in groups), default=0.0),
        l2=min(own_decay, default=0.0),
        scale_P=scale_P,
    )


def _scale(state: Mapping[str, Any], options: Mapping[str, Any], parameter: nn.Parameter) -> Tensor:
    """Return ``1 / (sqrt(vhat) + eps)`` in float32 or better; ones without second moments, zeros before the first."""
    dtype = parameter.dtype if parameter.dtype == torch.float64 else torch.float32
    ones = torch.ones(parameter.shape, dtype=dtype, device=parameter.device)
    if "betas" not in options:
        return ones
    key = "max_exp_avg_sq" if options.get("amsgrad") else "exp_avg_sq"
    if key not in state:
        return ones.zero_()
    correction = 1.0 - float(options["betas"][1]) ** float(state["step"])
    root: Tensor = (whole(state[key]).to(dtype) / correction).sqrt() + float(options["eps"])
    return root.reciprocal()
