"""Running a user's loss for a look: generators, buffers, modes and gradients are afterwards what they were."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["untouched"]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Let ``model`` be run and differentiated, even twice, without a trace.

    The generators of torch (CPU and the model's GPUs), Python and numpy are put back; buffers (running statistics) are
    stand-ins meanwhile, so that not even their versions count on; attention runs on torch's plain kernel, the only one
    that can be differentiated twice; compiled models run uncompiled, data-parallel ones without reducing gradients. A
    generator of the caller's own is the caller's.
    """
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    own = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    stand_ins = {id(buffer): buffer.clone() for _, _, buffer in own if buffer is not None}
    python, legacy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        for module in model.modules():
            if isinstance(module, nn.parallel.DistributedDataParallel):
                stack.enter_context(module.no_sync())
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # its recurrent layers have no second one
        if "torch._dynamo" in sys.modules:  # asking for the stance would import it, which takes a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for module, name, buffer in own:
                module._buffers[name] = None if buffer is None else stand_ins[id(buffer)]
            yield
        finally:
            for module, name, buffer in own:
                module._buffers[name] = buffer
            random.setstate(python)
            np.random.set_state(legacy)
