"""Running a model only to look at it: nothing of it is changed once the look is over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["arguments", "observed", "primary", "run"]

_BATCH_STATISTICS = (nn.modules.batchnorm._BatchNorm,)


def arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return how the model is called: a mapping by keywords, a tuple or list by position, a tensor as it is."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, (tuple, list)):
        return tuple(batch), {}
    return (batch,), {}


def primary(output: Any) -> Tensor:
    """Return the tensor that counts of a model's output: ``logits``, ``last_hidden_state``, else the first float one.

    Raises:
        TypeError: there is no floating-point tensor in it.
    """
    for name in ("logits", "last_hidden_state"):
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    if isinstance(output, Tensor) and output.is_floating_point():
        return output
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    for part in parts:
        if isinstance(part, Tensor) and part.is_floating_point():
            return part
    raise TypeError(f"the model's output must hold a floating-point tensor, got {type(output).__name__}.")


def run(model: nn.Module, batch: Any) -> Tensor:
    """Call the model on ``batch`` and return the tensor that counts."""
    args, kwargs = arguments(batch)
    return primary(model(*args, **kwargs))


@contextmanager
def observed(model: nn.Module) -> Iterator[None]:
    """Switch dropout off and freeze parameters; modes, buffers, gradients and flags come back afterwards.

    Batch normalisation stays in training mode where it was: its running statistics mean nothing before training.
    Attention runs on torch's plain kernel, the only one that can be differentiated twice.

    Raises:
        ValueError: a lazy module has no weights yet.
    """
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"the model's {name!r} is lazy and has no value yet: call the model once first.")
    modes = {module: module.training for module in model.modules()}
    needs = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with torch.no_grad():
        buffers = {buffer: buffer.clone() for buffer in model.buffers() if buffer.numel() < 1 << 22}
    config = getattr(model, "config", None)
    use_cache = getattr(config, "use_cache", None)
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # the fused kernel cannot be differentiated at all
        for module, training in modes.items():
            module.training = training and isinstance(module, _BATCH_STATISTICS)
        for parameter in needs:
            parameter.requires_grad_(False)
        if config is not None and use_cache:
            config.use_cache = False
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in modes.items():
            module.training = training
        for parameter, needed in needs.items():
            parameter.requires_grad_(needed)
        with torch.no_grad():
            for buffer, value in buffers.items():
                buffer.copy_(value)
        if config is not None and use_cache:
            config.use_cache = use_cache
