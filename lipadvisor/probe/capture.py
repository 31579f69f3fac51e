"""What a measured step leaves behind at each layer: its inputs and the gradients at its outputs.

Hooks are in place during measured steps only. They read; they never replace a tensor, so that the model computes what
it computes without them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["Capture"]


@dataclass(slots=True)
class _Call:
    """One call of a layer: its input, and later the gradient at its output."""

    input_B: Tensor
    grad_B: Tensor | None = None


@dataclass(slots=True)
class Capture:
    """Hooks on a list of modules; ``calls[l]`` are layer l's calls since they were put in, in order."""

    modules: Sequence[nn.Module]
    keep: bool = True  # keep activations and gradients, or only look at sizes
    calls: list[list[_Call]] = field(default_factory=list)
    input_shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    spent_s: float = 0.0
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

    def batch(self, index: int) -> tuple[Tensor, Tensor] | None:
        """Return layer ``index``'s inputs and output gradients (B, ...) in float32 or better; None without both."""
        complete = [(call.input_B, call.grad_B) for call in self.calls[index] if call.grad_B is not None]
        if not complete:
            return None
        inputs = [_wide(x) for x, _ in complete]
        grads = [_wide(d) for _, d in complete]
        if len(complete) == 1:
            return inputs[0], grads[0]
        if any(x.shape[1:] != inputs[0].shape[1:] for x in inputs):
            return None
        return torch.cat(inputs), torch.cat(grads)

    def _hook(self, index: int) -> Any:
        def forward(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            started = time.perf_counter()
            if arguments and isinstance(arguments[0], Tensor):
                self.input_shapes[index] = tuple(arguments[0].shape)
                if self.keep and isinstance(output, Tensor) and output.requires_grad:
                    call = _Call(arguments[0].detach())
                    self.calls[index].append(call)
                    output.register_hook(_receiver(call))  # type: ignore[no-untyped-call]
            self.spent_s += time.perf_counter() - started

        return forward


def _receiver(call: _Call) -> Any:
    def backward(grad: Tensor) -> None:
        call.grad_B = grad.detach()

    return backward


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
