"""What is wrong with a model before its first step, where, and what helps.

Alarms only: each rule fires on a defect that keeps the model from training, not on a taste. Thresholds stand as
constants on top, each with what it separates.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import replace

from lipadvisor.modules.composition import Composition
from lipadvisor.modules.constant import Constant
from lipadvisor.modules.finding import Finding
from lipadvisor.modules.flow import Flow, ModuleFlow
from lipadvisor.modules.unusable import not_finite_findings, zero_weights

__all__ = ["Finding", "diagnose", "mild", "post_norms", "stream", "trunk"]

QUERIES = ("q", "query", "q_proj", "q_lin", "to_q", "wq")
KEYS = ("k", "key", "k_proj", "k_lin", "to_k", "wk")
INTERLEAVED = ("query_key_value",)  # in one weight, head by head
PACKED = ("c_attn", "qkv", "Wqkv", "qkv_proj", "in_proj", *INTERLEAVED)  # queries, keys and values in one weight

TAMED = "; a normalisation behind it limits the harm: it may train, only later"

SIZE_OUTLIER = 8.0  # times the median q; healthy models stay below 3 (heads tied to a table apart)
FEW = 3  # with fewer weights a median says nothing: then against 1, twice as far from He's 1.4 as healthy models get
OUTPUT_OUTLIER = 1.0  # times min(1, median output rms), or a larger output than input: else it does no harm
TABLE_OUTLIER = 5.0  # rms of an embedding; torch's own start, 1, is the largest in use
TIED_OUTLIER = 4.0  # rms of the logits of a head tied to a table: the first loss is then far above guessing
VANISHED = 1e-3  # of the gradient is left at the trunk's start
FADED = 1e-5  # where nothing saturates: torch's default in 12 ReLU layers leaves 4e-5, and Adam trains them
STARVED = 3e-3  # |G|/|W| on the trunk against its last weight; pooling shrinks gradients, but not those of weights
EXPLODED = 1e4  # times larger at the trunk's start, or so much larger an activation at its end
COLLAPSED_ENTROPY = 0.6  # of log n; untrained attention is above 0.9
COLLAPSED_SPREAD = 4.0  # standard deviation of the scores; untrained attention has at most about 1
NO_WARMUP = 0.1  # of the warmup that a post-norm network needs; more than that is a question of taste
CONTRACTING = 0.35  # constant of an activation that no scale of the weights makes up for in depth


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
    not_finite: Mapping[str, str] | None = None,
    places: Mapping[str, int] | None = None,
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
        not_finite: modules with a parameter that is not finite, with its name; nothing else can be told then.
        places: how often one instance stands in the model, where that is more than once.
    """
    if not_finite:
        return tuple(not_finite_findings(flow, not_finite))
    scores = _attention(flow)
    collapsed = {finding.module for finding in scores}
    tamed = _normalised_later(composition, kinds)
    found = [finding for finding in _sizes(flow, sizes, tamed) if not _makes_scores(finding.module, collapsed)]
    found += _tables(flow, sizes, kinds, tied or {})
    zeros = zero_weights(flow, sizes, kinds, trunk(composition))
    found += scores + (zeros or _gradients(flow, composition, constants, kinds, sizes, places or {}))
    if warmup_steps is not None and warmup_steps < NO_WARMUP * needed_warmup:
        found += _warmup(post_norms(composition, kinds), warmup_steps, needed_warmup)
    if not found:
        found += not_finite_findings(flow, {})
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
    if not measured:
        return []
    few = len(measured) < FEW
    usual = 1.0 if few else statistics.median(measured.values())
    typical = 1.0 if few else min(1.0, statistics.median(_output(flow, name) for name in measured))
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
                    f"rms(W) sqrt(fan_in) = {q:.3g}, {q / usual:.1f} times "
                    + ("the 1 that keeps a signal's size" if few else f"the median {usual:.3g} of the network")
                    + (TAMED if name in tamed else ""),
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
    places: Mapping[str, int],
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
        saturating = _saturating(flow, composition, line, constants, kinds, places, left, source)
        return saturating or (_faded(flow, line, sizes, left, source) if left < FADED else [])
    if left > EXPLODED or grown > EXPLODED:
        inner = [n for n in flow.modules if n in sizes]
        worst = max(inner, key=lambda n: _log(flow.modules[n].backward_gain), default=readers[0])
        reason = f"along the network gradients grow {left:.2g} times backward and activations {grown:.2g} times forward"
        return [Finding(worst, "explosion", "lsuv", reason, source, abs(_log(max(left, grown))))]
    return []


def mild(
    flow: Flow,
    composition: Composition,
    kinds: Mapping[str, str],
    sizes: Mapping[str, float],
    warmup_steps: int | None = None,
    needed_warmup: int = 0,
) -> tuple[Finding, ...]:
    """Return what is worth a word and yet keeps nothing from training: gradients that fade, a short warmup."""
    found: list[Finding] = []
    line = [n for n in trunk(composition) if n in flow.modules]
    readers = [n for n in stream(composition) if n in flow.modules and flow.modules[n].gradient_in >= 0]
    if len(readers) >= 3 and (end := flow.modules[readers[-1]].gradient_in) > 0:
        left = flow.modules[readers[0]].gradient_in / end
        if FADED <= left < VANISHED and _starved(flow, line):
            (faded,) = _faded(flow, line, sizes, left, "arXiv 2306.09338 (backward principle)")
            reason = f"{faded.reason}; AdamW trains such a network all the same"
            found.append(replace(faded, reason=reason, weight=0.7))
    if warmup_steps is not None and NO_WARMUP * needed_warmup <= warmup_steps < needed_warmup:
        found += [
            replace(one, weight=0.7) for one in _warmup(post_norms(composition, kinds), warmup_steps, needed_warmup)
        ]
    return tuple(found)


def _starved(flow: Flow, line: list[str]) -> bool:
    """Whether some weight of the trunk gets next to no gradient for its size; true where none can be compared."""
    ratios = [w.gradient / w.frobenius for n in line if (w := flow.weights.get(n)) is not None and w.frobenius > 0]
    return len(ratios) < 2 or not min(ratios) >= STARVED * ratios[-1]


def _saturating(
    flow: Flow,
    composition: Composition,
    line: list[str],
    constants: Mapping[str, Constant],
    kinds: Mapping[str, str],
    places: Mapping[str, int],
    left: float,
    source: str,
) -> list[Finding]:
    """Activations on the trunk that no scale of the weights makes up for: modules, and calls in a model's own code."""
    reason = _what_is_left(left)
    found = []
    for name in line:
        if name not in constants or constants[name].value > CONTRACTING or kinds[name] not in _SATURATING:
            continue
        keeps, many = flow.modules[name].backward_gain, places.get(name, 1)
        shared = f"; one instance at {many} places, all of which are meant" if many > 1 else ""
        told = f"{reason}; here it keeps {keeps:.2g} at a constant of {constants[name].value:.3g}{shared}"
        found.append(Finding(name, "vanishing", "replace_activation tanh", told, source, -_log(keeps)))
    shared_kinds = {kinds[name] for name in places if name in kinds}  # their further calls look like the code's own
    before = ""
    for place in _dominators(composition):
        join = composition.joins[place]
        called = next((f for f in _SATURATING if join.name == f or join.name.startswith(f"{f}_")), None)
        if join.module is not None:
            before = join.module
        elif called is not None and called not in shared_kinds and join.inputs:
            told = f"{reason}; {called} is called here on {before or 'the input'} in the model's own code, not a module"
            cure = f"write tanh for {called} in the code (cannot be done automatically)"
            found.append(Finding(before, "vanishing", cure, told, source, -math.log(CONTRACTING)))
    return found


def _faded(flow: Flow, line: list[str], sizes: Mapping[str, float], left: float, source: str) -> list[Finding]:
    worst = min((n for n in line if n in sizes), key=lambda n: _log(flow.modules[n].backward_gain), default=line[0])
    return [Finding(worst, "vanishing", "lsuv", _what_is_left(left), source, -_log(left))]


def _what_is_left(left: float) -> str:
    return f"{left:.1e} of the gradient at the output side of the trunk reaches its start"


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
