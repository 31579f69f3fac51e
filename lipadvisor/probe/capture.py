"""What a measured step leaves behind at each layer: its inputs and the gradients at its outputs.

Hooks are in place during measured steps only. They read; they never replace a tensor, so that the model computes what
it computes without them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lipadvisor.probe.kinds import TrackedLayer, Use
from lipadvisor.probe.samples import Seen, SeenSamples

__all__ = ["Capture"]


@dataclass(slots=True)
class _Call:
    """One call of a layer: its input, later the gradient at its output, and which backward pass it belongs to."""

    use: Use
    kept: Any  # of the input, as the use reads it
    round: int
    grad_B: Tensor | None = None


@dataclass(slots=True)
class Capture:
    """Hooks on the modules of layers; ``calls[l]`` are layer l's calls since they were put in, in order."""

    layers: Sequence[TrackedLayer]
    keep: bool = True  # keep activations and gradients, or only look at sizes
    calls: list[list[_Call]] = field(default_factory=list)
    input_shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    spent_s: float = 0.0
    asleep: bool = False  # hooks stay where they are and record nothing
    _handles: list[RemovableHandle] = field(default_factory=list)

    def attach(self) -> None:
        """Put the hooks in, with nothing recorded yet."""
        self.detach()
        self.clear()
        for index, layer in enumerate(self.layers):
            for use in layer.uses:
                self._handles.append(use.module.register_forward_hook(self._hook(index, use), with_kwargs=True))

    def detach(self) -> None:
        """Take the hooks out. What was recorded stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def clear(self) -> None:
        """Forget what was recorded, but not the sizes of the inputs."""
        self.calls = [[] for _ in self.layers]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing of what the model is run for meanwhile, and lose nothing of what was recorded."""
        self.asleep = True
        try:
            yield
        finally:
            self.asleep = False

    def batch(self, index: int) -> tuple[Tensor, Tensor] | SeenSamples | None:
        """Return what layer ``index`` saw in float32 or better; None where it saw nothing, or cannot be understood.

        Calls before one backward pass saw the same samples: what a sample did in them is added up. Calls before
        another one (accumulated gradients) saw other samples.

        Returns:
            Inputs (B, T, N) and output gradients (B, T, M) of a plain matrix, T places of each sample; the samples of
            any other layer.
        """
        rounds: dict[int, list[Seen]] = {}
        for call in self.calls[index]:
            if call.grad_B is not None:
                rounds.setdefault(call.round, []).append(Seen(call.use, call.kept, call.grad_B))
        if not rounds or any(len({seen.count for seen in calls}) > 1 for calls in rounds.values()):
            return None
        if not self.layers[index].flat:
            return SeenSamples(tuple(tuple(calls) for calls in rounds.values()))
        pairs = []
        for calls in rounds.values():
            one = [seen.use.pair(seen.kept, seen.grad) for seen in calls]
            pairs.append(one[0] if len(one) == 1 else _join(one, 1))
        if len({x.shape[1:] for x, _ in pairs}) > 1:
            return None
        return pairs[0] if len(pairs) == 1 else _join(pairs, 0)

    def _hook(self, index: int, use: Use) -> Any:
        def forward(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            if self.asleep:
                return
            started = time.perf_counter()
            kept = use.read(arguments, keywords)
            if kept is not None:
                if isinstance(kept, Tensor):
                    self.input_shapes[index] = tuple(kept.shape)
                result = output[0] if isinstance(output, tuple) else output
                if self.keep and isinstance(result, Tensor) and result.requires_grad:
                    calls = self.calls[index]
                    turn = 0 if not calls else calls[-1].round + (calls[-1].grad_B is not None)
                    call = _Call(use, kept, turn)
                    calls.append(call)
                    result.register_hook(_receiver(call))
            self.spent_s += time.perf_counter() - started

        return forward


def _receiver(call: _Call) -> Any:
    def backward(grad: Tensor) -> None:
        call.grad_B = grad.detach()

    return backward


def _join(pairs: list[tuple[Tensor, Tensor]], dim: int) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in pairs], dim), torch.cat([d for _, d in pairs], dim)
