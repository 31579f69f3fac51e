"""Reading the constants of a model's modules, each on what reaches it in one forward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lipadvisor.modules.constant import Constant
from lipadvisor.modules.normalization import local_constant
from lipadvisor.modules.registry import find, no_entry
from lipadvisor.modules.running import observed, run

__all__ = ["Reading", "constants", "leaves", "read_modules", "unread"]

NO_ENTRY = "no entry; register() gives it one"
NOT_CALLED = "not called on this batch"


@dataclass(frozen=True, slots=True)
class Reading:
    """What is known of one module: its constant, or why there is none.

    Attributes:
        kind: name of its entry; ``"none"`` without one.
        constant: the largest over its calls; ``None`` where there is none.
        note: why there is none; empty otherwise.
        called: whether the batch reached it.
    """

    kind: str
    constant: Constant | None
    note: str = ""
    called: bool = True


def leaves(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules at which the bound stops: registered, not composite, in no other such module."""
    return _walk(model)[0]


def unread(model: nn.Module) -> dict[str, nn.Module]:
    """Return modules without an entry that compute something themselves: they have weights of their own, or no parts.

    Any other module without an entry only calls its parts, which are met one by one.
    """
    return _walk(model)[1]


def _walk(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    known: dict[str, nn.Module] = {}
    unknown: dict[str, nn.Module] = {}

    def walk(module: nn.Module, name: str) -> None:
        entry = find(module)
        if entry is not None and not entry.composite:
            known[name] = module
            return
        childless = next(module.children(), None) is None
        own = next(module.parameters(recurse=False), None) is not None
        if entry is None and (childless or own) and type(module).forward is not nn.Module.forward:
            unknown[name] = module
        for child_name, child in module.named_children():
            walk(child, f"{name}.{child_name}" if name else child_name)

    walk(model, "")
    return known, unknown


def constants(model: nn.Module, batch: Any, progress: Callable[[str], None] | None = None) -> dict[str, Constant]:
    """Return the constant of every leaf that one forward pass calls, read on what reaches it, in order of execution.

    A module that is called several times gets its largest.
    """
    readings = read_modules(model, batch, progress)
    return {name: reading.constant for name, reading in readings.items() if reading.constant is not None}


def read_modules(model: nn.Module, batch: Any, progress: Callable[[str], None] | None = None) -> dict[str, Reading]:
    """Return a reading of every leaf and of every module without an entry, in order of execution.

    Those that the batch does not reach come last, if they have no entry or hold weights.

    A rule that fails on what reaches its module is no reason to stop: the reading then says what went wrong.
    """
    known, unknown = _walk(model)
    found: dict[str, Reading] = {}
    with observed(model), torch.no_grad(), _watching(known, unknown, found, progress):
        run(model, batch)
    for name, module in (known | unknown).items():
        if name not in found:
            entry = find(module)
            if entry is not None and next(module.parameters(), None) is None:
                continue  # a dropout that was never called has nothing to tell
            note = NOT_CALLED if entry is not None else f"{NOT_CALLED}; {NO_ENTRY}"
            found[name] = Reading("none" if entry is None else entry.name, None, note, called=False)
    return found


@contextmanager
def _watching(
    known: dict[str, nn.Module],
    unknown: dict[str, nn.Module],
    found: dict[str, Reading],
    progress: Callable[[str], None] | None,
) -> Iterator[None]:
    busy: list[str] = []  # a rule may call the module again

    def look(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if busy:
            return
        busy.append(name)
        try:
            reading = _read_call(module, args, kwargs)
        finally:
            busy.pop()
        before = found.get(name)
        if before is None or _value(reading) > _value(before):
            found[name] = reading
        if progress is not None:
            progress(name)

    def begin(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not busy:
            reason = no_entry(type(module)) or NO_ENTRY
            found.setdefault(name, Reading("none", None, reason))  # before its parts: that is where it stands

    hooks = [m.register_forward_hook(functools.partial(look, n), with_kwargs=True) for n, m in known.items()]
    hooks += [m.register_forward_pre_hook(functools.partial(begin, n)) for n, m in unknown.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _value(reading: Reading) -> float:
    return -1.0 if reading.constant is None else reading.constant.value


def _read_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reading:
    entry = find(module)
    kind = "none" if entry is None else entry.name
    try:
        return Reading(kind, _constant_of_call(module, args, kwargs))
    except Exception as error:  # the rule may be a user's, and may fail in any way
        return Reading("none", None, f"its rule ({kind}) failed: {type(error).__name__}: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _constant_of_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Constant:
    entry = find(module)
    if entry is None:
        raise KeyError(f"no entry for {type(module).__name__}.")
    if isinstance(module, nn.MultiheadAttention):
        names = ("query", "key", "value")
        args = (*args, *(kwargs[name] for name in names[len(args) :]))
        return _with_arguments(module, args, {k: v for k, v in kwargs.items() if k not in names})
    if entry.constant is local_constant:
        return _with_arguments(module, args, kwargs)
    return entry.read(module, tuple(_tensors((*args, *kwargs.values()))))


def _tensors(values: Any) -> Iterator[Tensor]:
    """Tensors in order, also those in tuples: the states of recurrent layers."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)) and not isinstance(value, nn.utils.rnn.PackedSequence):
            yield from _tensors(value)


def _with_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Constant:
    return local_constant(functools.partial(module, **kwargs), args)
