"""B copies of one task that train at once: stacked parameters, one vectorised forward and backward a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from lipadvisor.experiments.benchmarks.task import Task, batch_order
from lipadvisor.experiments.benchmarks.updates import Stack, Update, make_update

__all__ = ["Population", "StepResult"]

_EVALUATION_CHUNK = 16  # members evaluated at a time: a whole split each


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step left behind, before the weights moved."""

    losses_B: Tensor  # training loss of the step's batch
    outputs: Tensor  # (B, M, ...), the network's outputs on it
    inputs: Tensor  # (B, M, ...)
    gradients: Stack
    directions: Stack


class Population:
    """Members of one task; member ``i`` has the initialization and the order of batches of ``seeds[i]``.

    Args:
        task: the task.
        seeds: one for each member; equal seeds give equal members.
        steps: length of the run; the task's own by default.
    """

    def __init__(self, task: Task, seeds: Sequence[int], steps: int | None = None) -> None:
        self.task, self.seeds = task, tuple(seeds)
        self.steps = task.steps if steps is None else steps
        self.data = task.load()
        models = {seed: task.model(seed) for seed in dict.fromkeys(self.seeds)}
        self.template = models[self.seeds[0]]
        named = {seed: dict(model.named_parameters()) for seed, model in models.items()}
        self.parameters: Stack = {
            key: torch.stack([named[seed][key].detach() for seed in self.seeds]) for key in named[self.seeds[0]]
        }
        self.update: Update = make_update(task.optimizer)
        rows = len(self.data.train)
        orders = {seed: batch_order(rows, task.batch_size, self.steps, seed) for seed in models}
        self.order = torch.stack([orders[seed] for seed in self.seeds])  # (B, steps, M)
        self.matrices = tuple(key for key, value in self.parameters.items() if value.dim() >= 3)

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self.seeds)

    def _forward(self, parameters: Stack, x: Tensor) -> Tensor:
        output: Tensor = functional_call(self.template, parameters, (x,))
        return output

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return the outputs (B, M, ...) on ``inputs`` (B, M, ...), without gradients."""
        with torch.no_grad():
            result: Tensor = vmap(self._forward)(self.parameters, inputs)
        return result

    def propose(self, step: int) -> StepResult:
        """Return losses, gradients and the optimizer's directions of step ``step``; the weights stay."""
        rows = self.order[:, step]
        inputs, targets = self.data.train.inputs[rows], self.data.train.targets[rows]
        leaves = {key: value.detach().requires_grad_() for key, value in self.parameters.items()}
        outputs = vmap(self._forward)(leaves, inputs)
        losses = vmap(self.task.loss)(outputs, targets)
        found = torch.autograd.grad(losses.sum(), list(leaves.values()))
        gradients = dict(zip(leaves, found, strict=True))
        return StepResult(losses.detach(), outputs.detach(), inputs, gradients, self.update.direction(gradients))

    def move(self, directions: Stack, lr_B: Tensor, shrink_B: Tensor) -> None:
        """Multiply the matrices by ``1 - shrink_B`` (decoupled decay), then add ``lr_B`` times the direction."""
        with torch.no_grad():
            for key, value in self.parameters.items():
                ones = (-1, *([1] * (value.dim() - 1)))
                if value.dim() >= 3:
                    value.mul_(1.0 - shrink_B.view(ones))
                value.addcmul_(directions[key], lr_B.view(ones))

    def evaluate(self, split: Literal["train", "validation", "test"]) -> Tensor:
        """Return each member's mean loss (B,) over a whole split, float64."""
        part = getattr(self.data, split)
        losses = []
        with torch.no_grad():
            for start in range(0, len(self), _EVALUATION_CHUNK):
                chunk = {key: value[start : start + _EVALUATION_CHUNK] for key, value in self.parameters.items()}
                outputs = vmap(self._forward, in_dims=(0, None))(chunk, part.inputs)
                losses.append(vmap(self.task.loss, in_dims=(0, None))(outputs, part.targets))
        return torch.cat(losses).double()

    def snapshot(self) -> tuple[Stack, dict[str, Stack]]:
        """Return copies of parameters and moments, to go back to."""
        moments = {kind: {k: v.clone() for k, v in stack.items()} for kind, stack in self.update.moments.items()}
        return {key: value.clone() for key, value in self.parameters.items()}, moments

    def restore(self, snapshot: tuple[Stack, dict[str, Stack]], members: Tensor) -> None:
        """Set the given members (indices) back to ``snapshot``."""
        parameters, moments = snapshot
        with torch.no_grad():
            for key, value in self.parameters.items():
                value[members] = parameters[key][members]
            for kind, stack in self.update.moments.items():
                for key, value in stack.items():
                    value[members] = moments[kind][key][members] if kind in moments else 0.0
