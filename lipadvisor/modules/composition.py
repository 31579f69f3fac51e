"""The log bound of a whole network as a differentiable function of its modules' log constants.

A network is a list of joins in execution order. Join j turns the log constants ``k_i`` (from the network's input to
place i) of its inputs into its own, with fixed log gains ``g_i`` of the operation between and, where a module sits
there, that module's log constant ``c``:

    sum       k_j = c + log sum_i exp(g_i + k_i)            chains, residual joins, products of two inputs
    concat    k_j = c + 1/2 log sum_i exp(2 (g_i + k_i))    parts side by side

A residual block ``x + f(x)`` therefore gets ``k_x + log(1 + K_f)``. A module's weight is ``dZ / d log_norm``, by
reverse differentiation: 1 in a chain, below 1 inside a branch, and the number of calls where it is called often.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Composition", "Join"]


@dataclass(frozen=True, slots=True)
class Join:
    """One place of the network. A source has no inputs: its log constant is 0."""

    inputs: tuple[int, ...] = ()
    log_gains: tuple[float, ...] = ()
    module: str | None = None
    concat: bool = False
    name: str = ""


@dataclass(frozen=True, slots=True)
class Composition:
    """The bound of one network.

    Attributes:
        joins: in execution order.
        output: index of the output's join, or -1 where the output does not depend on the input.
        log_norms: (module, log constant in nats) as found when it was built.
        method: ``"export"`` (the real graph) or ``"containers"`` (children taken as chains).
        sources: modules whose outputs count as the network's input (embeddings); empty: its float inputs.
        note: why not the real graph, or what was not seen.
        is_bound: whether everything between input and output was seen; otherwise Z is an estimate only.
    """

    joins: tuple[Join, ...]
    output: int
    log_norms: tuple[tuple[str, float], ...]
    method: str
    sources: tuple[str, ...] = ()
    note: str = ""
    is_bound: bool = True

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules that the output depends on, in execution order, once each."""
        return tuple(dict.fromkeys(join.module for join in self.joins if join.module is not None))

    def log_bound(self, log_norms: Mapping[str, float] | None = None) -> float:
        """Return Z, nats, with the given log constants in place of those found; -inf for a constant network."""
        return self._forward(self._norms(log_norms))[self.output] if self.output >= 0 else -math.inf

    def weights(self, log_norms: Mapping[str, float] | None = None) -> dict[str, float]:
        """Return ``dZ / d log_norm`` of every module, dimensionless, by one reverse sweep."""
        norms = self._norms(log_norms)
        weights = dict.fromkeys(self.modules, 0.0)
        if self.output < 0:
            return weights
        places = self._forward(norms)
        adjoint = [0.0] * len(self.joins)
        adjoint[self.output] = 1.0
        for index in range(self.output, -1, -1):
            join, flow = self.joins[index], adjoint[index]
            if flow == 0.0:
                continue
            if join.module is not None:
                weights[join.module] += flow
            shares = _shares([g + places[i] for g, i in zip(join.log_gains, join.inputs, strict=True)], join.concat)
            for i, share in zip(join.inputs, shares, strict=True):
                adjoint[i] += flow * share
        return weights

    def _norms(self, log_norms: Mapping[str, float] | None) -> dict[str, float]:
        norms = dict(self.log_norms)
        if log_norms:
            norms.update({name: value for name, value in log_norms.items() if name in norms})
        return norms

    def _forward(self, norms: Mapping[str, float]) -> list[float]:
        places: list[float] = []
        for join in self.joins:
            if not join.inputs:
                places.append(0.0)
                continue
            terms = [g + places[i] for g, i in zip(join.log_gains, join.inputs, strict=True)]
            total = _log_sum([2 * t for t in terms]) / 2 if join.concat else _log_sum(terms)
            places.append(total + (norms.get(join.module, 0.0) if join.module is not None else 0.0))
        return places


def _log_sum(terms: Sequence[float]) -> float:
    top = max(terms)
    if not math.isfinite(top):
        return top
    return top + math.log(sum(math.exp(term - top) for term in terms))


def _shares(terms: Sequence[float], concat: bool) -> list[float]:
    if not terms:
        return []
    power = 2 if concat else 1
    top = max(terms)
    if not math.isfinite(top):
        return [1.0 / len(terms)] * len(terms)
    parts = [math.exp(power * (term - top)) for term in terms]
    return [part / sum(parts) for part in parts]
