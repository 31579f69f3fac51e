"""Many continuations of one checkpoint at once: the replicas' weights are stacked and stepped together.

Each replica draws its own batches. Everything is float64, so that the change of a norm over one step is not lost in
rounding. Shapes: ``R`` replicas, ``M`` samples of a batch, ``L`` layers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from lipadvisor.dynamics import finite_population
from lipadvisor.experiments.reproduce.linear_response import Update, response_variance
from lipadvisor.experiments.reproduce.regularizers import soft_cross_entropy
from lipadvisor.probe import Probe, TrackedLayer
from lipadvisor.spectra import Conv2dOperator, LayerOperator, TrackedBlock, cold_start, refresh, start_vectors
from lipadvisor.terms import Array, Terms

__all__ = [
    "Replicas",
    "bound_covector",
    "bound_variances",
    "full_batch_terms",
    "gradient_variance",
    "input_shapes",
    "log_norms",
]

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
            block, jacobian = _top(layer, shape, before[name])
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
            path.append(Update(weights, lr, momentum, part, scales))
            self._step += 1
            for name, gradient in gradients.items():
                self._update(name, gradient, lr)
                if self._adam:
                    self._second[name] += (1 - self._options["betas"][1]) * share * noise[name]
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


def log_norms(layer: TrackedLayer, input_shape: tuple[int, ...] | None, kernels_R: Tensor) -> Array:
    """Return ln of the operator norm of each of the kernels, (R,), nats.

    Matrices through the eigenvalues of the smaller Gram matrix; convolutions by a block iteration that starts from
    the vectors of the replica before, to about 1e-12.

    Args:
        layer: whose weight the kernels are.
        input_shape: of one batch of its inputs, for a convolution.
        kernels_R: (R, ...), float64.
    """
    operator = layer.operator(input_shape)
    if operator is None:
        raise ValueError(f"log_norms(input_shape=...) must be given for the convolution {layer.name!r}.")
    if not isinstance(operator, Conv2dOperator):
        gram = kernels_R @ kernels_R.mT if kernels_R.shape[-2] <= kernels_R.shape[-1] else kernels_R.mT @ kernels_R
        return np.asarray(0.5 * torch.linalg.eigvalsh(gram)[:, -1].log().numpy(), dtype=np.float64)
    return np.array([float(s) for s in _iterated(operator, kernels_R)])


def _top(layer: TrackedLayer, input_shape: tuple[int, ...], kernel: Tensor) -> tuple[TrackedBlock, Tensor]:
    """Return the block of ``kernel`` and the kernel-shaped Jacobian of its largest singular value."""
    operator = layer.operator(input_shape)
    assert operator is not None
    generator = torch.Generator().manual_seed(0)
    block = cold_start(operator, kernel, start_vectors(operator, 8, kernel, generator), 1e-13)
    return block, operator.outer(block.u_RM[:1], block.v_RN[:1]).reshape(kernel.shape)


def _iterated(operator: LayerOperator, kernels_R: Tensor) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    block = cold_start(operator, kernels_R[0], start_vectors(operator, 8, kernels_R[0], generator), 1e-13)
    found = []
    for kernel in kernels_R:
        for _ in range(3):
            block = refresh(operator, kernel, block.v_RN, 6)
        found.append(block.s_R[0].log())
    return found


def input_shapes(model: nn.Module, layers: tuple[TrackedLayer, ...], example: Tensor) -> list[tuple[int, ...]]:
    """Return the shape of each layer's input when the model sees ``example``."""
    shapes: dict[int, tuple[int, ...]] = {}

    def hook(index: int) -> Any:
        def note(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            shapes[index] = tuple(arguments[0].shape)

        return note

    handles = [layer.module.register_forward_hook(hook(index)) for index, layer in enumerate(layers)]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return [shapes[index] for index in range(len(layers))]


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


def bound_covector(model: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """Return ``dZ/dW`` of the chain's bound, float64, nats per unit of weight, by parameter name.

    Args:
        model: its Linear and Conv2d weights are what Z is made of.
        example: a batch of inputs, for the sizes of the convolutions' maps.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers = Probe(model, torch.optim.SGD(model.parameters(), lr=1.0)).layers
    covector = {}
    for layer, shape in zip(layers, input_shapes(model, layers, example), strict=True):
        block, jacobian = _top(layer, shape, layer.weight.detach().double())
        covector[names[id(layer.weight)]] = jacobian / block.s_R[0]
    return covector


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
