"""A model that is sharded over processes (FSDP2), whole on each of them for a while.

Second derivatives need a graph that stands while it is differentiated again, and sharded weights are let go of in
between. For a look they are gathered once: each process then has a plain model, and its hooks are out of the way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lipadvisor.probe.kinds.sharded import fully_sharded_mesh, is_sharded, put_shares_back

__all__ = ["gathered", "whole"]

_SHARDING = "torch.distributed.fsdp"
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


def whole(tensor: Any) -> Tensor:
    """Return a tensor with all of its shares: a collective call where it is sharded."""
    if not is_sharded(tensor):
        plain: Tensor = tensor
        return plain
    full: Tensor = tensor.detach().full_tensor()
    return full


@contextmanager
def gathered(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[tuple[nn.Parameter, ...]]:
    """Let ``model`` hold whole weights meanwhile, and yield those that stand for ``parameters``; all processes call it.

    Takes the memory of the whole model on each process. A model that is not sharded is left as it is.

    Raises:
        NotImplementedError: weights are spread otherwise than by ``fully_shard``.
    """
    if not any(is_sharded(p) for p in (*parameters, *model.parameters())):
        yield tuple(parameters)
        return
    if fully_sharded_mesh(model) is None:
        raise NotImplementedError("weights that are not sharded by fully_shard cannot be inspected")
    put_shares_back(model)
    places = [(module, name, p) for module in model.modules() for name, p in module._parameters.items()]
    own = {id(p): p for p in (*parameters, *(p for _, _, p in places if p is not None))}
    stand_ins = {key: nn.Parameter(whole(p), p.requires_grad) if is_sharded(p) else p for key, p in own.items()}
    hooks = [(module, name, getattr(module, name)) for module in model.modules() for name in _HOOKS]
    try:
        for module, name, p in places:
            module._parameters[name] = None if p is None else stand_ins[id(p)]
        for module, name, registered in hooks:
            setattr(module, name, OrderedDict((key, hook) for key, hook in registered.items() if not _shards(hook)))
        yield tuple(stand_ins[id(p)] for p in parameters)
    finally:
        for module, name, p in places:
            module._parameters[name] = p
        for module, name, registered in hooks:
            setattr(module, name, registered)


def _shards(hook: Any) -> bool:
    """Return whether a hook is one of those that gather and let go of weights."""
    return str(getattr(hook, "__module__", "")).startswith(_SHARDING)
