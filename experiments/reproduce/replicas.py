"""Many continuations of one checkpoint at once: the replicas' weights are stacked and stepped together.

Each replica draws its own batches. Everything is float64, so that the change of a norm over one step is not lost in
rounding. Shapes: ``R`` replicas, ``M`` samples of a batch, ``L`` layers.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from lipadvisor.experiments.reproduce.regularizers import soft_cross_entropy
from lipadvisor.probe import Probe, TrackedLayer
from lipadvisor.spectra import Conv2dOperator, LayerOperator, cold_start, refresh, start_vectors
from lipadvisor.terms import Array, Terms

__all__ = ["Replicas", "full_batch_terms", "input_shapes", "log_norms"]

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

    def _gradients(self, rows_RM: Tensor) -> dict[str, Tensor]:
        def loss(weights: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
            return soft_cross_entropy(functional_call(self._model, weights, (inputs,)), targets)

        slope = vmap(grad(loss))
        size = max(1, _CHUNK // rows_RM.shape[1])
        parts = []
        for start in range(0, self.count, size):
            rows = rows_RM[start : start + size]
            weights = {name: value[start : start + size] for name, value in self.weights.items()}
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
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor, classes: int, lr: float
) -> Terms:
    """Return the measurement of one step with all samples as its batch, made on float64 copies.

    What a checkpoint alone can tell of its future: the full gradient through the optimizer's state, and the noise of
    the mean over all N samples (:func:`lipadvisor.dynamics.batches_of` gives that of smaller batches).
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
    probe.arm(0)
    target = functional.one_hot(targets, classes).double()
    soft_cross_entropy(twin(inputs.double()), target).backward()
    probe.before_update()
    copied.step()
    probe.after_update({0: lr}, {0: 0.0})
    terms = probe.collect(0)
    probe.close()
    assert terms is not None
    return terms


def _options(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    wanted = ("lr", "momentum", "betas", "eps", "weight_decay")
    return {key: value for key, value in optimizer.param_groups[0].items() if key in wanted}
