"""One entry for each kind of module: its Lipschitz constant and, where there is one, its analytic Jacobian.

An entry is found through the module's class and its base classes, so a subclass (or a parametrized module, whose class
torch derives on the fly) uses the entry of what it derives from unless it has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lipadvisor.modules.constant import Constant

__all__ = ["Entry", "constant_of", "find", "jacobian_of", "register", "register_all", "registered"]

ConstantRule = Callable[[Any, tuple[Tensor, ...]], Constant]
JacobianRule = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Entry:
    """How one kind of module is read.

    Attributes:
        name: kind, e.g. ``"linear"``.
        constant: ``(module, inputs) -> Constant``; ``inputs`` are the tensors of one call, batch axis first. It may
            be empty, and a rule that needs inputs then says so by raising ``ValueError``.
        jacobian: ``(module, x) -> (outputs, inputs)`` matrix for one sample ``x`` without batch axis, or ``None``.
        composite: the network's graph is expanded inside this module instead of stopping at it.
    """

    name: str
    constant: ConstantRule
    jacobian: JacobianRule | None = None
    composite: bool = False


_ENTRIES: dict[type, Entry] = {}
_BY_CLASS_NAME: dict[str, Entry] = {}


def register(kind: type[nn.Module] | str, entry: Entry) -> None:
    """Make ``entry`` the one for modules of class ``kind``; the last registration wins.

    Args:
        kind: the class, or the end of a class name (``"RMSNorm"`` serves ``LlamaRMSNorm``) for libraries that should
            not be imported for this.
        entry: how such a module is read.

    Raises:
        TypeError: ``kind`` is neither, or an empty name.
    """
    if isinstance(kind, str) and kind:
        _BY_CLASS_NAME[kind] = entry
    elif isinstance(kind, type) and issubclass(kind, nn.Module):
        _ENTRIES[kind] = entry
    else:
        raise TypeError(f"register(kind=...) must be a subclass of torch.nn.Module or a class name, got {kind!r}.")


def register_all(kinds: Iterable[type[nn.Module]], entry: Entry) -> None:
    """Register one entry for several classes."""
    for kind in kinds:
        register(kind, entry)


def registered() -> tuple[tuple[str, str], ...]:
    """Return (class name, entry name) of everything that is registered, sorted."""
    classes = [(kind.__name__, entry.name) for kind, entry in _ENTRIES.items()]
    return tuple(sorted(classes + [(f"*{name}", entry.name) for name, entry in _BY_CLASS_NAME.items()]))


def find(module: nn.Module) -> Entry | None:
    """Return the entry for ``module``, or ``None``."""
    for kind in type(module).__mro__:
        if kind in _ENTRIES:
            return _ENTRIES[kind]
        for name, entry in _BY_CLASS_NAME.items():
            if kind.__name__.endswith(name):
                return entry
    return None


def constant_of(module: nn.Module, *inputs: Tensor) -> Constant:
    """Return the Lipschitz constant of ``module``; ``inputs`` are those of one call, batch axis first.

    Raises:
        KeyError: no entry serves its class.
        ValueError: the rule needs inputs (their size, or values) and got none.
    """
    entry = find(module)
    if entry is None:
        raise KeyError(f"no entry for {type(module).__name__}; use register({type(module).__name__}, Entry(...)).")
    return entry.constant(module, inputs)


def jacobian_of(module: nn.Module, x: Tensor) -> Tensor:
    """Return the analytic Jacobian of ``module`` at one sample ``x`` (no batch axis): (outputs, inputs), flattened.

    Raises:
        KeyError: its kind has no analytic Jacobian here.
    """
    entry = find(module)
    if entry is None or entry.jacobian is None:
        raise KeyError(f"no analytic Jacobian for {type(module).__name__}.")
    return entry.jacobian(module, x)
