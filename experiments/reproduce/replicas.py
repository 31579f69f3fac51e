"""Many continuations of one checkpoint at once: the replicas' weights are stacked and stepped together.

Each replica draws its own batches. Everything is float64, so that the change of a norm over one step is not lost in
rounding. Shapes: ``R`` replicas, ``M`` samples of a batch, ``L`` layers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from lipadvisor.dynamics import finite_population
from lipadvisor.experiments.reproduce.full_batch import gradient_variance
from lipadvisor.experiments.reproduce.linear_response import SecondMoment, Update, response_variance
from lipadvisor.experiments.reproduce.norms import bound_covector, top_block
from lipadvisor.experiments.reproduce.regularizers import soft_cross_entropy
from lipadvisor.probe import TrackedLayer
from lipadvisor.terms import Array

__all__ = ["Replicas", "bound_variances"]

_CHUNK = 4096  # samples that are pushed through the network at once


class Replicas:
    """R copies of a model in training, with plain SGD, momentum or AdamW.

    Args:
        model: the checkpoint; copied. It must compute the same for each sample in train and eval mode.
        optimizer: its optimizer (SGD with or without momentum, AdamW without decay of its own), for the moments.
        count: number of replicas, at least 1.
        inputs: all samples, (N, ...).
        targets: their labels, (N,).
        classes: number of classes.
        seed: of the batches.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        count: int,
        inputs: Tensor,
        targets: Tensor,
        classes: int,
        seed: int,
    ) -> None:
        self.count = count
        self._model = copy.deepcopy(model).double()
        self._inputs = inputs.double()
        self._targets = functional.one_hot(targets, classes).double()
        self._generator = torch.Generator().manual_seed(seed)
        self._options = dict(optimizer.param_groups[0])
        self._adam = isinstance(optimizer, torch.optim.AdamW)
        self.weights: dict[str, Tensor] = {}
        self._first: dict[str, Tensor] = {}
        self._second: dict[str, Tensor] = {}
        self._step = 0
        for name, parameter in model.named_parameters():
            state = optimizer.state.get(parameter, {})
            self.weights[name] = self._stacked(parameter)
            buffer = state.get("exp_avg" if self._adam else "momentum_buffer")
            self._first[name] = self._stacked(torch.zeros_like(parameter) if buffer is None else buffer)
            if self._adam:
                second = state.get("exp_avg_sq")
                self._second[name] = self._stacked(torch.zeros_like(parameter) if second is None else second)
                self._step = int(state.get("step", 0))

    def step(self, batch_size: int, lr: float, replace: bool = False) -> None:
        """Take one optimizer step in every replica, each on a batch of its own.

        Args:
            batch_size: M; without ``replace`` at most the number of samples.
            lr: learning rate.
            replace: draw the samples of a batch independently, instead of without replacement within it.
        """
        rows_RM = self._rows(batch_size, replace)
        gradients = self._gradients(rows_RM)
        self._step += 1
        for name, gradient in gradients.items():
            self._update(name, gradient, lr)

    def noise_responses(
        self,
        model: nn.Module,
        layers: tuple[TrackedLayer, ...],
        input_shapes: list[tuple[int, ...]],
        batch_size: int,
        lr: float,
    ) -> Array:
        """Take one step, and return how each layer's log-norm answers to first order to its gradient's noise alone.

        ``-lr n_1 u'(P (g_r - G)) v / s`` of each replica, with ``G`` the gradient over all samples and ``P`` the
        preconditioner after a step with ``G``: of mean zero exactly, whatever the network.

        Returns:
            (R, L), nats.
        """
        before = {name: value[0].clone() for name, value in self.weights.items()}
        gradients = self._gradients(self._rows(batch_size, replace=False))
        everything = torch.arange(len(self._inputs)).expand(1, -1)
        full = {name: value[0] for name, value in self._gradients(everything, 1).items()}
        scales = {name: self._answer(name, full[name]) for name in full}
        self._step += 1
        for name, gradient in gradients.items():
            self._update(name, gradient, lr)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        columns = []
        for layer, shape in zip(layers, input_shapes, strict=True):
            name = names[id(layer.weight)]
            block, jacobian = top_block(layer, shape, before[name])
            noise_R = (gradients[name] - full[name]) * scales[name]
            columns.append(-lr * (noise_R * jacobian).flatten(1).sum(1) / block.s_R[0])
        return np.stack([column.numpy() for column in columns], axis=1)

    def rehearse(self, steps: int, lr: float, share: float) -> list[Update]:
        """Take full-batch steps with every replica alike, and return the path of the first one.

        Args:
            steps: how many.
            lr: learning rate.
            share: variance of a batch's mean over that of one sample; Adam's second moment takes in the squares that
                batches have, with the per-sample variance of the start.
        """
        everything = torch.arange(len(self._inputs)).expand(1, -1)
        noise = gradient_variance(self._model, self._inputs, self._targets) if self._adam else {}
        path = []
        for _ in range(steps):
            weights = {name: value[0].clone() for name, value in self.weights.items()}
            gradients = self._gradients(everything, 1)
            scales, momentum, part = None, float(self._options.get("momentum", 0.0)), 1.0
            if self._adam:
                momentum = float(self._options["betas"][0])
                part = 1 - momentum
                squares = {name: (g[0].square() + share * noise[name]).sqrt() for name, g in gradients.items()}
                scales = {name: self._answer(name, square) / part for name, square in squares.items()}
            self._step += 1
            for name, gradient in gradients.items():
                self._update(name, gradient, lr)
                if self._adam:
                    self._second[name] += (1 - self._options["betas"][1]) * share * noise[name]
            second = self._second_moment(gradients) if self._adam else None
            path.append(Update(weights, lr, momentum, part, scales, second))
        return path

    def _answer(self, name: str, gradient: Tensor) -> Tensor:
        """Return n_1 P, elementwise, of the step to come, with P as ``gradient`` leaves it."""
        if not self._adam:
            return torch.ones_like(gradient)
        b_1, b_2 = self._options["betas"]
        step = self._step + 1
        second = self._second[name][0] * b_2 + gradient.square() * (1 - b_2)
        root = (second / (1 - b_2**step)).sqrt() + self._options["eps"]
        answer: Tensor = (1 - b_1) / (1 - b_1**step) / root
        return answer

    def _second_moment(self, gradients: dict[str, Tensor]) -> SecondMoment:
        """Return how the second moment answered to the gradient of the step just taken, of the first replica."""
        b_1, b_2 = self._options["betas"]
        correction = 1 - b_2**self._step
        gain, bend = {}, {}
        for name, gradient in gradients.items():
            second = self._second[name][0]
            root = (second / correction).sqrt()
            first = self._first[name][0] / (1 - b_1**self._step)
            gain[name] = 2 * (1 - b_2) * gradient[0]
            # Where nothing has come yet there is no root to bend.
            slope = 0.5 / (root * correction).clamp_min(1e-300)
            bend[name] = torch.where(second > 0.0, first * slope / (root + self._options["eps"]) ** 2, 0.0)
        return SecondMoment(b_2, gain, bend)

    def kernels(self, layer: TrackedLayer, model: nn.Module) -> Tensor:
        """Return the replicas' weights (R, ...) of ``layer``, a layer of ``model``."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        return self.weights[names[id(layer.weight)]]

    def _stacked(self, tensor: Tensor) -> Tensor:
        return tensor.detach().double().expand(self.count, *tensor.shape).clone()

    def _rows(self, batch_size: int, replace: bool) -> Tensor:
        samples = len(self._inputs)
        if replace:
            return torch.randint(0, samples, (self.count, batch_size), generator=self._generator)
        keys = torch.rand(self.count, samples, generator=self._generator)
        return keys.topk(batch_size, dim=1).indices

    def _gradients(self, rows_RM: Tensor, count: int | None = None) -> dict[str, Tensor]:
        def loss(weights: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
            return soft_cross_entropy(functional_call(self._model, weights, (inputs,)), targets)

        slope = vmap(grad(loss))
        size = max(1, _CHUNK // rows_RM.shape[1])
        parts = []
        for start in range(0, count or self.count, size):
            rows = rows_RM[start : start + size]
            weights = {name: value[start : start + len(rows)] for name, value in self.weights.items()}
            parts.append(slope(weights, self._inputs[rows], self._targets[rows]))
        return {name: torch.cat([part[name] for part in parts]) for name in self.weights}

    def _update(self, name: str, gradient: Tensor, lr: float) -> None:
        first, options = self._first[name], self._options
        if not self._adam:
            momentum = float(options["momentum"])
            first.mul_(momentum).add_(gradient)
            self.weights[name].sub_(first, alpha=lr)
            return
        b_1, b_2 = options["betas"]
        second = self._second[name]
        first.mul_(b_1).add_(gradient, alpha=1 - b_1)
        second.mul_(b_2).addcmul_(gradient, gradient, value=1 - b_2)
        root = (second / (1 - b_2**self._step)).sqrt_().add_(options["eps"])
        self.weights[name].addcdiv_(first, root, value=-lr / (1 - b_1**self._step))


def bound_variances(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    classes: int,
    lr: float,
    batch_size: int,
    horizons: Sequence[int],
    stride: int = 1,
) -> dict[int, float]:
    """Return the variance of the chain's ``Z`` after each of ``horizons`` steps, contraction and sampler accounted for.

    Along full-batch steps from the checkpoint, by :mod:`~lipadvisor.experiments.reproduce.linear_response`. Batches
    are drawn without replacement within a batch, independently from step to step. Curvature and noise along the path
    are those of every ``stride``-th sample.
    """
    replica = Replicas(model, optimizer, 1, inputs, targets, classes, 0)
    share = finite_population(batch_size, len(inputs)) / batch_size
    path = replica.rehearse(max(horizons), lr, share)
    ends = [*path[1:], Update({name: value[0] for name, value in replica.weights.items()}, lr, 0.0, 1.0, None)]
    twin = copy.deepcopy(model).double()
    target = functional.one_hot(targets, classes).double()
    found = {}
    for horizon in horizons:
        twin.load_state_dict({**twin.state_dict(), **ends[horizon - 1].weights})
        covector = bound_covector(twin, inputs[:2].double())
        some = (inputs[::stride].double(), target[::stride])
        found[horizon] = share * response_variance(twin, covector, path[:horizon], *some)
    return found
