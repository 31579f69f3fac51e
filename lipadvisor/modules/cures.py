"""Applying the cures of findings that change the model; those that change the plan (warmup, lr) are the caller's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lipadvisor.modules.diagnosis import INTERLEAVED, KEYS, PACKED, QUERIES, SIZE_OUTLIER
from lipadvisor.modules.examine import Audit, audit
from lipadvisor.modules.finding import Finding
from lipadvisor.modules.initialization import draw_anew, lsuv, weight_matrices

__all__ = ["Cured", "apply_cures", "query_key_views"]

PLAN = ("post_norm", "warmup", "learning_rate", "weight_decay", "optimizer")  # problems that training's plan solves


@dataclass(frozen=True)
class Cured:
    """What :func:`apply_cures` did; calling it takes everything back, bit for bit.

    Attributes:
        applied: the findings that were acted on, round by round.
        remaining: what the last audit still found; where none was made (no batch, or nothing to act on), the findings
            that are left to you (``by_hand``). Empty where nothing is left.
        plan: findings whose cure is the training plan's (warmup, learning rate, weight decay, optimizer): yours to
            follow.
        rounds: how often cures were applied.
        by_hand: findings whose cure is a change of the model's code, which nothing here can make.
    """

    applied: tuple[Finding, ...]
    remaining: tuple[Finding, ...]
    plan: tuple[Finding, ...]
    rounds: int
    _undo: Callable[[], None] = field(repr=False)
    by_hand: tuple[Finding, ...] = ()

    def __call__(self) -> None:
        """Put back every weight and every module."""
        self._undo()


def apply_cures(model: nn.Module, findings: Iterable[Finding] | Audit, batch: Any = None, rounds: int = 5) -> Cured:
    """Change the model as the findings advise, audit it again, and go on until nothing is left.

    One cure may uncover what another defect hid: a table that drowns every branch also hides their scores. With a
    batch the model is therefore audited after each round, and what is found then is cured too.

    Args:
        model: changed in place.
        findings: of an audit of this model, its ``findings`` or ``advice``, or the audit itself, which stands for its
            findings. Cures of the plan and of the code are passed over.
        batch: what the model was audited on. Without one there is a single round, and data-dependent cures are refused.
        rounds: at most so many, >= 1.

    Returns:
        What was done; call it to take all rounds back.

    Raises:
        TypeError: ``findings`` holds something else.
        ValueError: ``rounds`` is below 1, a finding names a module that the model does not have, a data-dependent cure
            and no batch, or scores to be scaled in an attention whose queries and keys are not recognised; nothing has
            been changed then.
    """
    if rounds < 1:
        raise ValueError(f"apply_cures(rounds=...) must be at least 1, got {rounds}.")
    findings = findings.findings if isinstance(findings, Audit) else tuple(findings)
    for finding in findings:
        if not isinstance(finding, Finding):
            raise TypeError(f"apply_cures(findings=...) must be findings or an audit, got {type(finding).__name__}.")
    plan = tuple(finding for finding in findings if finding.problem in PLAN)
    todo = tuple(finding for finding in findings if finding.problem not in PLAN and _acts(finding))
    by_hand = tuple(finding for finding in findings if finding.problem not in PLAN and not _acts(finding))
    _check(model, todo, batch)
    before = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    swapped: list[tuple[nn.Module, str, nn.Module]] = []

    def undo() -> None:
        for parent, name, old in reversed(swapped):
            setattr(parent, name, old)
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)

    applied: list[Finding] = []
    remaining = by_hand
    done = 0
    try:
        while todo and done < rounds:
            _apply(model, todo, batch, swapped)
            applied += todo
            done += 1
            if batch is None:
                break
            remaining = audit(model, batch, local=False).findings
            todo = _worth_another_round(model, remaining, applied)
    except BaseException:
        undo()
        raise
    return Cured(tuple(applied), remaining, plan, done, undo, by_hand)


def _check(model: nn.Module, findings: tuple[Finding, ...], batch: Any) -> None:
    known = dict(model.named_modules(remove_duplicate=False)).keys() | weight_matrices(model, embeddings=True).keys()
    for finding in findings:
        if finding.module not in known:
            raise ValueError(
                f"apply_cures(findings=...) must name modules of the model; {type(model).__name__} has no "
                f"{finding.module!r} (of the finding {finding.problem!r})."
            )
    if batch is None and any(_needs_batch(finding) for finding in findings):
        raise ValueError("apply_cures(batch=...) must be given: one of the cures is data-dependent.")
    for finding in findings:
        if not _curable(model, finding):
            raise ValueError(
                f"apply_cures(findings=...) cannot tell the queries and keys of {finding.module!r} by their names; "
                f"scale its scores by {finding.value:.3g} by hand, and leave the finding out."
            )


def _acts(finding: Finding) -> bool:
    """Whether its cure is one that :func:`_apply` carries out."""
    if finding.cure.startswith(("scale_weight", "scale_query_key")):
        return finding.value is not None
    return finding.cure in ("lsuv", "draw_anew") or finding.cure.startswith("replace_activation")


def _needs_batch(finding: Finding) -> bool:
    return finding.cure == "lsuv" or finding.cure.startswith("replace_activation")


def _curable(model: nn.Module, finding: Finding) -> bool:
    return finding.problem != "attention_logits" or bool(query_key_views(model.get_submodule(finding.module)))


def _worth_another_round(model: nn.Module, found: tuple[Finding, ...], applied: list[Finding]) -> tuple[Finding, ...]:
    """What can be cured and is not simply still there, as bad as when it was last acted on."""
    weights = {(finding.module, finding.problem): finding.weight for finding in applied}
    return tuple(
        finding
        for finding in found
        if _acts(finding)
        and _curable(model, finding)
        and finding.weight < 0.9 * weights.get((finding.module, finding.problem), math.inf)
    )


def _apply(
    model: nn.Module, findings: tuple[Finding, ...], batch: Any, swapped: list[tuple[nn.Module, str, nn.Module]]
) -> None:
    """One round; notes in ``swapped`` the modules that it replaces: parent, name, former module."""
    for finding in findings:
        if finding.cure == "draw_anew":
            draw_anew(model, finding.module)
        elif finding.problem == "init_scale" and finding.value is not None:
            with torch.no_grad():
                weight_matrices(model, embeddings=True)[finding.module].mul_(finding.value)
        elif finding.problem == "attention_logits" and finding.value is not None:
            _scale_scores(model.get_submodule(finding.module), finding.value)
        elif finding.cure.startswith("replace_activation"):
            swapped += _swap(model, finding.module)
    if any(_needs_batch(finding) for finding in findings):
        lsuv(model, batch).apply(model)


def _swap(model: nn.Module, name: str) -> list[tuple[nn.Module, str, nn.Module]]:
    """Put a tanh in every place at which this very module stands: one instance may have many."""
    old, new = model.get_submodule(name), nn.Tanh()
    places = [(parent, own) for parent in model.modules() for own, child in parent._modules.items() if child is old]
    for parent, own in places:
        setattr(parent, own, new)
    return [(parent, own, old) for parent, own in places]


@dataclass(frozen=True, slots=True)
class _Side:
    """Views of what makes the queries, or the keys."""

    weights: list[Tensor] = field(default_factory=list)
    biases: list[Tensor] = field(default_factory=list)

    def take(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weights.append(weight)
        if bias is not None:
            self.biases.append(bias)


def query_key_views(attention: nn.Module) -> list[Tensor]:
    """Return the parts of weights that make queries and keys, as views; empty if none are recognised."""
    return [view for side in _sides(attention) for view in side.weights]


def _sides(attention: nn.Module) -> tuple[_Side, _Side]:
    queries, keys = _Side(), _Side()
    if isinstance(attention, nn.MultiheadAttention):
        packed, width = attention.in_proj_bias, attention.embed_dim
        if attention.in_proj_weight is not None:
            both = (attention.in_proj_weight[:width], attention.in_proj_weight[width : 2 * width])
        else:
            both = (attention.q_proj_weight, attention.k_proj_weight)
        for number, side in enumerate((queries, keys)):
            side.take(both[number], None if packed is None else packed[number * width : (number + 1) * width])
        return queries, keys
    for name, module in attention.named_modules():
        own = name.rpartition(".")[2]
        weight: Any = getattr(module, "weight", None)
        bias: Any = getattr(module, "bias", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            continue
        bias = bias if isinstance(bias, Tensor) else None
        if own in QUERIES + KEYS:
            (queries if own in QUERIES else keys).take(weight, bias)
        elif own in PACKED:
            outputs = weight.T if type(module).__name__ == "Conv1D" else weight
            split = _by_heads if own in INTERLEAVED else _by_thirds
            parts = split(attention, outputs)
            of_bias = split(attention, bias) if bias is not None else None
            if parts is not None:
                queries.take(parts[0], None if of_bias is None else of_bias[0])
                keys.take(parts[1], None if of_bias is None else of_bias[1])
    return queries, keys


def _by_thirds(attention: nn.Module, packed: Tensor) -> tuple[Tensor, Tensor]:
    """All queries, then all keys, then all values; fewer keys than queries where heads share them."""
    width = len(packed) // 3
    heads, size = _heads(attention)
    if heads and len(packed) > heads * size and (len(packed) - heads * size) % 2 == 0:
        width = heads * size
    return packed[:width], packed[width : width + (len(packed) - width) // 2]


def _by_heads(attention: nn.Module, packed: Tensor) -> tuple[Tensor, Tensor] | None:
    """Rows by groups of heads: a group's queries, its one key, its one value (GPT-NeoX, Bloom, Falcon).

    Without shared keys a group is one head. ``None`` where the numbers of heads and rows do not fit together.
    """
    heads, size = _heads(attention)
    if not heads or len(packed) % size or (len(packed) // size - heads) % 2:
        return None
    groups = (len(packed) // size - heads) // 2
    if groups < 1 or heads % groups:
        return None
    grouped = packed.unflatten(0, (groups, heads // groups + 2, size))
    return grouped[:, :-2], grouped[:, -2]


def _heads(attention: nn.Module) -> tuple[int, int]:
    """Number of heads and width of one, by the names they go by; (0, 0) if they are not told."""
    places = (attention, getattr(attention, "config", None))
    heads = _told(places, ("num_heads", "num_attention_heads", "n_heads", "n_head"))
    width = _told(places, ("embed_dim", "hidden_size", "d_model", "n_embd", "dim"))
    size = _told(places, ("head_dim", "head_size", "attention_head_size")) or (width // heads if heads else 0)
    return (heads, size) if heads and size else (0, 0)


def _told(places: tuple[Any, ...], names: tuple[str, ...]) -> int:
    values = (getattr(place, name, None) for place in places for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), 0)


def _scale_scores(attention: nn.Module, factor: float) -> None:
    """Multiply the scores by ``factor``.

    Its root goes to the queries and to the keys; where one side is far larger, that side gives first.
    """
    sides = _sides(attention)
    sizes = [max((float(v.detach().square().mean().sqrt()) for v in side.weights), default=0.0) for side in sides]
    shares = [math.sqrt(factor)] * 2
    if min(sizes) > 0 and max(sizes) > SIZE_OUTLIER * min(sizes) and factor < 1:
        first = max(factor, min(sizes) / max(sizes))
        shares = [math.sqrt(factor / first)] * 2
        shares[sizes.index(max(sizes))] *= first
    with torch.no_grad():
        for side, share in zip(sides, shares, strict=True):
            for view in side.weights + side.biases:
                view.mul_(share)
