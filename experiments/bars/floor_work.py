"""The array work that no way of measuring every step can do without, in the barest calls found.

A network trains, and after each step only this is done, with nothing kept, checked or written down:

- *hooks*: of each layer, inputs and output gradients are there when the gradients arrive; under a preconditioner, which
  contains the batch, they are held until the step is over;
- *copies*: the weights before the step, or nothing says what it did (stacks of kernels of one geometry serve as such);
- *track*: one pair of each layer, ``W v`` and ``W'`` of the last and of the new left vector. ``u' U v``, ``U v`` and
  ``U'u`` follow from these without a product of their own;
- *norms*: the Frobenius norms of weights and update; *update*: the difference of the weights; *size*: one application
  pair of it;
- *samples*: ``u' P G_i v`` of each sample, or of the gradient where samples are coupled;
- *curvature*: a random sum of the samples' gradients, on the pair from either side, and one application pair.

Left out are the gap (a second vector), predictions and forms (a solve), the choice of what is to be renewed: all that
could be carried from one step to the next.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lipadvisor.experiments.bars.probe_networks import Workload
from lipadvisor.probe.noise import projection
from lipadvisor.spectra import Conv2dOperator, LayerOperator, LinearOperator
from lipadvisor.spectra.compact import CompactKernel, Sketch
from lipadvisor.spectra.conv2d import roughly
from lipadvisor.spectra.linear import projected

__all__ = ["ITEMS", "BareWork"]

ITEMS = ("copies", "track", "norms", "update", "size", "samples", "curvature")
_LEVELS = {"hooks": 0, "drift": 1, "noise": 2, "full": 3}
_BETA_2, _EPS = 0.999, 1e-8


@dataclass(slots=True)
class _Seen:
    """What a layer's hook holds of the step, or what it has made of that."""

    inputs: Tensor | None = None
    grads: Tensor | None = None
    made: tuple[Tensor, ...] = ()
    images: tuple[Tensor, Tensor] | None = None


@dataclass(slots=True)
class _Layers:
    """Layers whose products are taken together: one matrix where it lies, or the convolutions of one geometry."""

    operator: LayerOperator
    weights: list[Tensor]
    seen: list[_Seen]
    u_1M: Tensor
    v_1N: Tensor
    update_1N: Tensor
    old: Tensor
    new: Tensor
    by: list[Sketch | CompactKernel | None] = field(default_factory=list)

    @property
    def matrix(self) -> bool:
        """Whether it is a matrix."""
        return isinstance(self.operator, LinearOperator)


class BareWork:
    """Trains one network and does the bare work of a level after each step; ``spent_s`` says what each item took."""

    def __init__(self, workload: Workload, model: nn.Module, level: str) -> None:
        """Put the hooks in.

        Args:
            workload: what it is trained on and by.
            model: trained from now on.
            level: "hooks", "drift", "noise" or "full".
        """
        self._model, self._optimizer = model, workload.optimizer(model)
        self._level = _LEVELS[level]
        self._coupled = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        self._scaled = isinstance(self._optimizer, torch.optim.AdamW)
        self._groups = _groups(workload, model, self._level > 0)
        if self._level != 1 and not self._coupled:
            self._hook_all(model)
        self._matrices = [group for group in self._groups if group.matrix]
        self.spent_s = dict.fromkeys(ITEMS, 0.0)

    def step(self, x: Tensor, y: Tensor) -> None:
        """Make a training step with the work around it."""
        if self._level > 0:
            with self._timed("copies"), torch.no_grad():
                self._copy()
        self._optimizer.zero_grad()
        nn.functional.cross_entropy(self._model(x), y).backward()
        self._optimizer.step()
        if self._level > 0:
            with torch.no_grad():
                self._work()
        for group in self._groups:
            for place in range(len(group.seen)):
                group.seen[place].inputs = group.seen[place].grads = group.seen[place].images = None

    def _work(self) -> None:
        updates = [group.old for group in self._matrices]
        with self._timed("copies"):
            for group in self._groups:
                if not group.matrix:
                    group.new = torch.stack([weight.detach() for weight in group.weights])
        pairs = [(group.u_1M, group.v_1N) for group in self._groups]
        with self._timed("track"):
            for group in self._groups:
                _track(group)
        with self._timed("update"):
            torch._foreach_sub_(updates, [group.new for group in self._matrices])
            for group in self._groups:
                if not group.matrix:
                    group.old.sub_(group.new)
        with self._timed("norms"):
            torch._foreach_norm([kernel for group in self._groups for kernel in (group.old, group.new)])
        with self._timed("size"):
            for group in self._groups:
                rough = roughly(group.operator, group.old)
                image_1M = rough.apply(group.old, group.update_1N)
                group.update_1N = nn.functional.normalize(rough.adjoint(group.old, image_1M), dim=-1)
        if self._level >= 2:
            with self._timed("samples"):
                made = [self._samples(group, *pair) for group, pair in zip(self._groups, pairs, strict=True)]
            if self._level >= 3:
                with self._timed("curvature"):
                    for group, pair, images in zip(self._groups, pairs, made, strict=True):
                        self._curve(group, *pair, images)

    def _copy(self) -> None:
        if self._matrices:
            torch._foreach_copy_([group.old for group in self._matrices], [group.new for group in self._matrices])
        for group in self._groups:
            if not group.matrix:
                group.old = group.new  # the stack of the step before

    def _samples(self, group: _Layers, u_1M: Tensor, v_1N: Tensor) -> list[tuple[Tensor, ...]]:
        """Return, of each layer, each sample's scalar (B,) and what came with it that its curvature needs."""
        if self._coupled:
            gradient = torch.stack([_grad(weight) for weight in group.weights])
            image_2M = group.operator.apply(gradient, torch.cat([v_1N, group.v_1N], 1))
            return [((image_2M * torch.cat([u_1M, group.u_1M], 1)).sum(-1), gradient)]
        if not self._scaled:
            return [seen.made for seen in group.seen]
        return [self._sampled(group, place, u_1M, v_1N) for place in range(len(group.seen))]

    def _sampled(self, group: _Layers, place: int, u_1M: Tensor, v_1N: Tensor) -> tuple[Tensor, ...]:
        """Return the same of one layer."""
        inputs, grads = group.seen[place].inputs, group.seen[place].grads
        assert inputs is not None
        assert grads is not None
        if isinstance(group.operator, Conv2dOperator):
            return self._convolved(group.operator, group.by[place], inputs, grads)
        samples, inputs, grads = len(inputs), inputs.flatten(0, -2), grads.flatten(0, -2)
        u_M, v_N = u_1M[0, 0], v_1N[0, 0]
        if self._scaled:
            jacobian = _preconditioner(self._optimizer, group.weights[place]) * torch.outer(u_M, v_N)
            return (projected(inputs, jacobian.mT, grads).view(samples, -1).sum(1),)
        at_v, at_u = torch.mv(inputs, v_N), torch.mv(grads, u_M)
        return (at_v * at_u).view(samples, -1).sum(1), at_v, at_u

    def _convolved(
        self, operator: Conv2dOperator, by: Sketch | CompactKernel | None, inputs: Tensor, grads: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the same of a convolution, between few channels where its kernel has such."""
        if isinstance(by, Sketch):
            return by.samples(inputs, grads) if self._level >= 3 else (by.kernel.sample_scalars(inputs, grads),)
        if by is not None:
            return (by.sample_scalars(inputs, grads),)
        return (operator.sample_scalars(inputs.new_ones(operator.kernel_shape), inputs, grads),)

    def _curve(self, group: _Layers, u_1M: Tensor, v_1N: Tensor, made: Sequence[tuple[Tensor, ...]]) -> None:
        """Take a random sum of the samples' gradients on the pair, and one application pair of the weights on it."""
        operator = group.operator
        if self._coupled:
            sums = [(operator.apply(made[0][1], v_1N), operator.adjoint(made[0][1], u_1M))]
        else:
            sums = [
                seen.images or self._summed(group, place, u_1M, v_1N, found)
                for place, (seen, found) in enumerate(zip(group.seen, made, strict=True))
            ]
        images = torch.cat([image.view(-1, 1, operator.outputs) for image, _ in sums])
        rough = roughly(operator, group.new)
        rough.apply(group.new, rough.adjoint(group.new, images))

    def _summed(
        self, group: _Layers, place: int, u_1M: Tensor, v_1N: Tensor, found: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return what a random sum of one layer's samples does to its pair."""
        operator, weight, seen = group.operator, group.weights[place], group.seen[place]
        inputs, grads, signs_B = seen.inputs, seen.grads, found[0].sign()
        assert inputs is not None
        assert grads is not None
        by = group.by[place] if group.by else None
        if isinstance(by, Sketch):
            return by.images(*(torch.tensordot(signs_B[None], each, 1) for each in found[1:]))
        if isinstance(operator, Conv2dOperator):
            gradient = operator.weighted_gradient(signs_B, inputs, grads)
            return operator.apply(gradient, v_1N[place]), operator.adjoint(gradient, u_1M[place])
        samples, inputs, grads = len(inputs), inputs.flatten(0, -2), grads.flatten(0, -2)
        weight_T = signs_B.repeat_interleave(len(inputs) // samples)
        if not self._scaled:
            return torch.mv(grads.mT, found[1] * weight_T), torch.mv(inputs.mT, found[2] * weight_T)
        # The second of the two products that images take; the first stands for the scalars' own.
        scale = _preconditioner(self._optimizer, weight)
        coimage_TN = projected(grads, scale * u_1M[0, 0][:, None], inputs)
        return torch.mv(grads.mT, weight_T), torch.mv(coimage_TN.mT, weight_T)

    def _hook_all(self, model: nn.Module) -> None:
        modules = {module.weight: module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
        for group in self._groups:
            for place, weight in enumerate(group.weights):
                self._hook(modules[weight], group, place)

    def _hook(self, module: nn.Module, group: _Layers, place: int) -> None:
        seen, early = group.seen[place], self._level > 1 and not self._scaled

        def forward(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            seen.inputs = arguments[0].detach()
            output.register_hook(backward)

        def backward(grad: Tensor) -> None:
            seen.grads = grad
            if early:
                pair = group.u_1M, group.v_1N
                with self._timed("samples"):
                    seen.made = self._sampled(group, place, *pair)
                if self._level >= 3:
                    with self._timed("curvature"):
                        seen.images = self._summed(group, place, *pair, seen.made)
                seen.inputs = seen.grads = None

        module.register_forward_hook(forward)

    @contextmanager
    def _timed(self, item: str) -> Iterator[None]:
        started = time.process_time()
        yield
        self.spent_s[item] += time.process_time() - started


def _track(group: _Layers) -> None:
    """Take one plain iteration of the pair, with what the update's images need."""
    image_1M = group.operator.apply(group.new, group.v_1N)
    u_1M = nn.functional.normalize(image_1M, dim=-1)
    coimage_2N = group.operator.adjoint(group.new, torch.cat([group.u_1M, u_1M], 1))
    group.u_1M, group.v_1N = u_1M, nn.functional.normalize(coimage_2N[:, 1:], dim=-1)


def _preconditioner(optimizer: torch.optim.Optimizer, weight: Tensor) -> Tensor:
    state = optimizer.state[weight]
    correction = 1.0 - _BETA_2 ** float(state["step"])
    inverse: Tensor = (state["exp_avg_sq"] * (1.0 / correction)).sqrt_().add_(_EPS).reciprocal_()
    return inverse


def _grad(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad


def _groups(workload: Workload, model: nn.Module, tracked: bool) -> list[_Layers]:
    """Return the layers by what is taken together."""
    shapes = _input_shapes(workload, model)
    by_operator: dict[LayerOperator | nn.Module, list[nn.Linear | nn.Conv2d]] = {}
    operators: dict[LayerOperator | nn.Module, LayerOperator] = {}
    for module, shape in shapes.items():
        operator = _operator(module, shape)
        key: LayerOperator | nn.Module = module if isinstance(operator, LinearOperator) else operator
        by_operator.setdefault(key, []).append(module)
        operators[key] = operator
    groups = []
    for key, modules in by_operator.items():
        operator, weights = operators[key], [module.weight for module in modules]
        kernels = weights[0].detach()[None] if len(weights) == 1 else torch.stack([w.detach() for w in weights])
        u_1M, v_1N = (torch.ones(len(weights), 1, n) / n**0.5 for n in (operator.outputs, operator.inputs))
        group = _Layers(operator, weights, [_Seen() for _ in weights], u_1M, v_1N, v_1N, kernels.clone(), kernels)
        if isinstance(operator, Conv2dOperator) and tracked:
            generator = torch.Generator().manual_seed(0)
            vectors = [torch.randn(1, n, generator=generator) for n in (operator.outputs, operator.inputs)]
            group.by = [projection(operator, vectors[0], vectors[1], True) for _ in weights]
            group.new = kernels.clone()
        groups.append(group)
    return groups


def _operator(module: nn.Linear | nn.Conv2d, shape: tuple[int, ...]) -> LayerOperator:
    if isinstance(module, nn.Linear):
        return LinearOperator(module.out_features, module.in_features)
    kernel_shape, padding = tuple(module.weight.shape), module.padding
    assert not isinstance(padding, str)
    sides = tuple(shape[1:])
    stride = (module.stride[0], module.stride[1])
    assert len(kernel_shape) == 4
    assert len(sides) == 3
    return Conv2dOperator(sides, kernel_shape, stride, (padding[0], padding[1]))


def _input_shapes(workload: Workload, model: nn.Module) -> dict[nn.Linear | nn.Conv2d, tuple[int, ...]]:
    """Return the matrices and convolutions with the shape of their inputs, in the order in which they are called."""
    shapes: dict[nn.Linear | nn.Conv2d, tuple[int, ...]] = {}

    def look(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Linear | nn.Conv2d)
        shapes[module] = tuple(arguments[0].shape)

    handles = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    with torch.no_grad():
        model.eval()(workload.batch(torch.Generator().manual_seed(0))[0][:1])
    model.train()
    for handle in handles:
        handle.remove()
    return shapes
