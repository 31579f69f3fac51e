"""What is wrong with a model before its first step, where, and what helps.

Alarms only: each rule fires on a defect that keeps the model from training, not on a taste. Thresholds stand as
constants on top, each with what it separates.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from lipadvisor.modules.composition import Composition
from lipadvisor.modules.constant import Constant
from lipadvisor.modules.flow import Flow, ModuleFlow

__all__ = ["Finding", "diagnose", "post_norms", "stream", "trunk"]

QUERIES = ("q", "query", "q_proj", "q_lin", "to_q", "wq")
KEYS = ("k", "key", "k_proj", "k_lin", "to_k", "wk")
INTERLEAVED = ("query_key_value",)  # in one weight, head by head
PACKED = ("c_attn", "qkv", "Wqkv", "qkv_proj", "in_proj", *INTERLEAVED)  # queries, keys and values in one weight

TAMED = "; a normalisation behind it limits the harm: it may train, only later"

SIZE_OUTLIER = 8.0  # times the median q; healthy models stay below 3 (heads tied to a table apart)
OUTPUT_OUTLIER = 1.0  # times min(1, median output rms), or a larger output than input: else it does no harm
TABLE_OUTLIER = 5.0  # rms of an embedding; torch's own start, 1, is the largest in use
TIED_OUTLIER = 4.0  # rms of the logits of a head tied to a table: the first loss is then far above guessing
VANISHED = 1e-3  # of the gradient is left at the trunk's start
STARVED = 3e-3  # |G|/|W| on the trunk against its last weight; pooling shrinks gradients, but not those of weights
EXPLODED = 1e4  # times larger at the trunk's start, or so much larger an activation at its end
COLLAPSED_ENTROPY = 0.6  # of log n; untrained attention is above 0.9
COLLAPSED_SPREAD = 4.0  # standard deviation of the scores; untrained attention has at most about 1
CONTRACTING = 0.35  # constant of an activation that no scale of the weights makes up for in depth


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem (or one piece of advice) with its cure.

    Attributes:
        module: where; ``""`` is the whole model.
        problem: short name, e.g. ``"init_scale"``.
        cure: short name and value, e.g. ``"scale_weight 0.033"``.
        reason: the numbers that led here.
        source: paper and place.
        weight: how bad, nats; findings are sorted by it.
        value: the cure's number, where it has one.
    """

    module: str
    problem: str
    cure: str
    reason: str
    source: str
    weight: float
    value: float | None = None


def trunk(composition: Composition) -> tuple[str, ...]:
    """Return the modules that every path from input to output passes through: no skip goes around them."""
    line = [composition.joins[place].module for place in _dominators(composition)]
    return tuple(dict.fromkeys(module for module in line if module is not None))


def stream(composition: Composition) -> tuple[str, ...]:
    """Return a reader for each place that every path passes through, in order: what it reads is the whole signal.

    On a residual stream these are the modules that begin the branches; on a chain, all modules but the first.
    """
    places = set(_dominators(composition))
    readers: dict[int, str] = {}
    for join in composition.joins:
        if join.module is not None and len(join.inputs) == 1 and join.inputs[0] in places:
            readers.setdefault(join.inputs[0], join.module)
    return tuple(dict.fromkeys(readers[place] for place in sorted(readers)))


def _dominators(composition: Composition) -> list[int]:
    """Joins that every path to the output passes through, in order, by one sweep.

    A join's immediate dominator is the last common one of its inputs (Cooper, Harvey, Kennedy 2001); the joins are in
    topological order, so once is enough.
    """
    above: list[int] = []  # immediate dominator of each join; -1 is the root

    def meet(a: int, b: int) -> int:
        while a != b:
            a, b = (above[a], b) if a > b else (a, above[b])
        return a

    for join in composition.joins:
        common = join.inputs[0] if join.inputs else -1
        for other in join.inputs[1:]:
            common = meet(common, other)
        above.append(common)
    line, at = [], composition.output
    while at >= 0:
        line.append(at)
        at = above[at]
    return line[::-1]


def post_norms(composition: Composition, kinds: Mapping[str, str]) -> tuple[str, ...]:
    """Return normalisations that stand on the residual stream itself.

    Their input is a residual join that nothing else reads, and their output is the next join's skip.
    """
    readers: dict[int, list[int]] = {}
    for index, join in enumerate(composition.joins):
        for source in join.inputs:
            readers.setdefault(source, []).append(index)
    joins = composition.joins

    def residual(index: int) -> bool:
        join = joins[index]
        return join.module is None and not join.concat and len(join.inputs) > 1 and join.log_gains == (0.0,) * 2

    found = []
    for index, join in enumerate(joins):
        if join.module is None or not kinds.get(join.module, "").endswith("norm") or len(join.inputs) != 1:
            continue
        alone = residual(join.inputs[0]) and len(readers[join.inputs[0]]) == 1
        if alone and any(residual(reader) for reader in readers.get(index, [])):
            found.append(join.module)
    return tuple(dict.fromkeys(found))


def diagnose(
    flow: Flow,
    composition: Composition,
    constants: Mapping[str, Constant],
    sizes: Mapping[str, float],
    kinds: Mapping[str, str],
    warmup_steps: int | None = None,
    needed_warmup: int = 0,
    tied: Mapping[str, str] | None = None,
) -> tuple[Finding, ...]:
    """Return what keeps the model from training, the worst first; empty for a healthy model.

    Args:
        flow: measured on a batch.
        composition: of the network's bound.
        constants: of its modules.
        sizes: q of its weights.
        kinds: of its modules.
        warmup_steps: planned; ``None`` where no plan is known, and then none is judged.
        needed_warmup: what would be right for a post-norm network.
        tied: heads that share the weight of a table, with the table's name.
    """
    scores = _attention(flow)
    collapsed = {finding.module for finding in scores}
    tamed = _normalised_later(composition, kinds)
    found = [finding for finding in _sizes(flow, sizes, tamed) if not _makes_scores(finding.module, collapsed)]
    found += _tables(flow, sizes, kinds, tied or {})
    found += scores + _gradients(flow, composition, constants, kinds, sizes)
    if warmup_steps is not None and warmup_steps < needed_warmup:
        found += _warmup(post_norms(composition, kinds), warmup_steps, needed_warmup)
    if not flow.finite and not found:
        found.append(Finding("", "non_finite", "lsuv", "the output is not finite", "arXiv 2306.09338", 99.0))
    return tuple(sorted(found, key=lambda finding: -finding.weight))


def _normalised_later(composition: Composition, kinds: Mapping[str, str]) -> frozenset[str]:
    """Modules of whose output every path to the network's output passes through a normalisation."""
    free = {composition.output}  # places whose size reaches the output; joins are in topological order
    for index in range(composition.output, -1, -1):
        join = composition.joins[index]
        if index in free and not kinds.get(join.module or "", "").endswith("norm"):
            free.update(join.inputs)
    return frozenset(j.module for i, j in enumerate(composition.joins) if j.module is not None and i not in free)


def _sizes(flow: Flow, sizes: Mapping[str, float], tamed: frozenset[str]) -> list[Finding]:
    measured = {n: q for n, q in sizes.items() if n in flow.weights and q > 0}
    if len(measured) < 3:
        return []
    usual = statistics.median(measured.values())
    outputs = [_output(flow, name) for name in measured]
    typical = min(1.0, statistics.median(outputs))
    found = []
    for name, q in measured.items():
        output = _output(flow, name)
        harmful = not output <= min(OUTPUT_OUTLIER * typical, _input(flow, name))  # so is what is not a number
        if q > SIZE_OUTLIER * usual and harmful:
            found.append(
                Finding(
                    name,
                    "init_scale",
                    f"scale_weight {usual / q:.3g}",
                    f"rms(W) sqrt(fan_in) = {q:.3g}, {q / usual:.1f} times the median {usual:.3g} of the network"
                    + (
                        "; a normalisation behind it limits the harm: it may train, only later" if name in tamed else ""
                    ),
                    "arXiv 2306.09338 (initialization)",
                    math.log(q / usual),
                    usual / q,
                )
            )
    return found


def _tables(flow: Flow, sizes: Mapping[str, float], kinds: Mapping[str, str], tied: Mapping[str, str]) -> list[Finding]:
    """Embeddings that drown every branch, or that, used as the head as well, give logits far from zero."""
    tables = {name: sizes[name] for name, kind in kinds.items() if kind == "embedding" and name in sizes}
    usual = [q for q in tables.values() if 0 < q <= 1]
    factors = {
        name: ((statistics.median(usual) if usual else 1.0) / q, f"rms = {q:.3g}; branches add about 1 or less to it")
        for name, q in tables.items()
        if q > TABLE_OUTLIER
    }
    for head, name in tied.items():
        logits = flow.modules[head].rms_out if head in flow.modules else math.nan
        if logits > TIED_OUTLIER:
            factors[name] = (1 / logits, f"it is the head as well, and the logits have rms {logits:.3g}")
    source = "arXiv 2306.09338 (initialization)"
    return [
        Finding(name, "init_scale", f"scale_weight {factor:.3g}", reason, source, -math.log(factor), factor)
        for name, (factor, reason) in factors.items()
    ]


def _met(flow: Flow, name: str) -> ModuleFlow:
    """The weight's module; for a weight inside a larger module, that one."""
    while name and name not in flow.modules:
        name = name.rpartition(".")[0]
    return flow.modules.get(name, ModuleFlow())


def _output(flow: Flow, name: str) -> float:
    return _met(flow, name).rms_out


def _input(flow: Flow, name: str) -> float:
    """Rms of what reaches it; unbounded where it was not seen, so that it decides nothing."""
    size = _met(flow, name).rms_in
    return math.inf if math.isnan(size) else size


def _makes_scores(weight: str, attentions: set[str]) -> bool:
    """Whether a weight makes the queries or keys of one of these attentions: their cure then covers it."""
    own = weight.rpartition(".")[2]
    inside = any(weight.startswith(f"{name}.") or not name for name in attentions)
    return inside and own in QUERIES + KEYS + PACKED


def _attention(flow: Flow) -> list[Finding]:
    broken = {
        name: flow.attention[name]
        for name in flow.attention
        if flow.attention[name].spread > COLLAPSED_SPREAD and flow.attention[name].entropy < COLLAPSED_ENTROPY
    }
    healthy = [attention.spread for name, attention in flow.attention.items() if name not in broken]
    target = min([1.0, *([statistics.median(healthy)] if healthy else [])])  # as the other ones, at most 1
    return [
        Finding(
            name,
            "attention_logits",
            f"scale_query_key {target / attention.spread:.3g}",
            f"scores have standard deviation {attention.spread:.3g} and entropy {attention.entropy:.2f} of log n; "
            "scaled-cosine or L2 attention, or normalised queries and keys, keep them bounded",
            "arXiv 2306.09338 (attention); arXiv 2303.06296 (entropy collapse)",
            math.log(attention.spread),
            target / attention.spread,
        )
        for name, attention in broken.items()
    ]


def _gradients(
    flow: Flow,
    composition: Composition,
    constants: Mapping[str, Constant],
    kinds: Mapping[str, str],
    sizes: Mapping[str, float],
) -> list[Finding]:
    line = [n for n in trunk(composition) if n in flow.modules]
    readers = [n for n in stream(composition) if n in flow.modules and flow.modules[n].gradient_in >= 0]
    if len(readers) < 3:
        return []
    start, end = flow.modules[readers[0]], flow.modules[readers[-1]]
    left = start.gradient_in / end.gradient_in if end.gradient_in > 0 else math.nan
    grown = end.rms_in / max(start.rms_in, 1e-30)
    source = "arXiv 2306.09338 (backward principle)"
    if left < VANISHED and _starved(flow, line):
        return _vanished(flow, line, constants, kinds, sizes, left, source)
    if left > EXPLODED or grown > EXPLODED:
        inner = [n for n in flow.modules if n in sizes]
        worst = max(inner, key=lambda n: _log(flow.modules[n].backward_gain), default=readers[0])
        reason = f"along the network gradients grow {left:.2g} times backward and activations {grown:.2g} times forward"
        return [Finding(worst, "explosion", "lsuv", reason, source, abs(_log(max(left, grown))))]
    return []


def _starved(flow: Flow, line: list[str]) -> bool:
    """Whether some weight of the trunk gets next to no gradient for its size; true where none can be compared."""
    ratios = [w.gradient / w.frobenius for n in line if (w := flow.weights.get(n)) is not None and w.frobenius > 0]
    return len(ratios) < 2 or not min(ratios) >= STARVED * ratios[-1]


def _vanished(
    flow: Flow,
    line: list[str],
    constants: Mapping[str, Constant],
    kinds: Mapping[str, str],
    sizes: Mapping[str, float],
    left: float,
    source: str,
) -> list[Finding]:
    reason = f"{left:.1e} of the gradient at the output side of the trunk reaches its start"
    flat = [n for n in line if n in constants and constants[n].value <= CONTRACTING and kinds[n] in _SATURATING]
    if flat:
        return [
            Finding(
                name,
                "vanishing",
                "replace_activation tanh",
                f"{reason}; here it keeps {flow.modules[name].backward_gain:.2g} at a constant of "
                f"{constants[name].value:.3g}",
                source,
                -_log(flow.modules[name].backward_gain),
            )
            for name in flat
        ]
    worst = min((n for n in line if n in sizes), key=lambda n: _log(flow.modules[n].backward_gain), default=line[0])
    return [Finding(worst, "vanishing", "lsuv", reason, source, -_log(left))]


_SATURATING = ("sigmoid", "hardsigmoid", "softmax", "softmin")


def _log(x: float) -> float:
    return math.log(x) if x > 0 and math.isfinite(x) else 0.0 if not x > 0 else 99.0


def _warmup(names: tuple[str, ...], planned: int, needed: int) -> list[Finding]:
    if len(names) < 2:
        return []
    reason = (
        f"{len(names)} normalisations stand on the residual stream, the plan warms up for {planned} steps: near the "
        "output gradients are large at initialization, and the first full steps undo it"
    )
    source = "arXiv 2306.09338 (warmup); arXiv 2002.04745, Thm 1"
    return [Finding(names[0], "post_norm", f"warmup {needed}", reason, source, math.log(1 + len(names)), float(needed))]
