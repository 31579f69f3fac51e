"""[D], abstract: the initialization sets where the bound starts, and shapes how it grows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import nn

from lipadvisor.experiments.reproduce import Settings, Verdict
from lipadvisor.experiments.reproduce.convnet import conv_net, initialize
from lipadvisor.experiments.reproduce.figures import keep_figure
from lipadvisor.experiments.reproduce.images import Images, load_images
from lipadvisor.experiments.reproduce.run_log import RunLog, kept_run
from lipadvisor.experiments.reproduce.training import Recipe, steps_for
from lipadvisor.report.style import COLOURS
from lipadvisor.trajectory import write_json

__all__ = ["run"]

CLAIM = "[D], abstract: the initialization shapes the bound: K(t) keeps the order of K(0), and small starts grow most."
_KINDS = (
    ("pytorch", 1.0),
    ("xavier", 1.0),
    ("orthogonal", 1.0),
    ("kaiming", 0.5),
    ("kaiming", 1.0),
    ("kaiming", 1.5),
)
# Largest singular value of a square Gaussian matrix: 2 sigma sqrt(n); uniform weights of the same variance likewise.
_EXPECTED = {"kaiming": 2.0 * math.sqrt(2.0), "xavier": 2.0, "orthogonal": 1.0, "pytorch": 2.0 / math.sqrt(3.0)}
_AGREES = 0.6  # rank correlations


def run(settings: Settings) -> Verdict:
    """Rerun the experiment."""
    images = load_images(settings.data)
    steps = 60 if settings.quick else steps_for(images, 1000)
    kinds = _KINDS[:3] if settings.quick else _KINDS
    logs = {f"{kind} x {gain:g}": _one(settings, images, kind, gain, steps) for kind, gain in kinds}
    rows: dict[str, Any] = {}
    for name, log in logs.items():
        Z = log.array("network_log_norm")
        rows[name] = {
            "start": float(Z[0]),
            "end": float(Z[-1]),
            "growth": float(Z[-1] - Z[0]),
            "loss": float(np.mean(log.loss_T[-50:])),
            "test_accuracy": log.end["test_accuracy"],
        }
    start = [row["start"] for row in rows.values()]
    order = float(spearmanr(start, [row["end"] for row in rows.values()]).statistic)
    growth = float(spearmanr(start, [row["growth"] for row in rows.values()]).statistic)
    square = _square(settings.seed, 200 if settings.quick else 800)
    figures = {"order": order, "growth": growth, "runs": rows, "square": square}
    write_json(settings.out / "data.json", figures)
    keep_figure(settings.out, lambda made: _draw(made, logs), 9.0, 3.8)
    listed = ", ".join(f"{name} {row['start']:.2f} to {row['end']:.2f}" for name, row in rows.items())
    worst = max(abs(row["measured"] / row["expected"] - 1.0) for row in square.values())
    finding = (
        f"ln K over {steps} steps: {listed}. Rank correlation of start and end {order:.2f}, of start and growth "
        f"{growth:.2f}. Largest singular values of square matrices are within {worst:.1%} of theory."
    )
    return Verdict("initialization", CLAIM, order >= _AGREES and growth <= -_AGREES, figures, finding)


def _one(settings: Settings, images: Images, kind: str, gain: float, steps: int) -> RunLog:
    def build() -> nn.Module:
        model = conv_net(images.shape, images.classes)
        initialize(model, kind, gain)
        return model

    recipe = Recipe("sgd", steps, seed=settings.seed, level="norms", interval=10)
    path = settings.out / "runs" / f"{kind}-{gain:g}.npz"
    return kept_run(path, recipe, images, build, settings.progress, f"convnet {kind} {gain}")


def _square(seed: int, side: int) -> dict[str, dict[str, float]]:
    """Return the largest singular value of a square layer under each initialization, beside its expectation."""
    found = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for kind, expected in _EXPECTED.items():
            layer = nn.Linear(side, side)
            initialize(layer, kind)
            found[kind] = {"measured": float(torch.linalg.svdvals(layer.weight.detach())[0]), "expected": expected}
    return found


def _draw(made: Figure, logs: dict[str, RunLog]) -> None:
    left, right = made.subplots(1, 2)
    for colour, (name, log) in zip(COLOURS, logs.items(), strict=False):
        left.plot(log.array("step"), log.array("network_log_norm"), color=colour, label=name)
        width = min(25, len(log.loss_T))
        smooth = np.convolve(log.loss_T, np.ones(width) / width, mode="valid")
        right.plot(np.arange(len(smooth)), smooth, color=colour, linewidth=1.0)
    left.set(title="the bound", xlabel="step", ylabel="ln K, nats")
    left.legend(title="initialization")
    right.set(title="training loss, smoothed", xlabel="step", ylabel="nats")
