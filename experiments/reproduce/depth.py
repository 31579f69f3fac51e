"""[J] sections 3 and 4: bound, local constant and gradients of ResNet and Transformer while depth goes from 2 to 96."""

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
from lipadvisor.modules import DotProductAttention, ResNetBlock, TransformerBlock, constant_of, local_lipschitz

__all__ = ["run"]

CLAIM = (
    "[J]: the bound grows exponentially with depth; skips keep gradients alive at depths where a plain "
    "stack of sigmoids has lost them"
)
DEPTHS = (2, 4, 8, 16, 32, 64, 96)
DIM = 16


def _block(kind: str) -> nn.Module:
    if kind == "ResNet":
        return ResNetBlock(8, 8)
    if kind == "plain sigmoid":
        return nn.Sequential(nn.Linear(DIM, DIM), nn.Sigmoid())
    return TransformerBlock(DIM, DotProductAttention(DIM, 2), order=kind.split("-")[0].removeprefix("Transformer "))


KINDS: dict[str, Callable[[], Tensor]] = {
    "ResNet": lambda: torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(1)),
    "Transformer pre-norm": lambda: torch.randn(2, 6, DIM, generator=torch.Generator().manual_seed(1)),
    "Transformer post-norm": lambda: torch.randn(2, 6, DIM, generator=torch.Generator().manual_seed(1)),
    "plain sigmoid": lambda: torch.randn(4, DIM, generator=torch.Generator().manual_seed(1)),
}


def _measured(kind: str, depth: int, x: Tensor, seed: int) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(*(_block(kind) for _ in range(depth))).double()
    x = x.double()  # the plain stack falls below what float32 can hold
    log_bound, place = 0.0, x
    for block in model:
        log_bound += constant_of(block, place).log
        with torch.no_grad():
            place = block(place)
    z = x.clone().requires_grad_(True)
    y = model(z)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=y.dtype)
    (gradient,) = torch.autograd.grad(y, z, cotangent / cotangent.norm())
    return {
        "kind": kind,
        "depth": depth,
        "log_bound": log_bound,
        "log_local": math.log(max(local_lipschitz(model, x, steps=8, restarts=1).value, 1e-300)),
        "log_gradient": math.log(max(float(gradient.norm()), 1e-300)),
    }


def run(settings: Settings) -> Verdict:
    """Measure every kind at every depth."""
    depths = DEPTHS[:3] if settings.quick else DEPTHS
    rows = []
    for kind, make in KINDS.items():
        for depth in depths:
            part = partial(_measured, kind, depth, make(), settings.seed)
            rows.append(last := kept_part(settings, f"{kind} {depth}", "", part))
            settings.progress(
                f"{kind}, depth {depth}: bound e^{last['log_bound']:.1f}, local e^{last['log_local']:.1f}"
            )
    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in KINDS}
    rate = {kind: slope([r["depth"] for r in part], [r["log_bound"] for r in part]) for kind, part in by_kind.items()}
    local = {kind: slope([r["depth"] for r in part], [r["log_local"] for r in part]) for kind, part in by_kind.items()}
    kept = {kind: part[-1]["log_gradient"] - part[0]["log_gradient"] for kind, part in by_kind.items()}
    skips = [kind for kind in KINDS if kind != "plain sigmoid"]
    below = all(row["log_local"] <= row["log_bound"] + 1e-3 for row in rows)
    grows = all(rate[kind] > 0 for kind in skips)
    alive = all(kept[kind] > -math.log(1e3) for kind in skips)
    span = depths[-1] - depths[0]
    lost = kept["plain sigmoid"] < (-math.log(1e3) if span > 8 else -1.0)
    keep(settings, {"rows": rows}, _figure(by_kind))
    finding = (
        "nats of the bound per block: "
        + ", ".join(f"{kind} {rate[kind]:.2f}" for kind in KINDS)
        + "; of the local constant: "
        + ", ".join(f"{kind} {local[kind]:.3f}" for kind in KINDS)
        + f"; ln of the gradient from depth {depths[0]} to {depths[-1]}: "
        + ", ".join(f"{kind} {kept[kind]:+.1f}" for kind in KINDS)
    )
    figures = {
        "bound_per_block": rate,
        "local_per_block": local,
        "log_gradient_change": kept,
        "local_below_bound": below,
    }
    return Verdict("depth", CLAIM, below and grows and alive and lost, figures, finding)


_TICKS = (-100, -50, -20, -10, -5, 0, 5, 10)


def _figure(by_kind: dict[str, list[dict[str, Any]]]) -> Figure:
    figure = Figure(figsize=(10.0, 3.6), layout="constrained")
    titles = {"log_bound": "log bound", "log_local": "log local constant", "log_gradient": "log gradient at the input"}
    for axes, (key, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for kind, part in by_kind.items():
            axes.plot([row["depth"] for row in part], [row[key] for row in part], ".-", label=kind)
        axes.set_title(f"{title}, nats" + ("" if key == "log_bound" else ", linear within 5"), fontsize=9)
        axes.set_xscale("log", base=2)
        depths = sorted({row["depth"] for part in by_kind.values() for row in part})
        axes.set_xticks(depths, [str(depth) for depth in depths])
        axes.set_xlabel("blocks")
        axes.grid(alpha=0.25)
        if key != "log_bound":
            axes.set_yscale("symlog", linthresh=5)
            axes.set_yticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
            axes.set_yticks([], minor=True)
    figure.axes[0].legend(fontsize=7, frameon=False)
    return figure
