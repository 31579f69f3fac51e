"""What the theory says about optimizer, learning rate, warmup, weight decay and variants, for a model as it stands."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from lipadvisor.modules.composition import Composition
from lipadvisor.modules.diagnosis import post_norms
from lipadvisor.modules.finding import Finding
from lipadvisor.modules.flow import Flow
from lipadvisor.modules.initialization import InitPlan

__all__ = ["advise", "heterogeneity", "warmup_length"]

RELATIVE_STEP = 0.08  # s_1(lr D) / s_1(W) of the layer that moves most
TOTAL_DECAY = 0.6  # nats over the whole run
UNEQUAL = 1.5  # nats of spread in |G| / |W| beyond which one learning rate does not serve all layers
BOUNDED = ("l2_attention", "cosine_attention")  # kinds of attention that have a Lipschitz constant


def heterogeneity(flow: Flow) -> float:
    """Return the standard deviation over layers of ``ln(|G|_F / |W|_F)``, nats: relative steps under one SGD rate."""
    ratios = [math.log(w.gradient / w.frobenius) for w in flow.weights.values() if w.gradient > 0 and w.frobenius > 0]
    return statistics.pstdev(ratios) if len(ratios) > 1 else 0.0


def warmup_length(composition: Composition, kinds: Mapping[str, str], total_steps: int | None, beta2: float) -> int:
    """Return warmup steps: ``2 / (1 - beta2)`` for post-norm networks, a tenth of that otherwise, at most T/10.

    References:
        Ma and Yarats, On the adequacy of untuned warmup for adaptive optimization, arXiv 1910.04209, section 5.
    """
    steps = 2 / (1 - beta2) if len(post_norms(composition, kinds)) > 1 else 0.2 / (1 - beta2)
    return max(1, round(min(steps, total_steps / 10 if total_steps else steps)))


def advise(
    flow: Flow,
    composition: Composition,
    kinds: Mapping[str, str],
    rescue: InitPlan,
    total_steps: int | None = None,
    beta2: float = 0.999,
    with_loss: bool = False,
) -> tuple[Finding, ...]:
    """Return advice, the weightiest first: every entry has module, cure, reason and source like a finding.

    Args:
        flow: measured on a batch.
        composition: of the network's bound.
        kinds: of its modules.
        rescue: what the dead zone says of its weights.
        total_steps: planned, if known.
        beta2: Adam's second-moment coefficient.
        with_loss: the gradients are those of a loss, so that SGD's learning rate has a scale too.
    """
    spread = heterogeneity(flow)
    attends = "attention" in kinds.values() or bool(flow.attention)
    adaptive = spread > UNEQUAL or attends
    found = [_family(spread, adaptive, attends)]
    lr = _rate(flow, adaptive, with_loss)
    if lr is not None:
        found.append(lr)
        found += _decay(lr, total_steps)
    steps = warmup_length(composition, kinds, total_steps, beta2)
    posts = post_norms(composition, kinds)
    found.append(
        Finding(
            posts[0] if posts else "",
            "warmup",
            f"warmup {steps}",
            f"{len(posts)} normalisations on the residual stream"
            if posts
            else "long enough for the second moment's first estimates; no normalisation on a skip path asks for more",
            "arXiv 1910.04209; arXiv 2002.04745",
            1.0 if posts else 0.3,
            float(steps),
        )
    )
    found += _variants(kinds, flow, posts) + _residual_weights(composition)
    found += _initial(rescue, _normalised_next(composition, kinds))
    return tuple(sorted(found, key=lambda finding: -finding.weight))


def _family(spread: float, adaptive: bool, attends: bool) -> Finding:
    if spread > UNEQUAL:
        why = ": one learning rate is too long for some and too short for others"
    else:
        why = "; attention's Jacobian changes with its input, and the layers drift apart" if attends else ""
    return Finding(
        "",
        "optimizer",
        "adaptive (AdamW)" if adaptive else "SGD with momentum serves as well",
        f"|G|/|W| differs by {spread:.2f} nats (standard deviation) between layers{why}",
        "arXiv 2306.09338 (Adam, and unequal layers)",
        spread,
        spread,
    )


def _rate(flow: Flow, adaptive: bool, with_loss: bool) -> Finding | None:
    reason = f"largest rate whose first step moves no singular value by more than {RELATIVE_STEP:.0%} of the norm"
    if not adaptive and not with_loss:
        adaptive = True  # a random cotangent has no scale: only the sign's rate means something
    if not with_loss:
        reason += "; give a loss to advise a rate for SGD: audit(model, batch, loss=...)"
    caps = {}
    for name, w in flow.weights.items():
        size = w.sign_norm if adaptive else w.gradient_norm
        if size > 0 and math.isfinite(size) and w.norm > 0:
            caps[name] = w.norm / size
    if not caps:
        return None
    name = min(caps, key=caps.__getitem__)
    lr = RELATIVE_STEP * caps[name]
    which = "AdamW" if adaptive else "SGD"
    return Finding(
        name,
        "learning_rate",
        f"{which} lr {lr:.3g}",
        reason,
        "Weyl; arXiv 2306.09338; docs/modules.md",
        0.8,
        lr,
    )


def _decay(lr: Finding, total_steps: int | None) -> list[Finding]:
    if not lr.value:
        return []
    decay = 2 * TOTAL_DECAY / lr.value  # times the steps: half of them is what a cosine leaves of the rate
    over = f"{TOTAL_DECAY} nats of shrinking in all over"
    if total_steps is None:
        reason = f"{over} the T steps of a cosine from that rate; audit(total_steps=...) or --steps gives the number"
        return [Finding("", "weight_decay", f"decay {decay:.3g} / T", reason, "arXiv 2306.09338", 0.5)]
    reason, decay = f"{over} {total_steps} steps of a cosine from that rate", decay / total_steps
    return [Finding("", "weight_decay", f"decay {decay:.3g}", reason, "arXiv 2306.09338", 0.5, decay)]


def _variants(kinds: Mapping[str, str], flow: Flow, posts: tuple[str, ...]) -> list[Finding]:
    found = []
    if posts:
        reason = "the skip path passes through every normalisation; before the branches it stays an identity"
        found.append(Finding(posts[0], "normalisation", "pre-norm", reason, "arXiv 2002.04745", 0.6))
    attention = [name for name, kind in kinds.items() if kind == "attention"]
    attention += [name for name in flow.attention if kinds.get(name) not in BOUNDED]
    if attention:
        reason = "dot-product attention has no Lipschitz constant; L2 and scaled-cosine attention have"
        cure = "scaled-cosine or L2 attention, if scores grow in training"
        found.append(Finding(attention[0], "attention", cure, reason, "arXiv 2006.04710; arXiv 2304.09856", 0.2))
    return found


def _residual_weights(composition: Composition) -> list[Finding]:
    joins = [j for j in composition.joins if j.module is None and not j.concat and j.log_gains == (0.0, 0.0)]
    if len(joins) < 24:
        return []
    alpha = len(joins) ** -0.5
    reason = f"{len(joins)} residual joins: weights of 1/sqrt(joins) keep the bound's growth below e per unit of K"
    return [Finding("", "residual_weight", f"alpha {alpha:.3g}", reason, "arXiv 2306.09338", 0.4, alpha)]


def _normalised_next(composition: Composition, kinds: Mapping[str, str]) -> frozenset[str]:
    """Modules whose output goes into normalisations and nowhere else, perhaps after a sum: their size says nothing."""
    joins = composition.joins
    readers: dict[int, list[int]] = {}
    for index, join in enumerate(joins):
        for source in join.inputs:
            readers.setdefault(source, []).append(index)
    taken: dict[int, bool] = {}  # whether all that reads a place is a normalisation; readers come later in the order
    for index in range(len(joins) - 1, -1, -1):
        taken[index] = bool(readers.get(index)) and all(
            kinds.get(joins[reader].module or "", "").endswith("norm")
            or (joins[reader].module is None and len(joins[reader].inputs) == 1 and taken[reader])
            for reader in readers[index]
        )
    sources = {join.name for i, join in enumerate(joins) if not join.inputs and taken[i]}
    return frozenset(sources | {j.module for i, j in enumerate(joins) if j.module is not None and taken[i]})


def _initial(rescue: InitPlan, normalised: frozenset[str]) -> list[Finding]:
    found = [
        Finding(
            name,
            "init_scale",
            f"scale_weight {factor:.3g}, unless a normalisation follows",
            reason,
            "docs/modules.md (dead zone)",
            0.1 * abs(math.log(factor)),
            factor,
        )
        for (name, factor), reason in zip(rescue.factors, rescue.reasons, strict=True)
        if name not in normalised
    ]
    return sorted(found, key=lambda finding: -finding.weight)
