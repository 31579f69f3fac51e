"""[J] section 3: the Lipschitz constant of each module, simulated, against its formula.

The simulation climbs: gradient ascent on the Jacobian's top singular value from starts of many sizes. It can only
stay below the constant; where the formula claims to be exact it has to come close.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lipadvisor.experiments.reproduce import Settings, Verdict
from lipadvisor.experiments.reproduce.kept import keep, kept_part
from lipadvisor.modules import (
    CenterNorm,
    DropPath,
    FeedForward,
    Kind,
    L2Attention,
    Residual,
    ResNetBlock,
    ScaledCosineAttention,
    TransformerBlock,
    constant_of,
)

__all__ = ["run"]

CLAIM = "[J]: modules have the Lipschitz constants of the table; none is exceeded, and the exact ones are met"
MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(8, 6), (8,)),
    "Conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 6)),
    "Conv2d, stride 2": (lambda: nn.Conv2d(3, 4, 3, 2, 1), (3, 6, 6)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 2, 3, 2), (3, 4, 4)),
    "ReLU": (nn.ReLU, (8,)),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.1), (8,)),
    "ELU": (lambda: nn.ELU(1.5), (8,)),
    "SELU": (nn.SELU, (8,)),
    "GELU": (nn.GELU, (8,)),
    "SiLU": (nn.SiLU, (8,)),
    "Mish": (nn.Mish, (8,)),
    "Hardswish": (nn.Hardswish, (8,)),
    "Sigmoid": (nn.Sigmoid, (8,)),
    "Tanh": (nn.Tanh, (8,)),
    "Softplus": (nn.Softplus, (8,)),
    "Softmax": (lambda: nn.Softmax(-1), (6,)),
    "LogSoftmax": (lambda: nn.LogSoftmax(-1), (6,)),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), (2, 6, 6)),
    "MaxPool2d, overlapping": (lambda: nn.MaxPool2d(3, 2, 1), (1, 6, 6)),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), (2, 6, 6)),
    "global average": (lambda: nn.AdaptiveAvgPool2d(1), (2, 6, 6)),
    "BatchNorm (eval)": (lambda: nn.BatchNorm1d(6), (6,)),
    "CenterNorm": (lambda: CenterNorm(6), (6,)),
    "LayerNorm (worst case)": (lambda: nn.LayerNorm(6), (6,)),
    "RMSNorm (worst case)": (lambda: nn.RMSNorm(6, eps=1e-5), (6,)),
    "GroupNorm (worst case)": (lambda: nn.GroupNorm(2, 6), (6,)),
    "Dropout (eval)": (nn.Dropout, (6,)),
    "residual, Linear": (lambda: Residual(nn.Linear(6, 6)), (6,)),
    "residual 0.1, Linear": (lambda: Residual(nn.Linear(6, 6), 0.1), (6,)),
    "feed-forward": (lambda: FeedForward(6, 8), (6,)),
    "Linear, weight norm": (lambda: parametrizations.weight_norm(nn.Linear(8, 6)), (8,)),
    "Linear, spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(8, 6)), (8,)),
    "InstanceNorm (worst case)": (lambda: nn.InstanceNorm1d(3, affine=True), (3, 6)),
    "DropPath (eval)": (lambda: DropPath(0.3), (6,)),
    "RNN cell": (lambda: nn.RNNCell(4, 6), (4,)),
    "ResNet block (eval)": (lambda: ResNetBlock(2, 3, 2), (2, 6, 6)),
    "Transformer block (L2, CenterNorm)": (lambda: TransformerBlock(4, L2Attention(4), 6, norm=CenterNorm), (4, 4)),
    "L2 attention": (lambda: L2Attention(4), (5, 4)),
    "scaled-cosine attention": (lambda: ScaledCosineAttention(4, tau=2.0, eps=0.1), (5, 4)),
}
_WORST = tuple(name for name in MODULES if name.endswith("(worst case)"))


def _randomized(build: Callable[[], nn.Module], generator: torch.Generator, worst: bool) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # building draws from the global generator
        module = build().double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / math.sqrt(fan_in)
            parameter.copy_(torch.full_like(parameter, float(drawn.flatten()[0])) if worst else drawn)
    return module


def simulated(module: nn.Module, shape: tuple[int, ...], generator: torch.Generator, steps: int) -> float:
    """Return the largest Jacobian norm that was met, from starts of sizes 1e-4 to 1e2 and from a spike at each place.

    A spike wins every window of a pooling that holds it; where the Jacobian is constant around a start, nothing climbs.
    """
    best = 0.0
    for power in range(-4, 3):
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0**power
        best = max(best, _climb(module, x.requires_grad_(True), steps))
    for place in range(math.prod(shape)):
        x = torch.zeros(math.prod(shape), dtype=torch.float64)
        x[place] = 1.0
        best = max(best, _climb(module, x.reshape(shape).requires_grad_(True), 1))
    return best


def _climb(module: nn.Module, x: Tensor, steps: int) -> float:
    best = 0.0
    optimizer = torch.optim.Adam([x], lr=0.1 * max(float(x.detach().abs().max()), 0.1))
    for _ in range(steps):
        J = torch.autograd.functional.jacobian(lambda z: module(z[None])[0], x, create_graph=True)
        norm = torch.linalg.matrix_norm(J.reshape(-1, x.numel()), 2)
        best = max(best, float(norm.detach()))
        if not norm.requires_grad:
            break
        (slope,) = torch.autograd.grad(norm, x, allow_unused=True)
        if slope is None or not torch.isfinite(slope).all() or not slope.any():
            break
        x.grad = -slope
        optimizer.step()
    return best


def _simulated_row(name: str, generator: torch.Generator, quick: bool) -> dict[str, Any]:
    """Return the row of one module, and where it leaves the generator, which the next one goes on with."""
    build, shape = MODULES[name]
    module = _randomized(build, generator, name in _WORST)
    like = torch.zeros((1, *shape), dtype=torch.float64)
    constant = constant_of(module) if name in _WORST else constant_of(module, like)
    found = simulated(module, shape, generator, 10 if quick else 60)
    row = {"module": name, "formula": constant.value, "simulated": found, "kind": str(constant.kind)}
    return {"row": row, "generator_after": generator.get_state().numpy().tobytes().hex()}


def run(settings: Settings) -> Verdict:
    """Simulate every module of the table."""
    generator = torch.Generator().manual_seed(settings.seed)
    names = list(MODULES)[::6] if settings.quick else list(MODULES)
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(names, 1):
        part = kept_part(settings, f"{index} {name}", "", partial(_simulated_row, name, generator, settings.quick))
        generator.set_state(torch.frombuffer(bytearray.fromhex(part["generator_after"]), dtype=torch.uint8))
        rows.append(row := part["row"])
        told = f"{row['simulated']:.4g} of {row['formula']:.4g} ({row['kind']})"
        settings.progress(f"{index}/{len(names)} {name}: {told}")
    ratios = {row["module"]: row["simulated"] / row["formula"] for row in rows}
    exact = {row["module"]: ratios[row["module"]] for row in rows if row["kind"] == Kind.EXACT}
    exceeded = [name for name, ratio in ratios.items() if ratio > 1 + 1e-6]
    missed = [name for name, ratio in exact.items() if ratio < 0.99]
    keep(settings, {"rows": rows}, _figure(rows))
    agrees = not exceeded and not missed
    finding = (
        f"{len(rows) - len(exceeded)} of {len(rows)} constants hold, {len(exact) - len(missed)} of {len(exact)} exact "
        f"ones are met within 1 %; the loosest bound is {1 / min(ratios.values()):.1f} times what was found"
        + (f"; exceeded: {', '.join(exceeded)}" if exceeded else "")
        + (f"; not met: {', '.join(missed)}" if missed else "")
    )
    figures = {
        "exceeded": len(exceeded),
        "not_met": len(missed),
        "exact": len(exact),
        "modules": len(rows),
        "lowest_exact_ratio": min(exact.values()),
        "highest_ratio": max(ratios.values()),
    }
    return Verdict("module-constants", CLAIM, agrees, figures, finding)


def _figure(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(7.0, 0.6 + 0.23 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for kind, colour, label in ((Kind.EXACT, "C0", "exact"), (Kind.UPPER, "C1", "upper bound")):
        places = [y for y, row in enumerate(rows) if row["kind"] == kind]
        ratios = [rows[y]["simulated"] / rows[y]["formula"] for y in places]
        axes.plot(ratios, places, "o", color=colour, ms=5, label=label)
    axes.axvline(1.0, color="0.4", lw=0.8)
    axes.set_yticks(range(len(rows)), [row["module"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    lowest = min(row["simulated"] / row["formula"] for row in rows)
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if tick > lowest / 2]
    axes.set_xlim(lowest / 1.3, 1.2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("simulated constant / formula")
    axes.legend(fontsize=8, frameon=False, loc="center left")
    axes.grid(alpha=0.25, which="both")
    return figure
