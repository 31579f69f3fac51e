"""The sizes of the layers' inputs, before the first training step."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from lipadvisor.probe.capture import Capture
from lipadvisor.probe.compiled import eagerly
from lipadvisor.probe.kinds import TrackedLayer
from lipadvisor.probe.kinds.sharded import put_shares_back

__all__ = ["input_sizes"]


def input_sizes(
    model: nn.Module, layers: Sequence[TrackedLayer], arguments: tuple[Any, ...], keywords: Mapping[str, Any]
) -> dict[int, tuple[int, ...]]:
    """Return the input shapes of a batch, by layer, from a forward pass that leaves everything as it is.

    That is to say modes, buffers (the pass is in eval mode) and the generators of torch, Python and numpy.

    Args:
        model: all of it.
        layers: to learn of.
        arguments: of one batch, positional.
        keywords: the rest of them.
    """
    modes = [(module, module.training) for module in model.modules()]
    sizes = Capture(layers, keep=False, always=True)
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    python, legacy = random.getstate(), np.random.get_state()
    try:
        sizes.attach()
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=devices), eagerly(model):
            model(*arguments, **keywords)
    finally:
        sizes.detach()
        random.setstate(python)
        np.random.set_state(legacy)
        put_shares_back(model)
        for module, training in modes:
            module.training = training
    return sizes.seen_shapes
