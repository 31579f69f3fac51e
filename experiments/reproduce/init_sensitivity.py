"""[J] section 5: a Transformer is more sensitive to the scale of its initialization than a ResNet.

Both see the same digits: the ResNet as images, the Transformer as one token for each row. Every weight matrix of the
default initialization is multiplied by one factor; everything else stays, the learning rate is the best of a few at
factor 1.
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
from lipadvisor.experiments.reproduce.images import Images, load_images
from lipadvisor.experiments.reproduce.kept import keep, kept_part, plain_log
from lipadvisor.modules import ResNetBlock, TransformerBlock

__all__ = ["run"]

CLAIM = "[J]: a ResNet trains from a wider range of initialization scales than a Transformer"
FACTORS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
RATES = (3e-4, 1e-3, 3e-3)
BATCH = 64


class Rows(nn.Module):
    """Images to tokens: one for each row, with learned places."""

    def __init__(self, shape: tuple[int, int, int], dim: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.embed = nn.Linear(channels * width, dim)
        self.places = nn.Parameter(torch.zeros(height, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, C, H, W) to (batch, H, dim)."""
        tokens: Tensor = self.embed(x.transpose(1, 2).flatten(2)) + self.places
        return tokens


class Mean(nn.Module):
    """Average over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, N, dim) to (batch, dim)."""
        return x.mean(1)


def _resnet(images: Images) -> nn.Module:
    channels = images.shape[0]
    blocks = [ResNetBlock(channels, 12), ResNetBlock(12, 24, 2), ResNetBlock(24, 24)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, images.classes))


def _transformer(images: Images, order: str) -> nn.Module:
    blocks = [TransformerBlock(32, order=order) for _ in range(3)]
    return nn.Sequential(Rows(images.shape, 32), *blocks, Mean(), nn.Linear(32, images.classes))


KINDS: dict[str, Callable[[Images], nn.Module]] = {
    "ResNet": _resnet,
    "Transformer post-norm": lambda images: _transformer(images, "post"),
    "Transformer pre-norm": lambda images: _transformer(images, "pre"),
    "Transformer, no norm": lambda images: _transformer(images, "none"),
}


def _trained(kind: str, images: Images, factor: float, lr: float, steps: int, seed: int) -> float:
    """Return the test accuracy after ``steps`` of Adam."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = KINDS[kind](images)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        chosen = torch.randint(0, len(images.train_targets), (BATCH,), generator=generator)
        loss = nn.functional.cross_entropy(model(images.train_inputs[chosen]), images.train_targets[chosen])
        if not torch.isfinite(loss):
            return 0.0
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        guessed = model.eval()(images.test_inputs).argmax(1)
    return float((guessed == images.test_targets).float().mean())


def run(settings: Settings) -> Verdict:
    """Train every kind from every factor."""
    images = load_images(settings.data)
    factors = FACTORS[1:-1:2] if settings.quick else FACTORS
    steps, seeds = (20, 1) if settings.quick else (150, 2)
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        rates = RATES[1:2] if settings.quick else RATES

        def reached(factor: float, lr: float, seed: int, kind: str = kind) -> float:
            name, made = f"{kind} x{factor:g} lr {lr:g} seed {seed}", partial(_trained, kind, images, factor, lr)
            return float(kept_part(settings, name, (factor, lr, steps), partial(made, steps, seed)))

        lr = max(rates, key=lambda rate: reached(1.0, rate, settings.seed))
        for factor in factors:
            found = [reached(factor, lr, settings.seed + s) for s in range(seeds)]
            rows.append({"kind": kind, "factor": factor, "lr": lr, "accuracy": sum(found) / len(found)})
            settings.progress(f"{kind}, init x{factor:g}: accuracy {rows[-1]['accuracy']:.3f}")
    loss_of_accuracy = {kind: _sensitivity([row for row in rows if row["kind"] == kind]) for kind in KINDS}
    decades = {kind: _decades([row for row in rows if row["kind"] == kind]) for kind in KINDS}
    transformers = [kind for kind in KINDS if kind != "ResNet"]
    agrees = all(loss_of_accuracy[kind] > loss_of_accuracy["ResNet"] for kind in transformers)
    keep(settings, {"rows": rows}, _figure(rows))
    finding = (
        f"accuracy lost on average over factors {factors[0]:g} to {factors[-1]:g}, against each one's best: "
        + ", ".join(f"{kind} {loss_of_accuracy[kind]:.3f}" for kind in KINDS)
        + "; decades of the factor within 0.05 of the best: "
        + ", ".join(f"{kind} {decades[kind]:.1f}" for kind in KINDS)
    )
    figures = {"mean_loss_of_accuracy": loss_of_accuracy, "decades_within_5_points": decades}
    return Verdict("init-sensitivity", CLAIM, agrees, figures, finding)


def _sensitivity(rows: list[dict[str, Any]]) -> float:
    best: float = max(row["accuracy"] for row in rows)
    lost: float = sum(best - row["accuracy"] for row in rows) / len(rows)
    return lost


def _decades(rows: list[dict[str, Any]]) -> float:
    best = max(row["accuracy"] for row in rows)
    good = [row["factor"] for row in rows if row["accuracy"] >= best - 0.05]
    return math.log10(max(good) / min(good))


def _figure(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.subplots()
    for kind in KINDS:
        part = [row for row in rows if row["kind"] == kind]
        axes.plot([row["factor"] for row in part], [row["accuracy"] for row in part], ".-", label=kind)
    axes.set_xscale("log")
    plain_log(axes.xaxis, (1.0, 3.0))
    axes.set_xlabel("factor on every weight matrix of the default initialization")
    axes.set_ylabel("test accuracy (0: diverged)")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    return figure
