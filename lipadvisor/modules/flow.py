"""What flows through a model on one batch: sizes, gains of a perturbation forward and of a cotangent backward.

One forward pass in dual numbers gives the tangents, one backward pass with a random cotangent at the output (or with
a loss) gives the gradients; each is summarised where it passes, so no gradient of a weight outlives its hook.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from lipadvisor.modules.initialization import weight_matrices
from lipadvisor.modules.local import perturbed
from lipadvisor.modules.operator_norm import matrix_norm
from lipadvisor.modules.running import observed

__all__ = ["AttentionFlow", "Flow", "ModuleFlow", "WeightFlow", "measure_flow"]


@dataclass(slots=True)
class ModuleFlow:
    """One module in one pass (the last call, where there are several). Norms are Euclidean over the whole tensor."""

    rms_in: float = math.nan
    rms_out: float = math.nan
    forward_gain: float = math.nan  # |dy| / |dx| for the tangent that arrives
    backward_gain: float = math.nan  # |g_in| / |g_out| for the cotangent that arrives
    gradient_out: float = math.nan  # |g_out|
    gradient_in: float = math.nan  # of its input, over all who read it: on a residual stream, the stream's gradient


@dataclass(frozen=True, slots=True)
class WeightFlow:
    """One weight matrix and its gradient under the cotangent used."""

    norm: float  # s_1(W)
    frobenius: float
    gradient: float  # |G|_F
    gradient_norm: float  # s_1(G)
    sign_norm: float  # s_1(sign G): Adam's first direction


@dataclass(frozen=True, slots=True)
class AttentionFlow:
    """Scores of one attention: their standard deviation within a row, and the entropy of its weights over log n."""

    spread: float
    entropy: float


@dataclass(slots=True)
class Flow:
    """Everything that was met, by module name; attention by the module that runs the softmax."""

    modules: dict[str, ModuleFlow] = field(default_factory=dict)
    weights: dict[str, WeightFlow] = field(default_factory=dict)
    attention: dict[str, AttentionFlow] = field(default_factory=dict)
    finite: bool = True
    note: str = ""


def measure_flow(
    model: nn.Module,
    batch: Any,
    watched: dict[str, nn.Module],
    sources: tuple[str, ...] = (),
    loss: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Flow:
    """Run the model twice and return what flowed through ``watched`` modules.

    Args:
        model: left as it is, gradients included.
        batch: as for :func:`~lipadvisor.modules.compose`.
        watched: modules by name.
        sources: where the perturbation enters; empty: the float inputs.
        loss: of the output that counts; without one a random cotangent stands in for its gradient.
        seed: of the perturbation and the cotangent.
        progress: called with a line of text for each weight.
    """
    flow = Flow(modules={name: ModuleFlow() for name in watched})
    generator = torch.Generator().manual_seed(seed)
    grads = {parameter: parameter.grad for parameter in model.parameters()}
    for parameter in grads:
        parameter.grad = None
    try:
        with observed(model):
            try:
                _tangents(model, batch, watched, sources, flow, generator)
            except (NotImplementedError, RuntimeError) as error:
                flow.note = f"no forward gains: {str(error).splitlines()[0][:120]}"
            _cotangents(model, batch, watched, sources, loss, flow, generator, progress)
    finally:
        for parameter, grad in grads.items():
            parameter.grad = grad
    return flow


def _norm(x: Tensor) -> float:
    x = x.detach()
    return float(torch.linalg.vector_norm(x if x.is_complex() else x.float()))


def _rms(x: Tensor) -> float:
    return _norm(x) / math.sqrt(max(x.numel(), 1))


def _first(values: Any) -> Tensor | None:
    for value in values if isinstance(values, (tuple, list)) else (values,):
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
            return value
    return None


@contextmanager
def _hooked(watched: dict[str, nn.Module], after: Callable[..., None], before: Callable[..., Any]) -> Iterator[None]:
    hooks = []
    for name, module in watched.items():
        hooks.append(module.register_forward_pre_hook(functools.partial(before, name), with_kwargs=True))
        hooks.append(module.register_forward_hook(functools.partial(after, name), with_kwargs=True))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _tangents(
    model: nn.Module,
    batch: Any,
    watched: dict[str, nn.Module],
    sources: tuple[str, ...],
    flow: Flow,
    generator: torch.Generator,
) -> None:
    function, zero = perturbed(model, batch, sources)
    direction = torch.randn(zero.shape, generator=generator).to(zero)

    arrived: dict[str, float] = {}

    def tangent(value: Any) -> float:
        x = _first(value)
        dx = None if x is None else forward_ad.unpack_dual(x).tangent
        return 0.0 if dx is None else _norm(dx)

    def look_in(name: str, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        arrived[name] = tangent((*args, *kwargs.values()))  # before the call: it may work in place

    def look_out(name: str, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if arrived[name] > 0:
            flow.modules[name].forward_gain = tangent(output) / arrived[name]

    with torch.no_grad(), forward_ad.dual_level(), _hooked(watched, look_out, look_in):
        function(forward_ad.make_dual(zero, direction))


def _cotangents(
    model: nn.Module,
    batch: Any,
    watched: dict[str, nn.Module],
    sources: tuple[str, ...],
    loss: Callable[[Tensor], Tensor] | None,
    flow: Flow,
    generator: torch.Generator,
    progress: Callable[[str], None] | None,
) -> None:
    function, zero = perturbed(model, batch, sources)
    arrived: dict[str, float] = {}

    def look_in(name: str, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        x = _first((*args, *kwargs.values()))
        if x is None:
            return None
        flow.modules[name].rms_in = _rms(x)
        if not x.requires_grad:
            return None
        x.register_hook(functools.partial(all_readers, name))
        if getattr(module, "inplace", False):  # nobody else can read x: it is about to be overwritten
            x.register_hook(functools.partial(left, name))
            return None
        own = x.view_as(x)  # what this module alone sends back; others may read x too
        own.register_hook(functools.partial(left, name))
        return tuple(own if a is x else a for a in args), {k: own if v is x else v for k, v in kwargs.items()}

    def look_out(name: str, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        y = _first(output)
        if y is None:
            return
        flow.modules[name].rms_out = _rms(y)
        if y.requires_grad:
            y.register_hook(functools.partial(enter, name))

    def enter(name: str, gradient: Tensor) -> None:
        arrived[name] = flow.modules[name].gradient_out = _norm(gradient)

    def all_readers(name: str, gradient: Tensor) -> None:
        flow.modules[name].gradient_in = _norm(gradient)

    def left(name: str, gradient: Tensor) -> None:
        if arrived.get(name, 0.0) > 0:
            flow.modules[name].backward_gain = _norm(gradient) / arrived[name]

    handles = _watch_weights(model, flow, progress)
    try:
        with torch.enable_grad(), _hooked(watched, look_out, look_in), _softmaxes(model, flow):
            output = function(zero.requires_grad_(True))
            flow.finite = bool(torch.isfinite(output.detach()).all())
            cotangent = torch.randn(output.shape, generator=generator).to(output)
            value = (output * cotangent).sum() / cotangent.norm() if loss is None else loss(output)
            value.backward()
    finally:
        for handle in handles:
            handle.remove()


def _watch_weights(model: nn.Module, flow: Flow, progress: Callable[[str], None] | None) -> list[Any]:
    """Ask for the gradients of weight matrices, and drop each as soon as it has been read."""
    handles = []
    for name, weight in weight_matrices(model).items():

        def read(parameter: Tensor, name: str = name) -> None:
            G = parameter.grad.detach().flatten(1)  # type: ignore[union-attr]
            W = parameter.detach().flatten(1)
            flow.weights[name] = WeightFlow(
                matrix_norm(W), float(W.norm()), float(G.norm()), matrix_norm(G), matrix_norm(G.sgn())
            )
            parameter.grad = None
            if progress is not None:
                progress(f"gradient of {name}")

        weight.requires_grad_(True)
        handles.append(weight.register_post_accumulate_grad_hook(read))
    return handles


@contextmanager
def _softmaxes(model: nn.Module, flow: Flow) -> Iterator[None]:
    """Record the scores of every softmax over a matrix of them, under the innermost module that runs it."""
    running: list[str] = []

    def enter(name: str, module: nn.Module, args: Any) -> None:
        running.append(name)

    def leave(name: str, module: nn.Module, args: Any, output: Any) -> None:
        while running and running.pop() != name:
            pass

    handles: list[Any] = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(functools.partial(enter, name)))
        handles.append(module.register_forward_hook(functools.partial(leave, name), always_call=True))
    try:
        with _SoftmaxWatch(running, flow):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _SoftmaxWatch(TorchDispatchMode):
    def __init__(self, running: list[str], flow: Flow) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running, self.flow = running, flow

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("_softmax", "_safe_softmax") and self.running:
            scores = args[0].detach()
            if scores.ndim >= 3 and scores.shape[-1] > 1 and args[1] in (-1, scores.ndim - 1):
                self._record(scores.float(), output.detach().float())
        return output

    def _record(self, scores: Tensor, P: Tensor) -> None:
        seen = scores > torch.finfo(scores.dtype).min / 2  # masked scores are -inf or the least number
        count = seen.sum(-1)
        mean = torch.where(seen, scores, 0.0).sum(-1) / count.clamp_min(1)
        square = torch.where(seen, scores - mean[..., None], 0.0).square().sum(-1) / count.clamp_min(1)
        full = count > 1
        if not bool(full.any()):
            return
        entropy = -torch.special.xlogy(P, P).sum(-1) / count.clamp_min(2).float().log()
        spread = float(square[full].mean().sqrt())
        self.flow.attention[self.running[-1]] = AttentionFlow(spread, float(entropy[full].mean()))
