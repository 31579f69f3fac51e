"""From a model to its :class:`Composition`: by torch.export where it traces, by module containers where not."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from lipadvisor.modules.blocks import Residual
from lipadvisor.modules.composition import Composition, Join
from lipadvisor.modules.constant import Constant, Kind
from lipadvisor.modules.contractions import einsum_norms
from lipadvisor.modules.operations import CONCATENATIONS, PASSING, carries, gains
from lipadvisor.modules.reading import constants, leaves
from lipadvisor.modules.registry import find
from lipadvisor.modules.running import arguments, observed, primary

__all__ = ["compose"]

_TABLES = frozenset(["embedding", "embedding_bag", "_embedding_bag"])
EVERY = 50  # operations between two lines of progress


def compose(
    model: nn.Module,
    batch: Any,
    found: dict[str, Constant] | None = None,
    method: str = "auto",
    progress: Callable[[str], None] | None = None,
) -> Composition:
    """Return the network's log bound as a function of its modules' log constants.

    Args:
        model: any module; left as it is.
        batch: what it is called with: a tensor, a tuple of arguments, or a mapping of keyword arguments.
        found: constants of the leaves, if they are known already.
        method: ``"export"``, ``"containers"``, or ``"auto"``: the first where it traces.
        progress: called with a line of text now and then.

    Raises:
        ValueError: ``method`` is none of these.
        RuntimeError: ``method`` is ``"export"`` and the model does not trace.
    """
    if method not in ("auto", "export", "containers"):
        raise ValueError(f'compose(method=...) must be "auto", "export" or "containers", got {method!r}.')
    found = constants(model, batch) if found is None else found
    note = ""
    if method != "containers":
        try:
            with observed(model), torch.no_grad():
                return _Export(model, batch, found, progress).composition()
        except Exception as error:  # tracing may fail in any way that the model's Python can
            if method == "export":
                raise RuntimeError(f"torch.export does not trace {type(model).__name__}: {error}") from error
            note = f"torch.export: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}; "
    return _containers(model, found, note)


class _Wrapped(nn.Module):
    """Returns only the tensor that counts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return primary(self.model(*args, **kwargs))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch tells of a model that does not trace out of the terminal: the reason is in the note."""
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    was = log.disabled
    log.disabled = True
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = was


class _Export(fx.Interpreter):
    """Runs the exported graph on the batch and writes down a join for every operation that carries the input."""

    def __init__(
        self, model: nn.Module, batch: Any, found: dict[str, Constant], progress: Callable[[str], None] | None
    ) -> None:
        args, kwargs = arguments(batch)
        with _quiet():
            self.program = torch.export.export(_Wrapped(model), args, kwargs, strict=False)
            self.leaf_modules = {name: module for name, module in leaves(model).items() if name in found}
            if any(self._writes(node) for node in self.program.graph.nodes):
                self.program = self.program.run_decompositions({})  # the same without writing in place
        super().__init__(self.program.graph_module)
        self.found = found
        self.progress, self.seen, self.total = progress, 0, len(self.program.graph.nodes)
        self.joins: list[Join] = []
        self.place: dict[fx.Node, int] = {}  # node -> join, for real and complex values that depend on the input
        self.tainted: set[fx.Node] = set()  # integer values that depend on the input
        self.inside: dict[fx.Node, tuple[str, frozenset[int]]] = {}  # node within a leaf: the leaf's call, its origins
        self.leaf_join: dict[tuple[str, frozenset[int]], int] = {}
        self.sources: list[str] = []
        self.input_join: int | None = None
        self.flat_inputs = iter(pytree.tree_leaves((args, kwargs)))

    def composition(self) -> Composition:
        self.run(*self._values())
        (output,) = self.program.graph_signature.user_outputs
        node = next(node for node in self.program.graph.nodes if node.name == output)
        norms = {join.module: self.found[join.module].log for join in self.joins if join.module is not None}
        at, sources = self.place.get(node, -1), tuple(self.sources)
        moved = self.input_join is not None or bool(sources)
        note = (
            "" if moved else "no floating-point input and no embedding: there is nothing to perturb, and Z is no bound"
        )
        return Composition(tuple(self.joins), at, tuple(norms.items()), "export", sources, note, moved)

    def _writes(self, node: fx.Node) -> bool:
        """Whether a value that others may see through a view, or that is needed as it was, is overwritten here."""
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable:
            return False
        return self._leaf(node) is None or any(
            other.op == "call_function" and _name_of(other.target) in ("getitem", *PASSING)
            for other in node.all_input_nodes
        )

    def _values(self) -> list[Any]:
        values = []
        for spec in self.program.graph_signature.input_specs:
            if spec.kind == torch.export.graph_signature.InputKind.USER_INPUT:
                values.append(next(self.flat_inputs))
            elif spec.target in self.program.state_dict:
                values.append(self.program.state_dict[spec.target])
            else:
                values.append(self.program.constants[spec.target])
        self.user_inputs = set(self.program.graph_signature.user_inputs)
        return values

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.seen += 1
        if self.progress is not None and self.seen % EVERY == 0:
            self.progress(f"operation {self.seen} of {self.total}")
        if n.op == "placeholder":
            if n.name in self.user_inputs and isinstance(result, Tensor):
                self._input(n, result)
        elif n.op == "call_function":
            self._operation(n, result)
        return result

    def _input(self, node: fx.Node, value: Tensor) -> None:
        if not carries(value):
            self.tainted.add(node)
            return
        if self.input_join is None:
            self.input_join = self._add(Join(name="input"))
        self.place[node] = self.input_join

    def _add(self, join: Join) -> int:
        self.joins.append(join)
        return len(self.joins) - 1

    def _operation(self, node: fx.Node, result: Any) -> None:
        name = _name_of(node.target)
        carriers = [other for other in node.all_input_nodes if other in self.place]
        tainted = any(other in self.tainted for other in node.all_input_nodes)
        leaf = self._leaf(node)
        if not _carries(result):
            if carriers or tainted:
                self.tainted.add(node)
            return
        if leaf is not None and name in _TABLES and tainted and not carriers:
            self._source(node, leaf)
        elif not carriers:
            return
        elif leaf is not None and not self._passes_through(node, name, leaf, carriers):
            self._within(node, leaf, carriers)
        elif name in ("getitem", *PASSING) and len(carriers) == 1:
            self.place[node] = self.place[carriers[0]]
        else:
            self.place[node] = self._between(node, name, carriers, result)

    def _leaf(self, node: fx.Node) -> tuple[str, str] | None:
        """The outermost leaf that the operation belongs to: (the call's key, the module's name)."""
        for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            name = path.split("@")[0].removeprefix("model.") if path != "model" else ""
            if path.split("@")[0].startswith("model") and name in self.leaf_modules:
                return f"{key}|{path}", name
        return None

    def _source(self, node: fx.Node, leaf: tuple[str, str]) -> None:
        if leaf[1] not in self.sources:
            self.sources.append(leaf[1])
        self.place[node] = self._add(Join(name=leaf[1]))

    def _passes_through(self, node: fx.Node, name: str, leaf: tuple[str, str], carriers: list[fx.Node]) -> bool:
        """A cast or reshape of what comes from outside is still the module's input."""
        return name in ("getitem", *PASSING) and all(
            self.inside.get(other, ("", frozenset()))[0] != leaf[0] for other in carriers
        )

    def _within(self, node: fx.Node, leaf: tuple[str, str], carriers: list[fx.Node]) -> None:
        origins: set[int] = set()
        for other in carriers:
            call, known = self.inside.get(other, ("", frozenset()))
            origins |= known if call == leaf[0] else {self.place[other]}
        key = (leaf[0], frozenset(origins))
        if key not in self.leaf_join:
            order = tuple(sorted(origins))
            self.leaf_join[key] = self._add(Join(order, (0.0,) * len(order), leaf[1], name=leaf[1]))
        self.inside[node] = key
        self.place[node] = self.leaf_join[key]

    def _between(self, node: fx.Node, name: str, carriers: list[fx.Node], result: Any) -> int:
        if name in CONCATENATIONS:
            listed: Any = node.args[0]
            parts = [self.place[part] for part in listed if part in self.place]
            return self._add(Join(tuple(parts), (0.0,) * len(parts), concat=True, name=node.name))
        if name == "broadcast_tensors":  # the results side by side; an entry that is repeated r times gains sqrt(r)
            inside = [part for part in node.all_input_nodes if part in self.place]
            spread = max(result[0].numel(), 1)
            repeats = tuple(0.5 * math.log(spread / max(self.env[part].numel(), 1)) for part in inside)
            return self._add(Join(tuple(self.place[part] for part in inside), repeats, concat=True, name=node.name))
        arguments, found = self._gains(node, name)
        inputs, logs, seen = [], [], set()
        for position, argument in enumerate(arguments):
            if isinstance(argument, fx.Node) and argument in self.place:
                gain = found.get(position, math.inf)
                seen.add(argument)
                inputs.append(self.place[argument])
                logs.append(-math.inf if gain == 0 else math.log(gain) if gain > 0 else math.inf)
        if not seen.issuperset(carriers):
            raise NotImplementedError(f"{name} takes the input in a way that is not understood")
        return self._add(Join(tuple(inputs), tuple(logs), name=node.name))

    def _gains(self, node: fx.Node, name: str) -> tuple[list[Any], dict[int, float]]:
        """Positional arguments, those in lists one by one where the input is among them, and the gains in them."""
        if self._writes(node):
            raise NotImplementedError(f"{name} writes in place in a way that is not understood")
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        listed = pytree.tree_leaves([part for part in node.args if isinstance(part, (list, tuple))])
        if not any(isinstance(part, fx.Node) and part in self.place for part in listed):
            return list(node.args), gains(name, node.target, args, kwargs)  # type: ignore[arg-type]
        if name == "einsum":
            norms = einsum_norms(args[0], args[1])
            return ["", *node.args[1]], dict(enumerate(norms, 1))  # type: ignore[misc]
        flat, spec = pytree.tree_flatten(list(node.args))
        values = [self.env[part] if isinstance(part, fx.Node) else part for part in flat]

        def call(*parts: Any, **options: Any) -> Any:
            return node.target(*pytree.tree_unflatten(list(parts), spec), **options)  # type: ignore[operator]

        return flat, gains(name, call, values, kwargs)


def _name_of(target: Any) -> str:
    packet = getattr(target, "overloadpacket", target)
    return str(getattr(packet, "__name__", str(packet)))


def _carries(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_carries(part) for part in value)
    return carries(value)


def _containers(model: nn.Module, found: dict[str, Constant], note: str) -> Composition:
    """Chains of children; residual joins where a :class:`Residual` says so. Operations in between are not seen."""
    joins = [Join(name="input")]
    order = {name: i for i, name in enumerate(found)}
    unseen = []

    def first_call(name: str) -> int:
        inside = [i for leaf, i in order.items() if leaf == name or leaf.startswith(f"{name}.")]
        return min(inside, default=len(order))

    def walk(module: nn.Module, name: str, at: int) -> int:
        if name in found:
            if found[name].kind is Kind.UPPER and find(module) is not None and find(module).name == "embedding":  # type: ignore[union-attr]
                return at
            joins.append(Join((at,), (0.0,), name, name=name))
            return len(joins) - 1
        prefix = f"{name}." if name else ""
        if isinstance(module, Residual):
            skip, branch = walk(module.skip, f"{prefix}skip", at), walk(module.branch, f"{prefix}branch", at)
            alpha = abs(float(module.alpha))
            joins.append(Join((skip, branch), (0.0, math.log(alpha) if alpha else -math.inf), name=name))
            return len(joins) - 1
        if type(module).forward is not nn.Sequential.forward:
            unseen.append(type(module).__name__)
        children = sorted(module.named_children(), key=lambda item: first_call(prefix + item[0]))
        for child_name, child in children:
            at = walk(child, prefix + child_name, at)
        return at

    output = walk(model, "", 0)
    if unseen:
        note += f"children of {', '.join(sorted(set(unseen)))} taken as a chain: not a bound"
    norms = {join.module: found[join.module].log for join in joins if join.module is not None}
    sources, whole = _embeddings(model, found), not unseen
    return Composition(
        tuple(joins), output, tuple(norms.items()), "containers", sources, note.removesuffix("; "), whole
    )


def _embeddings(model: nn.Module, found: dict[str, Constant]) -> tuple[str, ...]:
    modules = dict(model.named_modules())
    names = [name for name in found if isinstance(modules[name], (nn.Embedding, nn.EmbeddingBag))]
    return tuple(names[:1])  # the first one called reads the tokens; later ones, positions
