"""Applying the cures of findings that change the model; those that change the plan (warmup, lr) are the caller's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lipadvisor.modules.diagnosis import KEYS, PACKED, QUERIES, Finding
from lipadvisor.modules.initialization import lsuv, weight_matrices

__all__ = ["apply_cures", "query_key_views"]


def apply_cures(model: nn.Module, findings: Iterable[Finding], batch: Any = None) -> Callable[[], None]:
    """Change the model as the findings advise and return what takes it back.

    Args:
        model: changed in place.
        findings: of an audit of this model; cures of the plan (``warmup``) are passed over.
        batch: needed where a cure is data-dependent.

    Raises:
        ValueError: a data-dependent cure and no batch; nothing has been changed then.
    """
    findings = tuple(findings)
    if batch is None and any(_needs_batch(finding) for finding in findings):
        raise ValueError("apply_cures(batch=...) must be given: one of the cures is data-dependent.")
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
    views: list[Tensor] = []
    if isinstance(attention, nn.MultiheadAttention) and attention.in_proj_weight is not None:
        width = attention.embed_dim
        views.append(attention.in_proj_weight[: 2 * width])
        if attention.in_proj_bias is not None:
            views.append(attention.in_proj_bias[: 2 * width])
        return views
    for name, module in attention.named_modules():
        own = name.rpartition(".")[2]
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            continue
        if own in QUERIES + KEYS:
            views.append(weight)
            bias = getattr(module, "bias", None)
            if isinstance(bias, Tensor):
                views.append(bias)
        elif own in PACKED:
            transposed = type(module).__name__ == "Conv1D"
            width = weight.shape[1 if transposed else 0] // 3 * 2
            views.append(weight[:, :width] if transposed else weight[:width])
    return views


def _scale_scores(attention: nn.Module, factor: float) -> None:
    """Multiply the scores by ``factor``: its root goes to the queries and to the keys."""
    with torch.no_grad():
        for view in query_key_views(attention):
            view.mul_(math.sqrt(factor))
