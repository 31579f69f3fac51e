"""Whether a network is a plain chain: each operation takes what one other gives, and no two paths ever meet.

In a chain the layers' gains multiply; where paths meet (residual branches, attention, gates, recurrence), they do not.
Found out by symbolic tracing, without a batch: the model's own Python runs once on symbols.
"""

from __future__ import annotations

import copy
import random

import numpy as np
import torch
from torch import Tensor, fx, nn

__all__ = ["is_plain_chain"]

_SIZES = frozenset(["size", "dim", "numel", "stride", "element_size", "ndimension", "nelement"])


def is_plain_chain(model: nn.Module) -> bool:
    """Return whether no operation of ``model`` joins two activations and no layer is used twice.

    A model that cannot be traced (its Python looks at values, or at lengths that only a batch has) is taken for none.
    Its parameters, buffers, attributes and hooks, and the generators of torch, Python and numpy, stay as they are.
    """
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            return _chained(fx.Tracer().trace(_stand_in(model, {})), model)
    except Exception:  # a user's forward may fail on symbols in any way
        return False
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def _chained(graph: fx.Graph, model: nn.Module) -> bool:
    flowing: set[fx.Node] = set()  # nodes that are made of activations, and are no sizes of them
    called: set[object] = set()
    for node in graph.nodes:
        given = [before for before in node.all_input_nodes if before in flowing]
        if len(given) > 1:
            return False
        if node.op == "call_module":
            if node.target in called or not _single(model.get_submodule(str(node.target))):
                return False
            called.add(node.target)
        if node.op == "placeholder" or (given and not _is_size(node)):
            flowing.add(node)
    return True


def _single(leaf: nn.Module) -> bool:
    """Return whether a module of torch's own that is not looked into has one weight matrix at most."""
    return sum(parameter.dim() >= 2 for parameter in leaf.parameters()) <= 1


def _is_size(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SIZES
    return node.op == "call_function" and node.target is getattr and node.args[1] not in ("T", "mT", "H", "mH", "data")


def _stand_in(module: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    """Return a module that shares its parameters and nothing else that a forward pass may write to; without hooks."""
    if id(module) not in made:
        made[id(module)] = twin = module.__class__.__new__(module.__class__)
        for name, value in module.__dict__.items():
            hooks = "hooks" in name and isinstance(value, dict)
            container = isinstance(value, (list, dict, set))
            twin.__dict__[name] = type(value)() if hooks else copy.copy(value) if container else value
        twin.__dict__["_buffers"] = {name: _copied(buffer) for name, buffer in module._buffers.items()}
        twin.__dict__["_modules"] = {
            name: None if child is None else _stand_in(child, made) for name, child in module._modules.items()
        }
    return made[id(module)]


def _copied(buffer: Tensor | None) -> Tensor | None:
    return None if buffer is None else buffer.detach().clone()
