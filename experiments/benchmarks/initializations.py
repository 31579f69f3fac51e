"""The default with another initialization in the place of its own: do the schemes of ``lipadvisor.modules`` help?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lipadvisor.experiments.benchmarks.drive import drive
from lipadvisor.experiments.benchmarks.lists import QUICK
from lipadvisor.experiments.benchmarks.networks import MixerBlock, Residual
from lipadvisor.experiments.benchmarks.runs import validate_every
from lipadvisor.experiments.benchmarks.score import loss_ratio, table
from lipadvisor.experiments.benchmarks.suites import scale_all
from lipadvisor.experiments.benchmarks.task import Task
from lipadvisor.modules import dead_zone_rescue, depth_scaled, lsuv, spectral
from lipadvisor.modules.initialization import weight_matrices
from lipadvisor.policies import Lipschitz, PlannedInitialization, Policy, SpectralInitialization, chain

__all__ = ["INITIALIZATIONS", "INITIALIZATION_TASKS", "branches", "initialization_table"]

# Of the design list: the quick ones, which are all plain networks, and some with branches or convolutions.
INITIALIZATION_TASKS = QUICK | {
    "mixer_digits",
    "mixer_batch_8",
    "residual_waves",
    "batchnorm_resnet",
    "plain_convnet",
    "groupnorm_convnet",
}
_BATCH = 64  # rows that the data-dependent scheme looks at

Factors = Callable[[nn.Module, Tensor], tuple[tuple[str, float], ...]]


def branches(model: nn.Module) -> dict[str, int]:
    """Return the last matrix of each residual branch of the bench's networks, with the number of joins."""
    last = []
    for name, module in model.named_modules():
        ends = {Residual: ("branch",), MixerBlock: ("tokens", "channels")}.get(type(module), ())
        for end in ends:
            prefix = f"{name}.{end}." if name else f"{end}."
            last += [matrix for matrix in weight_matrices(model) if matrix.startswith(prefix)][-1:]
    return dict.fromkeys(last, len(last))


def _lifted_then_depth_scaled(model: nn.Module, _: Tensor) -> tuple[tuple[str, float], ...]:
    factors = dict(dead_zone_rescue(model).factors)
    for name, factor in depth_scaled(model, branches(model)).factors:
        factors[name] = factors.get(name, 1.0) * factor
    return tuple(factors.items())


# Each makes the factors of one member: a scheme looks at the very weights that are trained.
INITIALIZATIONS: dict[str, Factors | Policy[Any]] = {
    "none": PlannedInitialization(()),
    "spectral": SpectralInitialization(),
    "spectral, matrix view": lambda model, _: spectral(model).factors,
    "spectral, target 2": SpectralInitialization(2.0),
    "lsuv": lambda model, x: lsuv(model, x).factors,
    "depth-scaled": lambda model, _: depth_scaled(model, branches(model)).factors,
    "rescue, then depth-scaled": _lifted_then_depth_scaled,
}


def initialization_table(
    tasks: Sequence[Task],
    seeds: int = 4,
    scale: float = 1.0,
    decide_every: int = 5,
    tick: Callable[[int], None] = lambda step: None,
) -> str:
    """Return ratios of the test loss to that of the default with its own rescue, by initialization and task.

    Args:
        tasks: to train on; depth-scaled arms are left out where a network has no branches.
        seeds: repetitions of each arm, >= 1.
        scale: factor on every weight matrix of PyTorch's initialization, > 0.
        decide_every: steps between decisions.
        tick: called after each step.
    """
    found: dict[str, dict[str, float]] = {}
    for task in tasks:
        arms = {name: kind for name, kind in INITIALIZATIONS.items() if "depth" not in name or branches(task.model(0))}
        policies: list[Policy[Any]] = [Lipschitz()] * seeds
        for kind in arms.values():
            policies += [chain(Lipschitz(), _part(kind, task, seed, scale)) for seed in range(seeds)]
        members = list(range(seeds)) * (1 + len(arms))
        outcome = drive(
            task,
            policies,
            members,
            perturb=scale_all((scale,) * len(members)),
            decide_every=decide_every,
            validate_every=validate_every(task),
            tick=tick,
        )
        own = outcome.test[:seeds]
        for place, name in enumerate(arms, 1):
            losses = outcome.test[place * seeds : (place + 1) * seeds]
            found.setdefault(name, {})[task.name] = loss_ratio(losses, own)
    return table(found, f"initialization in the place of the default's own, weights x {scale:g} at the start")


def _part(kind: Factors | Policy[Any], task: Task, seed: int, scale: float) -> Any:
    if not callable(kind):
        return kind
    model = task.model(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.mul_(scale)
    return PlannedInitialization(kind(model, task.load().train.inputs[:_BATCH]))
