"""[J] section 3: dot-product attention has no Lipschitz constant; L2 and scaled-cosine attention keep theirs.

The inputs are those of Kim et al.'s proof (arXiv 2006.04710, Thm 3.1): one token at the origin sees the others with
equal weight, and its Jacobian holds their covariance, which grows with the square of their size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lipadvisor.experiments.reproduce import Settings, Verdict
from lipadvisor.experiments.reproduce.kept import keep, kept_part, slope
from lipadvisor.modules import DotProductAttention, L2Attention, ScaledCosineAttention, constant_of, jacobian_of

__all__ = ["run"]

CLAIM = (
    "[J]: the Jacobian of dot-product attention grows without bound with inputs and weights; L2 and "
    "scaled-cosine attention stay below constants"
)
DIM, HEADS = 8, 2
KINDS: dict[str, Callable[[], nn.Module]] = {
    "dot-product": lambda: DotProductAttention(DIM, HEADS),
    "L2": lambda: L2Attention(DIM, HEADS),
    "scaled cosine": lambda: ScaledCosineAttention(DIM, HEADS, tau=4.0, eps=1e-2),
}
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
LENGTHS = (2, 4, 8, 16, 32, 64)


def _module(kind: str, seed: int, scale: float = 1.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # building draws from the global generator
        module = KINDS[kind]().double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / math.sqrt(DIM)
            parameter.copy_(drawn * (scale if name.startswith(("query", "key")) else 1.0))
    return module


def _tokens(count: int, size: float, seed: int) -> Tensor:
    x = torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = size * torch.nn.functional.normalize(x, dim=-1)
    x[0] = 0
    return x


def _row(kind: str, sweep: str, at: float, module: nn.Module, x: Tensor) -> dict[str, Any]:
    norm = float(torch.linalg.matrix_norm(jacobian_of(module, x), 2))
    bound = math.inf if kind == "dot-product" else constant_of(module, x[None]).value
    return {"kind": kind, "sweep": sweep, "at": at, "jacobian": norm, "bound": bound}


def _rows(kind: str, seed: int, lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    plain = _module(kind, seed)
    rows = [_row(kind, "size of the inputs", s, plain, _tokens(8, s, seed)) for s in SIZES]
    rows += [_row(kind, "scale of queries and keys", s, _module(kind, seed, s), _tokens(8, 4.0, seed)) for s in SCALES]
    return rows + [_row(kind, "tokens", n, plain, _tokens(n, 4.0, seed)) for n in lengths]


def run(settings: Settings) -> Verdict:
    """Sweep size of the inputs, weight scale of queries and keys, and sequence length."""
    seeds = range(settings.seed, settings.seed + (2 if settings.quick else 8))
    lengths = LENGTHS[:4] if settings.quick else LENGTHS
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        for seed in seeds:
            rows += kept_part(settings, f"{kind} {seed}", lengths, partial(_rows, kind, seed, lengths))
        settings.progress(f"{kind}: {sum(row['kind'] == kind for row in rows)} Jacobians")
    means = {key: _medians([r for r in rows if (r["kind"], r["sweep"]) == key]) for key in _keys(rows)}
    tail = {kind: _exponent(means[kind, "size of the inputs"][-4:]) for kind in KINDS}
    held = all(row["jacobian"] <= row["bound"] for row in rows)
    tokens = {kind: _exponent(means[kind, "tokens"]) for kind in KINDS}
    scales = {kind: _exponent(means[kind, "scale of queries and keys"][-3:]) for kind in KINDS}
    keep(
        settings,
        {"rows": [{**r, "bound": r["bound"] if math.isfinite(r["bound"]) else None} for r in rows]},
        _figure(means),
    )
    agrees = held and tail["dot-product"] > 1.0 and all(tail[kind] < 0.2 for kind in ("L2", "scaled cosine"))
    finding = (
        "exponent of the Jacobian in the size of the inputs, at large ones: "
        + ", ".join(f"{kind} {tail[kind]:.2f}" for kind in KINDS)
        + "; in the scale of queries and keys: "
        + ", ".join(f"{kind} {scales[kind]:.2f}" for kind in KINDS)
        + "; in the number of tokens: "
        + ", ".join(f"{kind} {tokens[kind]:.2f}" for kind in KINDS)
        + f"; the closed bounds {'hold' if held else 'are BROKEN'} in all {len(rows)} cases"
    )
    figures = {"size_exponent": tail, "scale_exponent": scales, "token_exponent": tokens, "bounds_hold": held}
    return Verdict("attention", CLAIM, agrees, figures, finding)


def _keys(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["kind"], row["sweep"]) for row in rows))


def _medians(rows: list[dict[str, Any]]) -> list[tuple[float, float]]:
    groups: dict[float, list[float]] = {}
    for row in rows:
        groups.setdefault(row["at"], []).append(row["jacobian"])
    return [(at, sorted(values)[len(values) // 2]) for at, values in sorted(groups.items())]


def _exponent(points: list[tuple[float, float]]) -> float:
    return slope([math.log(at) for at, _ in points], [math.log(value) for _, value in points])


def _figure(means: dict[tuple[str, str], list[tuple[float, float]]]) -> Figure:
    figure = Figure(figsize=(10.0, 3.6), layout="constrained")
    sweeps = list(dict.fromkeys(sweep for _, sweep in means))
    for axes, sweep in zip(figure.subplots(1, len(sweeps), sharey=True), sweeps, strict=True):
        for kind in KINDS:
            axes.plot(*zip(*means[kind, sweep], strict=True), ".-", label=kind)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        at = [place for place, _ in means[next(iter(KINDS)), sweep]]
        axes.set_xticks(at, [f"{place:g}" for place in at])
        axes.set_xlabel(sweep)
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("Jacobian norm (median)")
    figure.axes[0].legend(fontsize=8, frameon=False)
    return figure
