"""A guard on attention logits, from the norms of the query and key projections.

For inputs of norm ``|x|``, no logit exceeds ``s_1(W_q) s_1(W_k) |x|^2 / sqrt(d_head)``. Where the input is normalised,
``|x|`` is fixed, and what can grow is ``ln s_1(W_q) + ln s_1(W_k)``: logits that run away, and attention that collapses
on one token, show in this sum first (Dehghani et al. 2023; Zhai et al. 2023). Once it has risen too far, both matrices
are shrunk by the same factor, as in the query-key clipping of Kimi K2 (2025), but by the bound instead of by the
logits themselves: the observation carries norms, no activations. Layers are paired by their names.

Networks that normalise queries and keys need none of this. Projections packed into one weight are told apart where
they are torch's own (``torch.nn.MultiheadAttention``); in another packing the guard finds no pair and says nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipadvisor.policies.chain import PASS
from lipadvisor.policies.checks import require_positive
from lipadvisor.policies.contract import Decision, Observation

__all__ = ["AttentionGuard", "AttentionGuardState", "attention_pairs"]

# Last part of the names of query and key projections, in use in common libraries.
QUERY_KEY = (("q_proj", "k_proj"), ("q", "k"), ("query", "key"), ("to_q", "to_k"), ("wq", "wk"), ("q_lin", "k_lin"))
SMALLEST = 0.1  # factor of one shrinking, at least: what was mismeasured once must not wipe a layer out


@dataclass(frozen=True, slots=True)
class AttentionGuardState:
    """Memory of :class:`AttentionGuard`: the log bound of each pair when it was first seen, by the query's name."""

    start: tuple[tuple[str, float], ...] = ()
    measured_step: int = -1  # of the last measurement that was acted upon


@dataclass(frozen=True, slots=True)
class AttentionGuard:
    """Shrinks query and key projections where the bound on the logits has risen by more than ``growth``. A refiner.

    Args:
        growth: nats by which ``ln s_1(W_q) + ln s_1(W_k)`` may rise above its start, > 0.

    Raises:
        ValueError: ``growth`` is out of its range.
    """

    growth: float = 3.0

    def __post_init__(self) -> None:
        require_positive("AttentionGuard", "growth", self.growth)

    @property
    def name(self) -> str:
        """Short name."""
        return "attention_guard"

    def init(self) -> AttentionGuardState:
        """Return the state before the first observation."""
        return AttentionGuardState()

    def refine(
        self, observation: Observation, decision: Decision, state: AttentionGuardState
    ) -> tuple[Decision, AttentionGuardState]:
        """Return the factors by which queries and keys are shrunk now."""
        start, scales = dict(state.start), []
        fresh = observation.measured_step > state.measured_step  # the same measurement must not be obeyed twice
        worst = -math.inf
        init_scale = dict(decision.init_scale)  # of this very decision: the start is that of the weights after it
        for query, key, bound in attention_pairs(observation):
            lifted = bound + math.log(init_scale.get(query, 1.0)) + math.log(init_scale.get(key, 1.0))
            grown = bound - start.setdefault(query, lifted)
            worst = max(worst, grown)
            if grown > self.growth and fresh and observation.step > 0:
                factor = max(math.exp(0.5 * (self.growth - grown)), SMALLEST)
                scales += [(query, factor), (key, factor)]
        after = AttentionGuardState(tuple(start.items()), observation.measured_step if scales else state.measured_step)
        read = (("logit_growth", worst),) if math.isfinite(worst) else ()
        reason = "attention:shrink" if scales else PASS
        return Decision(observation.step, self.name, reason, weight_scale=tuple(scales), read=read), after


def attention_pairs(observation: Observation) -> list[tuple[str, str, float]]:
    """Return query's name, key's name and ``ln s_1(W_q) + ln s_1(W_k)`` of each pair that was measured."""
    norms = {layer.name: layer.log_norm for layer in observation.layers}
    pairs = []
    for name, norm in norms.items():
        prefix, dot, last = name.rpartition(".")
        for query, key in QUERY_KEY:
            other = norms.get(f"{prefix}{dot}{key}") if last == query else None
            if other is not None and math.isfinite(norm + other):
                pairs.append((name, f"{prefix}{dot}{key}", norm + other))
    return pairs
