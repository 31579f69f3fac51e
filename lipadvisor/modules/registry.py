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

__all__ = [
    "Entry",
    "constant_of",
    "find",
    "find_class",
    "jacobian_of",
    "no_entry",
    "register",
    "register_all",
    "registered",
]

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

    def __post_init__(self) -> None:
        """Refuse rules that cannot be called.

        Raises:
            TypeError: ``name`` is no text, or a rule is not callable.
        """
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"Entry(name=...) must be a word, got {self.name!r}.")
        if not callable(self.constant):
            raise TypeError(f"Entry(constant=...) must be callable, got {self.constant!r}.")
        if self.jacobian is not None and not callable(self.jacobian):
            raise TypeError(f"Entry(jacobian=...) must be callable or None, got {self.jacobian!r}.")

    def read(self, module: Any, inputs: tuple[Tensor, ...]) -> Constant:
        """Return what the rule says of one call.

        Raises:
            TypeError: the rule returns something else than a :class:`Constant`.
        """
        found: Any = self.constant(module, inputs)
        if not isinstance(found, Constant):
            raise TypeError(f"the rule of {self.name!r} must return a Constant, got {type(found).__name__}.")
        return found


_LOSS = "a loss: it takes a target, and the audit's network ends before it"
_LOSSES = (
    "BCELoss BCEWithLogitsLoss CTCLoss CosineEmbeddingLoss CrossEntropyLoss GaussianNLLLoss HingeEmbeddingLoss "
    "HuberLoss KLDivLoss L1Loss LinearCrossEntropyLoss MSELoss MarginRankingLoss MultiLabelMarginLoss "
    "MultiLabelSoftMarginLoss MultiMarginLoss NLLLoss NLLLoss2d PoissonNLLLoss SmoothL1Loss SoftMarginLoss "
    "TripletMarginLoss TripletMarginWithDistanceLoss"
)
_CONTAINER = "a container without a forward of its own"
_CONTAINERS = "Container ModuleDict ModuleList ParameterDict ParameterList Module RNNBase RNNCellBase"
_REASONS = {f"torch.nn.modules.{name}": _LOSS for name in _LOSSES.split()}
_REASONS |= {f"torch.nn.modules.{name}": _CONTAINER for name in _CONTAINERS.split()}

_ENTRIES: dict[type, Entry] = {}
_BY_CLASS_NAME: dict[str, Entry] = {}


def register(kind: type[nn.Module] | str, entry: Entry) -> None:
    """Make ``entry`` the one for modules of class ``kind``; the last registration wins.

    Args:
        kind: the class, or the end of a class name (``"RMSNorm"`` serves ``LlamaRMSNorm``) for libraries that should
            not be imported for this.
        entry: how such a module is read.

    Raises:
        TypeError: ``kind`` is neither, or an empty name; ``entry`` is no :class:`Entry`.
    """
    if not isinstance(entry, Entry):
        raise TypeError(f"register(entry=...) must be an Entry(name, constant, ...), got {entry!r}.")
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
    return find_class(type(module))


def find_class(kind: type[nn.Module]) -> Entry | None:
    """Return the entry that modules of class ``kind`` get, or ``None``."""
    for base in kind.__mro__:
        if base in _ENTRIES:
            return _ENTRIES[base]
        for name, entry in _BY_CLASS_NAME.items():
            if base.__name__.endswith(name):
                return entry
    return None


def no_entry(kind: type[nn.Module]) -> str:
    """Return why a class of torch.nn has no entry on purpose; empty if it is not one of those."""
    return _REASONS.get(f"{kind.__module__.rpartition('.')[0]}.{kind.__name__}", "")


def constant_of(module: nn.Module, *inputs: Tensor) -> Constant:
    """Return the Lipschitz constant of ``module``; ``inputs`` are those of one call, batch axis first.

    Raises:
        KeyError: no entry serves its class.
        ValueError: the rule needs inputs (their size, or values) and got none.
    """
    entry = find(module)
    if entry is None:
        raise KeyError(f"no entry for {type(module).__name__}; use register({type(module).__name__}, Entry(...)).")
    return entry.read(module, inputs)


def jacobian_of(module: nn.Module, x: Tensor) -> Tensor:
    """Return the analytic Jacobian of ``module`` at one sample ``x`` (no batch axis): (outputs, inputs), flattened.

    Raises:
        KeyError: its kind has no analytic Jacobian here.
    """
    entry = find(module)
    if entry is None or entry.jacobian is None:
        raise KeyError(f"no analytic Jacobian for {type(module).__name__}.")
    return entry.jacobian(module, x)
