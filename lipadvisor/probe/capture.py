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

__all__ = ["Capture"]


@dataclass(slots=True)
class _Call:
    """One call of a layer: its input, later the gradient at its output, and which backward pass it belongs to."""

    input_B: Tensor
    round: int
    grad_B: Tensor | None = None


@dataclass(slots=True)
class Capture:
    """Hooks on a list of modules; ``calls[l]`` are layer l's calls since they were put in, in order."""

    modules: Sequence[nn.Module]
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
        for index, module in enumerate(self.modules):
            self._handles.append(module.register_forward_hook(self._hook(index)))

    def detach(self) -> None:
        """Take the hooks out. What was recorded stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def clear(self) -> None:
        """Forget what was recorded, but not the sizes of the inputs."""
        self.calls = [[] for _ in self.modules]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing of what the model is run for meanwhile, and lose nothing of what was recorded."""
        self.asleep = True
        try:
            yield
        finally:
            self.asleep = False

    def batch(self, index: int, flat: bool) -> tuple[Tensor, Tensor] | None:
        """Return layer ``index``'s inputs and output gradients in float32 or better; None without both.

        Calls before one backward pass saw the same samples: they are places of a sample. Calls before another one
        (accumulated gradients) saw other samples.

        Args:
            index: of the layer.
            flat: a matrix: (B, T, N) and (B, T, M) are returned; otherwise maps (B, ...) as they are, and several
                calls on the same samples cannot be told apart (None).
        """
        rounds: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for call in self.calls[index]:
            if call.grad_B is not None:
                rounds.setdefault(call.round, []).append((_wide(call.input_B), _wide(call.grad_B)))
        if not rounds:
            return None
        pairs = []
        for calls in rounds.values():
            if flat:
                calls = [(_places(x), _places(d)) for x, d in calls]
                if len({len(x) for x, _ in calls}) > 1:
                    return None
            elif len(calls) > 1:
                return None
            pairs.append(calls[0] if len(calls) == 1 else _join(calls, 1))
        if len({x.shape[1:] for x, _ in pairs}) > 1:
            return None
        return pairs[0] if len(pairs) == 1 else _join(pairs, 0)

    def _hook(self, index: int) -> Any:
        def forward(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if self.asleep:
                return
            started = time.perf_counter()
            if arguments and isinstance(arguments[0], Tensor):
                self.input_shapes[index] = tuple(arguments[0].shape)
                if self.keep and isinstance(output, Tensor) and output.requires_grad:
                    calls = self.calls[index]
                    turn = 0 if not calls else calls[-1].round + (calls[-1].grad_B is not None)
                    call = _Call(arguments[0].detach(), turn)
                    calls.append(call)
                    output.register_hook(_receiver(call))
            self.spent_s += time.perf_counter() - started

        return forward


def _receiver(call: _Call) -> Any:
    def backward(grad: Tensor) -> None:
        call.grad_B = grad.detach()

    return backward


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _places(x: Tensor) -> Tensor:
    """Return (B, ..., n) as (B, T, n)."""
    return x.unsqueeze(1) if x.dim() == 2 else x.reshape(x.shape[0], -1, x.shape[-1])


def _join(pairs: list[tuple[Tensor, Tensor]], dim: int) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in pairs], dim), torch.cat([d for _, d in pairs], dim)
