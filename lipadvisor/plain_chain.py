"""Whether a network is a plain chain: each operation takes what one other gives, and no two paths ever meet.

In a chain the layers' gains multiply; where paths meet (residual branches, attention, gates, recurrence), they do not.
Found out by symbolic tracing, without a batch: the model's own Python runs once on symbols.
"""

from __future__ import annotations

import copy
import functools
import io
import random
import types
from collections import deque
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

__all__ = ["is_plain_chain"]

_SIZES = frozenset(["size", "dim", "numel", "stride", "element_size", "ndimension", "nelement"])
_FIXED = (str, bytes, int, float, complex, type(None), type, range, torch.Size, torch.dtype, torch.device)
_CODE = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
MOST = 100_000  # objects that a model may hold; one that holds more (a trainer, its data) is not traced


def is_plain_chain(model: nn.Module) -> bool:
    """Return whether no operation of ``model`` joins two activations and no layer is used twice.

    A model that cannot be traced (its Python looks at values, or at lengths that only a batch has, or it holds what
    cannot be copied, such as an open file) is taken for none. Its parameters, buffers, attributes and hooks, all that
    these hold, and the generators of torch, Python and numpy, stay as they are; nothing is printed. What its Python
    writes elsewhere (to its class, to files, to variables of its source file) is written once more.
    """
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad(), redirect_stdout(io.StringIO()):
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


def _stand_in(module: nn.Module, made: dict[int, Any]) -> nn.Module:
    """Return a module that shares nothing that a forward pass may write to; without hooks, its parameters without data.

    Args:
        module: of the model.
        made: what stands for each object met so far, by its id.
    """
    made[id(module)] = twin = module.__class__.__new__(module.__class__)
    for name, value in module.__dict__.items():
        hooks = "hooks" in name and isinstance(value, dict)
        twin.__dict__[name] = type(value)() if hooks else _copied(value, made)
    return twin


def _copied(value: Any, made: dict[int, Any]) -> Any:
    """Return what stands for an attribute."""
    if isinstance(value, _FIXED + _CODE):
        return value
    if id(value) not in made:
        if len(made) > MOST:
            raise RuntimeError(f"more than {MOST} objects")
        made[id(value)] = _stand_in(value, made) if isinstance(value, nn.Module) else _made(value, made)
    return made[id(value)]


def _made(value: Any, made: dict[int, Any]) -> Any:
    if isinstance(value, nn.Parameter):
        return nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=value.requires_grad)
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, _copied(value.__self__, made))
    if isinstance(value, functools.partial):
        parts = (_copied(part, made) for part in (value.func, value.args, value.keywords))
        function, arguments, keywords = parts
        return functools.partial(function, *arguments, **keywords)
    if isinstance(value, tuple):
        parts = (_copied(part, made) for part in value)
        return value._make(parts) if hasattr(value, "_make") else tuple(parts)
    if not isinstance(value, (list, deque, set, dict)) and not hasattr(value, "__dict__"):
        return copy.deepcopy(value)
    made[id(value)] = twin = copy.copy(value)
    if twin is not value:  # else it is one of its kind: an enumeration's member, a logger
        _refill(twin, made)
    return twin


def _refill(twin: Any, made: dict[int, Any]) -> None:
    """Put stand-ins in the place of all that a shallow copy holds."""
    for name, part in getattr(twin, "__dict__", {}).items():
        twin.__dict__[name] = _copied(part, made)
    if isinstance(twin, dict):
        for key, part in twin.items():
            twin[key] = _copied(part, made)
    elif isinstance(twin, (list, deque, set)):
        parts = [_copied(part, made) for part in twin]
        twin.clear()
        twin.update(parts) if isinstance(twin, set) else twin.extend(parts)
