"""What a kind of layer has to say: how its weight is looked at, and how a call of it shows its samples' gradients.

How the parts combine::

    finder (a row of layers.FINDERS) --> Candidate --> TrackedLayer(source, form, uses)
        source   the parameter, or what is computed from parameters       --> the weight as it acts
        form     the weight as an operator                                --> spectrum and response (spectra)
        uses     the calls in which it acts: input and output gradient    --> the batch's noise

A weight has one form and as many uses as modules that act with it (tied weights); without a use its noise is not
available. A new kind is one file with a finder that names all three.

Shapes: ``B`` samples, ``T`` places in a sample, ``M`` outputs, ``N`` inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lipadvisor.spectra import LayerOperator

__all__ = [
    "Candidate",
    "Form",
    "Options",
    "Plain",
    "Skipped",
    "Source",
    "TrackedLayer",
    "Use",
    "kind_of",
    "marks",
    "wide",
]

CONV_VIEWS = ("operator", "matrix")


class Source(Protocol):
    """Where a weight's values are."""

    def value(self) -> Tensor:
        """Return the weight as it acts now, detached; the model is left as it is."""
        ...

    def versions(self) -> tuple[float | Tensor, ...]:
        """Return numbers that stay the same as long as :meth:`value` does; those yet to be read have no dimension."""
        ...


class Form(Protocol):
    """A weight as an operator."""

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the operator's kernel."""
        ...

    @property
    def matrix(self) -> bool:
        """Whether the kernel (M, N) is the operator's matrix, as it stands."""
        ...

    def view(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the weight's shape (a gradient, a moment) as the kernel's; linear, entry by entry."""
        ...

    def operator(self, input_shape: tuple[int, ...] | None) -> LayerOperator | None:
        """Return the operator; None where it depends on the input's shape (of a batch) and that is not known."""
        ...


class Use(Protocol):
    """A module that acts with a weight: what a call of it tells of each sample's gradient of the kernel.

    A use may also have ``enter()``, asked before each call, and ``finish(kept, grad)``, asked once the gradient is
    there and the optimizer has not acted yet.
    """

    @property
    def module(self) -> nn.Module:
        """The module to watch."""
        ...

    @property
    def flat(self) -> bool:
        """Whether each sample's gradient is a short sum ``sum_t d_t a_t'`` of outer products, that of :meth:`pair`."""
        ...

    def read(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
        """Return what must be kept of a call's input, detached; None if the call cannot be understood."""
        ...

    def count(self, kept: Any, grad: Tensor) -> int:
        """Return the number of samples B of a call."""
        ...

    def pair(self, kept: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``a`` (B, T, N) and ``d`` (B, T, M)."""
        ...

    def scalars(self, jacobian: Any, kept: Any, grad: Tensor) -> Tensor:
        """Return ``<g_i, jacobian>`` (B,) for a jacobian of the kernel's shape; convolutions take compact ones too."""
        ...

    def weighted(self, weight_B: Tensor, kept: Any, grad: Tensor) -> Tensor:
        """Return ``sum_i weight_i g_i``, of the kernel's shape."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """A parameter that acts as it is."""

    weight: nn.Parameter

    def value(self) -> Tensor:
        """Return the parameter, detached."""
        return self.weight.detach()

    def versions(self) -> tuple[float | Tensor, ...]:
        """Return the parameter's marks; the version counter of what is here of it, too, where it is sharded."""
        share = getattr(self.weight, "_local_tensor", None)
        return marks(self.weight) if share is None else (self.weight._version, share._version)


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller chose of what there is to measure; see :class:`lipadvisor.probe.Probe`.

    Raises:
        ValueError: an argument is out of range.
    """

    conv_view: str = "operator"
    gains: bool = False
    parameters: bool = False

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.conv_view not in CONV_VIEWS:
            raise ValueError(f"Probe(conv_view=...) must be one of {CONV_VIEWS}, got {self.conv_view!r}.")
        for name in ("gains", "parameters"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"Probe({name}=...) must be True or False, got {value!r}.")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A weight of one module that can be measured.

    Attributes:
        key: of the parameter in the module.
        kind: of the layer.
        shape: (fan_out, fan_in) of the matrix view.
        form: as an operator.
        use: the module's calls; None where its noise is not available.
        composition: dZ / d log_norm; 0 for what is measured beside the network's sum.
        suffix: appended to the module's name where it has several weights.
        rows: of the parameter that are the weight; None for all.
        owner: the module that holds the parameter, where that is a part of the one that acts with it.
        decays: whether decoupled weight decay shrinks it; where not, whatever decay there is counts as update.
        source: makes the source of the parameter.
    """

    key: str
    kind: str
    shape: tuple[int, int]
    form: Form
    use: Use | None
    composition: float = 1.0
    suffix: str = ""
    rows: slice | None = None
    owner: nn.Module | None = None
    decays: bool = True
    source: Callable[[nn.Parameter], Plain] | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A weight that is not measured, with the reason."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class TrackedLayer:
    """One measured weight.

    Attributes:
        name: of the module, as in ``model.named_modules()``; with the weight's own where it has several.
        kind: "linear", "conv2d", ...: see ``docs/measurement.md``.
        shape: (fan_out, fan_in) of the matrix view.
        group: index of the optimizer's parameter group that holds the weight.
        weight: the parameter that the optimizer moves.
        module: the module that owns it.
        form: the weight as an operator.
        source: its values.
        uses: modules that act with it; none where its noise is not available.
        composition: dZ / d log_norm; 0 for what is measured beside the network's sum.
        shared: names of the other modules that act with the same weight.
        rows: of the parameter that are the weight; None for all.
        decays: whether decoupled weight decay shrinks it; where not, whatever decay there is counts as update.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    group: int
    weight: nn.Parameter
    module: nn.Module
    form: Form
    source: Source
    uses: tuple[Use, ...]
    composition: float = 1.0
    shared: tuple[str, ...] = ()
    rows: slice | None = None
    decays: bool = True

    @property
    def flat(self) -> bool:
        """Whether it is a plain matrix whose samples' gradients are sums of few outer products."""
        plain = self.form.matrix and isinstance(self.source, Plain)
        return plain and bool(self.uses) and all(use.flat for use in self.uses)

    @property
    def target(self) -> Tensor | None:
        """What is scaled in place to scale the weight; None where it is computed from parameters."""
        if not isinstance(self.source, Plain):
            return None
        return self.weight if self.rows is None else self._own(self.weight.detach())

    @property
    def own_shape(self) -> tuple[int, ...]:
        """Shape of what this process holds of the kernel: all of it, unless it is sharded."""
        return getattr(self.form, "own_shape", self.form.kernel_shape)

    @property
    def part_shape(self) -> tuple[int, ...]:
        """The same, filled up to the longest share."""
        return getattr(self.form, "part_shape", self.form.kernel_shape)

    @property
    def shares(self) -> tuple[int, ...]:
        """Rows of the weight on each process that shares it; none where each has them all."""
        return getattr(self.form, "shares", ())

    def _own(self, tensor: Tensor) -> Tensor:
        """Return the weight's rows of a tensor of the parameter's shape, as far as this process holds them."""
        own = getattr(self.form, "own", None)
        if own is not None:
            return own(tensor)  # type: ignore[no-any-return]
        return tensor if self.rows is None else tensor[self.rows]

    def view(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the parameter's shape (a gradient, a moment) as one of the kernel's, or of its share."""
        return self.form.view(self._own(tensor))

    def value(self) -> Tensor:
        """Return the kernel as it acts now, detached."""
        return self.view(self.source.value())

    def operator(self, input_shape: tuple[int, ...] | None) -> LayerOperator | None:
        """Return the layer as an operator; None for a convolution whose input size is not known yet.

        Args:
            input_shape: shape of one batch of inputs, (B, C, ...) for a convolution.
        """
        return self.form.operator(input_shape)


def marks(x: Tensor) -> tuple[float | Tensor, ...]:
    """Return numbers that change when ``x`` is written to: its version counter, and on a processor its sum.

    What is written through ``.data`` (clipped weights, an average swapped in) moves no counter. On a device the sum
    would have to be waited for, and there is the counter alone.
    """
    if x.device.type != "cpu":
        return (x._version,)
    with torch.no_grad():
        return (x._version, x.sum(dtype=None if x.dtype == torch.float64 else torch.float32))


def kind_of(x: Tensor) -> tuple[torch.dtype, torch.device]:
    """Return what everything that is kept of a weight hangs on: where it changes, a tracker starts anew."""
    return x.dtype, x.device


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in float32 or better."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
