"""Which weights of a model are measured, and why the others are not.

Each kind of layer is a row of ``FINDERS``; a module that none of them knows is listed with its reason, and so is every
other parameter that moves no measured norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from lipadvisor.probe.kinds import Candidate, Form, Options, Plain, Skipped, TrackedLayer, Use
from lipadvisor.probe.kinds.attention import find_attention
from lipadvisor.probe.kinds.convolution import find_convolution
from lipadvisor.probe.kinds.convolution_matrix import find_convolution_matrix
from lipadvisor.probe.kinds.embedding import find_embedding
from lipadvisor.probe.kinds.linear import find_linear
from lipadvisor.probe.kinds.normalization import find_normalization
from lipadvisor.probe.kinds.parameter import find_parameters
from lipadvisor.probe.kinds.parametrized import Computed, computed_source
from lipadvisor.probe.kinds.repeated import find_repeated, of_one_form
from lipadvisor.probe.kinds.sharded import fully_sharded_mesh, is_sharded, put_shares_back, sharded_form, sharded_use

__all__ = ["FINDERS", "Skipped", "Targets", "TrackedLayer", "find_layers"]

Finder = Callable[[nn.Module, Options], tuple[Candidate, ...] | str | None]
FINDERS: tuple[Finder, ...] = (
    find_linear,
    find_repeated,
    find_convolution,
    find_convolution_matrix,
    find_embedding,
    find_attention,
    find_normalization,
    find_parameters,  # what none of those above knows
)


def find_layers(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    options: Options | None = None,
) -> tuple[tuple[TrackedLayer, ...], tuple[Skipped, ...]]:
    """Return the layers that can be measured, in the model's order, and what is left out.

    Args:
        model: any module.
        optimizer: the one that holds its parameters.
        include: globs over layer names; one must match.
        exclude: globs over layer names; none may match.
        options: what is measured, and how.

    Raises:
        ValueError: a lazy layer has no shape yet, a weight has no values (meta device), the optimizer holds none of the
            model's trainable parameters (one is named), or no layer is left.
    """
    put_shares_back(model)
    lazy = [name for name, p in model.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise ValueError(
            f"Probe(model=...) must know its shapes, and {lazy[0]!r} has none yet (a lazy layer): call the model on "
            f"one batch first."
        )
    unmade = [name for name, p in model.named_parameters() if p.is_meta]
    if unmade:
        raise ValueError(
            f"Probe(model=...) must have its values, and {unmade[0]!r} is on the meta device: call model.to_empty(...) "
            f"and fill it, then make the optimizer, first."
        )
    groups = {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if trainable and not any(id(p) in groups for _, p in trainable):
        raise ValueError(
            f"Probe(optimizer=...) must hold the model's parameters, and it holds none of them: "
            f"{trainable[0][0]!r} is missing."
        )
    search = _Search(groups, include, exclude, options or Options(), fully_sharded_mesh(model))
    for name, module in model.named_modules():
        search.visit(name, module)
    search.list_the_rest(model)
    if not search.layers:
        skipped = [s for s in search.skipped if s.name != BIASES]
        why = "; ".join(f"{s.name or type(model).__name__}: {s.reason}" for s in skipped[:3]) or "it has no weights"
        raise ValueError(f"Probe(model=...) must have a supported layer (Linear, Conv2d, ...), got none ({why}).")
    return search.found(), tuple(search.skipped)


class Targets(Mapping[str, Tensor]):
    """What is scaled in place to scale each layer, by its name; computed weights are left out.

    Looked up each time: a part of a packed weight is of the tensor that the parameter has now, which is another one
    after ``model.double()`` or ``.to(...)``.
    """

    def __init__(self, layers: Iterable[TrackedLayer]) -> None:
        """Take up the layers."""
        self._layers = {layer.name: layer for layer in layers if layer.target is not None}

    def __getitem__(self, name: str) -> Tensor:
        """Return the layer's weight, or its rows of a packed one."""
        target = self._layers[name].target
        assert target is not None
        return target

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self._layers)

    def __len__(self) -> int:
        """Return the number of layers that can be scaled."""
        return len(self._layers)


BIASES = "*.bias"  # all of them are listed as one


@dataclass(slots=True)
class _Search:
    """One walk through a model."""

    groups: Mapping[int, int]
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    options: Options
    mesh: Any  # that the model is sharded over
    layers: dict[tuple[object, ...], TrackedLayer] = field(default_factory=dict)  # by parameter and part of it
    uses: dict[tuple[object, ...], list[Use | None]] = field(default_factory=dict)  # excluded modules' too
    skipped: list[Skipped] = field(default_factory=list)
    unknown: set[int] = field(default_factory=set)  # parameters that act in ways we do not see
    seen: set[int] = field(default_factory=set)  # parameters that are measured or listed
    claimed: set[int] = field(default_factory=set)  # modules that are part of another one's layer

    def visit(self, name: str, module: nn.Module) -> None:
        """Take up or list what ``module`` itself holds."""
        if id(module) in self.claimed:
            return
        found = next((found for find in FINDERS if (found := find(module, self.options)) is not None), ())
        if isinstance(found, str):
            own = [p for key, p in module.named_parameters(recurse=False) if "bias" not in key]
            own = [p for p in own if p.dim() >= 2] or own  # vectors beside matrices are listed by themselves
            self._leave(name, found, own)
            self.unknown.update(id(p) for p in own)
            return
        for candidate in found:
            label = ".".join(part for part in (name, candidate.suffix) if part)
            if candidate.owner is not None:
                self.claimed.add(id(candidate.owner))
            self._take(label, candidate, candidate.owner or module)

    def list_the_rest(self, model: nn.Module) -> None:
        """List the parameters that no module's visit has taken up: biases as one, and vectors."""
        rest = [(name, p) for name, p in model.named_parameters() if id(p) not in self.seen and p.numel() > 0]
        biases = [name for name, _ in rest if "bias" in name.rsplit(".", 1)[-1]]
        for name, _ in rest:
            if name not in biases:
                self.skipped.append(Skipped(name, "a vector that no known layer acts with"))
        if biases:
            self.skipped.append(Skipped(BIASES, f"{len(biases)} biases: an offset moves no norm"))

    def _take(self, label: str, candidate: Candidate, owner: nn.Module) -> None:
        """Measure a weight, or list it with what stands in the way."""
        source = _source(owner, candidate)
        if isinstance(source, str):
            self._leave(label, source, ())
            return
        weight = source.weight
        self.seen.add(id(weight))
        if isinstance(source, Computed):
            self.seen.update(id(p) for p in source.parameters)
            self.claimed.update(id(part) for part in source.recipe.modules() if part is not owner)
        place = (id(weight), None if candidate.rows is None else candidate.rows.start)
        use = sharded_use(candidate.use) if is_sharded(weight) else candidate.use
        self.uses.setdefault(place, []).append(use)
        known = self.layers.get(place)
        if known is not None:
            self.layers[place] = _shared(known, label, candidate, self._form(candidate, source))
            return
        reason = self._obstacle(label, weight)
        if reason is not None:
            self._leave(label, reason, (weight,))
            return
        form = self._form(candidate, source)
        if isinstance(form, str):
            self._leave(label, form, (weight,))
            return
        self.layers[place] = TrackedLayer(
            label, candidate.kind, candidate.shape, self.groups[id(weight)], weight, owner, form, source,
            (), candidate.composition, rows=candidate.rows,
            decays=candidate.decays and isinstance(source, Plain),
        )  # fmt: skip

    def found(self) -> tuple[TrackedLayer, ...]:
        """Return the layers, each with all its uses; with none where one of them cannot be seen."""
        layers = []
        for place, layer in self.layers.items():
            uses = tuple(use for use in self.uses[place] if use is not None)
            seen = len(uses) == len(self.uses[place]) and id(layer.weight) not in self.unknown
            form, uses = of_one_form(layer.form, uses)
            layers.append(replace(layer, form=form, uses=uses if seen else ()))
        return tuple(layers)

    def _obstacle(self, label: str, weight: nn.Parameter) -> str | None:
        if not _matches(label, self.include) or _matches(label, self.exclude):
            return "excluded by name"
        if weight.numel() == 0:
            return "its weight is empty"
        if weight.is_complex():
            return "its weight is complex"
        if not weight.requires_grad:
            return "its weight does not require a gradient"
        if id(weight) not in self.groups:
            return "its weight is not in the optimizer"
        return None

    def _form(self, candidate: Candidate, source: Plain | Computed) -> Form | str:
        """Return a weight's form, in shares where it is sharded, or why there is none."""
        if isinstance(source, Computed) and any(is_sharded(p) for p in source.parameters):
            return "its weight is computed from sharded parameters, which is not supported"
        if not is_sharded(source.weight):
            return candidate.form
        return sharded_form(source.weight, candidate, self.mesh)

    def _leave(self, name: str, reason: str, parameters: Iterable[nn.Parameter]) -> None:
        self.skipped.append(Skipped(name, reason))
        self.seen.update(id(p) for p in parameters)


def _source(owner: nn.Module, candidate: Candidate) -> Plain | Computed | str:
    """Return where a weight's values are, or why that is not known."""
    weight = owner._parameters.get(candidate.key)
    if weight is None:
        return computed_source(owner, candidate.key)
    return Plain(weight) if candidate.source is None else candidate.source(weight)


def _shared(layer: TrackedLayer, label: str, candidate: Candidate, form: Form | str) -> TrackedLayer:
    """Return the layer with one more module that acts with its weight; it is of the kind that counts for more."""
    shared = (*layer.shared, label)
    if candidate.composition > layer.composition and not isinstance(form, str):
        kind, shape = candidate.kind, candidate.shape
        return replace(layer, kind=kind, shape=shape, form=form, composition=candidate.composition, shared=shared)
    return replace(layer, shared=shared)


def _matches(label: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(label, glob) for glob in globs)
