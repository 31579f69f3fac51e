"""Applying the cures of findings that change the model; those that change the plan (warmup, lr) are the caller's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lipadvisor.modules.diagnosis import KEYS, PACKED, QUERIES, SIZE_OUTLIER, Finding
from lipadvisor.modules.initialization import lsuv, weight_matrices

__all__ = ["apply_cures", "query_key_views"]


def apply_cures(model: nn.Module, findings: Iterable[Finding], batch: Any = None) -> Callable[[], None]:
    """Change the model as the findings advise and return what takes it back.

    Args:
        model: changed in place.
        findings: of an audit of this model; cures of the plan (``warmup``) are passed over.
        batch: needed where a cure is data-dependent.

    Raises:
        ValueError: a data-dependent cure and no batch, or scores to be scaled in an attention whose queries and keys
            are not recognised; nothing has been changed then.
    """
    findings = tuple(findings)
    if batch is None and any(_needs_batch(finding) for finding in findings):
        raise ValueError("apply_cures(batch=...) must be given: one of the cures is data-dependent.")
    for finding in findings:
        if finding.problem == "attention_logits" and not query_key_views(model.get_submodule(finding.module)):
            raise ValueError(
                f"apply_cures(findings=...) cannot tell the queries and keys of {finding.module!r} by their names; "
                f"scale its scores by {finding.value:.3g} by hand, and leave the finding out."
            )
    before = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    relit = False
    for finding in findings:
        if finding.problem == "init_scale" and finding.value is not None:
            with torch.no_grad():
                weight_matrices(model, embeddings=True)[finding.module].mul_(finding.value)
        elif finding.problem == "attention_logits" and finding.value is not None:
            _scale_scores(model.get_submodule(finding.module), finding.value)
        elif finding.cure.startswith("replace_activation"):
            swapped.append(_swap(model, finding.module))
            relit = True
        elif finding.cure == "lsuv":
            relit = True
    if relit:
        lsuv(model, batch).apply(model)

    def undo() -> None:
        for parent, name, old in swapped:
            setattr(parent, name, old)
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)

    return undo


def _needs_batch(finding: Finding) -> bool:
    return finding.cure == "lsuv" or finding.cure.startswith("replace_activation")


def _swap(model: nn.Module, name: str) -> tuple[nn.Module, str, nn.Module]:
    parent_name, _, own = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    old = getattr(parent, own)
    setattr(parent, own, nn.Tanh())
    return parent, own, old


def query_key_views(attention: nn.Module) -> list[Tensor]:
    """Return the parts of weights (and biases) that make queries and keys, as views; empty if none are recognised."""
    return [view for side in _sides(attention) for view in side]


def _sides(attention: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The views that make queries, and those that make keys: each weight before its bias."""
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    if isinstance(attention, nn.MultiheadAttention) and attention.in_proj_weight is not None:
        for packed in (attention.in_proj_weight, attention.in_proj_bias):
            if packed is not None:
                queries.append(packed[: attention.embed_dim])
                keys.append(packed[attention.embed_dim : 2 * attention.embed_dim])
        return queries, keys
    for name, module in attention.named_modules():
        own = name.rpartition(".")[2]
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            continue
        bias = getattr(module, "bias", None)
        if own in QUERIES + KEYS:
            side = queries if own in QUERIES else keys
            side += [weight, bias] if isinstance(bias, Tensor) else [weight]
        elif own in PACKED:
            _unpack(module, weight, bias, queries, keys)
    return queries, keys


def _unpack(module: nn.Module, weight: Tensor, bias: Any, queries: list[Tensor], keys: list[Tensor]) -> None:
    outputs = weight.T if type(module).__name__ == "Conv1D" else weight
    width = len(outputs) // 3
    for packed in (outputs, bias) if isinstance(bias, Tensor) else (outputs,):
        queries.append(packed[:width])
        keys.append(packed[width : 2 * width])


def _scale_scores(attention: nn.Module, factor: float) -> None:
    """Multiply the scores by ``factor``.

    Its root goes to the queries and to the keys; where one side is far larger, that side gives first.
    """
    sides = _sides(attention)
    sizes = [max((float(v.detach().square().mean().sqrt()) for v in side if v.ndim > 1), default=0.0) for side in sides]
    shares = [math.sqrt(factor)] * 2
    if min(sizes) > 0 and max(sizes) > SIZE_OUTLIER * min(sizes) and factor < 1:
        first = max(factor, min(sizes) / max(sizes))
        shares = [math.sqrt(factor / first)] * 2
        shares[sizes.index(max(sizes))] *= first
    with torch.no_grad():
        for side, share in zip(sides, shares, strict=True):
            for view in side:
                view.mul_(share)
