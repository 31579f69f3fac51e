"""[D] Fig 5: the predicted variance of the bound and its noise-curvature scale as one over the batch size."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from lipadvisor.dynamics import coefficients
from lipadvisor.experiments.reproduce import Settings, Verdict
from lipadvisor.experiments.reproduce.convnet import conv_net, initialize
from lipadvisor.experiments.reproduce.figures import keep_figure
from lipadvisor.experiments.reproduce.full_batch import full_batch_terms
from lipadvisor.experiments.reproduce.images import Images, load_images
from lipadvisor.experiments.reproduce.kept import kept_part
from lipadvisor.experiments.reproduce.norms import input_shapes, log_norms
from lipadvisor.experiments.reproduce.replicas import Replicas
from lipadvisor.experiments.reproduce.training import Recipe, Run, train
from lipadvisor.probe import Probe
from lipadvisor.report.style import COLOURS
from lipadvisor.terms import Array
from lipadvisor.trajectory import write_json

__all__ = ["exponent", "measured_scaling", "run"]

CLAIM = "[D] Fig 5: Var[Z] and kappa_Z scale as 1/M with the batch size M."
_WITHIN = 0.1  # of the exponent -1
_LR = 0.05


def run(settings: Settings) -> Verdict:
    """Rerun the figure."""
    found = measured_scaling(settings)
    write_json(settings.out / "data.json", found)
    keep_figure(settings.out, lambda made: _draw(made, found), 10.0, 3.6)
    figures = {stage: row["exponents"] for stage, row in found.items()}
    exponents = [value for row in figures.values() for value in row.values()]
    worst = max(abs(value + 1.0) for value in exponents)
    finding = "Fitted exponents of the batch size: " + "; ".join(
        f"{stage}: predicted variance {row['variance']:.3f}, kappa_Z {row['noise_curvature']:.3f}, "
        f"observed variance over replicas {row['observed']:.3f}"
        for stage, row in figures.items()
    )
    return Verdict("batch-size", CLAIM, bool(worst <= _WITHIN), figures, finding + ".")


def exponent(size_B: Array, value_B: Array) -> float:
    """Return the slope of ``ln value`` against ``ln size``, by least squares."""
    return float(np.polyfit(np.log(size_B), np.log(value_B), 1)[0])


def measured_scaling(settings: Settings) -> dict[str, Any]:
    """Return, for each checkpoint, variances and noise-curvatures by batch size, with the fitted exponents; kept."""
    images = load_images(settings.data)
    stages = {"early": 20} if settings.quick else {"early": 40, "middle": 200, "late": 800}
    found: dict[str, Any] = {}
    for stage, steps in stages.items():
        found[stage] = kept_part(settings, stage, (steps, _LR), partial(_stage, settings, images, steps))
    return found


def _stage(settings: Settings, images: Images, steps: int) -> dict[str, Any]:
    def build() -> nn.Module:
        model = conv_net(images.shape, images.classes, width=8 if images.name == "digits" else None)
        initialize(model, "kaiming")
        return model

    recipe = Recipe("sgd", steps, lr=_LR, seed=settings.seed, level="norms", interval=10**9)
    checkpoint = train(recipe, images, build, lambda step, loss, terms: None)
    sizes = (8, 32, 128) if settings.quick else (8, 16, 32, 64, 128, 256)
    rows = [_at_size(checkpoint, images, size, settings) for size in sizes]
    size_B = np.array(sizes, dtype=np.float64)
    exponents = {
        kind: exponent(size_B, np.array([row[kind] for row in rows]))
        for kind in ("variance", "noise_curvature", "observed")
    }
    return {"sizes": list(sizes), "rows": rows, "exponents": exponents}


def _at_size(checkpoint: Run, images: Images, size: int, settings: Settings) -> dict[str, float]:
    """Return ``lr lam_Z^2`` and ``kappa_Z`` as batches of ``size`` show them, and the spread of real steps.

    All samples are drawn independently: without replacement the variance would fall faster than ``1 / M``.
    """
    model, optimizer = checkpoint.model, checkpoint.optimizer
    generator = torch.Generator().manual_seed(settings.seed + size)
    batches, replicas = (4, 32) if settings.quick else (max(4, 256 // size), 192)
    variance, curvature = [], []
    for _ in range(batches):
        rows = torch.randint(0, len(images.train_targets), (size,), generator=generator)
        inputs, targets = images.train_inputs[rows], images.train_targets[rows]
        rates = coefficients(full_batch_terms(model, optimizer, inputs, targets, images.classes, _LR))
        variance.append(_LR * rates.diffusion**2)
        curvature.append(rates.noise_curvature)
    return {
        "variance": float(np.mean(variance)),
        "noise_curvature": float(np.mean(curvature)),
        "observed": _observed(checkpoint, images, size, replicas, settings.seed),
    }


def _observed(checkpoint: Run, images: Images, size: int, replicas: int, seed: int) -> float:
    """Return the variance of Z over replicas after one real step each, nats^2."""
    model, optimizer = checkpoint.model, checkpoint.optimizer
    stacked = Replicas(
        model, optimizer, replicas, images.train_inputs, images.train_targets, images.classes, seed + 31 * size
    )
    stacked.step(size, _LR, replace=True)
    layers = Probe(model, optimizer).layers
    shapes = input_shapes(model, layers, images.train_inputs[:2])
    Z_R = sum(
        log_norms(layer, shape, stacked.kernels(layer, model)) for layer, shape in zip(layers, shapes, strict=True)
    )
    return float(np.var(Z_R, ddof=1))


def _draw(made: Figure, found: dict[str, Any]) -> None:
    axes = made.subplots(1, 3)
    titles = {
        "variance": ("predicted Var[Z] of one step", "nats$^2$"),
        "observed": ("observed over replicas", "nats$^2$"),
        "noise_curvature": ("noise-curvature kappa_Z", "nats per tau"),
    }
    for ax, (kind, (title, unit)) in zip(axes, titles.items(), strict=True):
        for colour, (stage, row) in zip(COLOURS, found.items(), strict=False):
            sizes = np.array(row["sizes"], dtype=np.float64)
            value = np.array([cell[kind] for cell in row["rows"]])
            label = f"{stage}: exponent {row['exponents'][kind]:.2f}"
            ax.plot(sizes, value, color=colour, marker="o", linewidth=0.8, label=label)
            middle = np.exp(np.mean(np.log(value)) + np.mean(np.log(sizes)))
            ax.plot(sizes, middle / sizes, color=COLOURS[7], linestyle=":", linewidth=1.0)
        ax.set(title=title, xlabel="batch size M (dotted: 1/M)", ylabel=unit, xscale="log", yscale="log")
        ax.legend(fontsize=7)
