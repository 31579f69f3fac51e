"""[J] section 6: unequal layer norms hurt SGD, and hardly Adam.

A ReLU network computes the same function when one layer is multiplied by c and another divided by it. Layers are
rescaled so, by factors that spread over more and more decades; function, data and budget stay. Each optimizer gets its
best learning rate at every spread. Losses are geometric means over seeds.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from lipadvisor.experiments.reproduce import Settings, Verdict
from lipadvisor.experiments.reproduce.images import Images, load_images
from lipadvisor.experiments.reproduce.kept import keep, kept_part, plain_log

__all__ = ["run"]

CLAIM = "[J]: unequal layer norms hurt SGD, at any learning rate, more than they hurt Adam"
SPREADS = (0.0, 0.5, 1.0, 1.5, 2.0)  # decades between the largest and the smallest factor
RATES = {
    "SGD": tuple(10.0**e for e in (-4.5, -4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5)),
    "Adam": tuple(10.0**e for e in (-4, -3.5, -3, -2.5, -2, -1.5)),
}
BATCH, WIDTH, LAYERS = 64, 40, 8
ORDER = (5, 2, 7, 0, 3, 6, 1, 4)  # a fixed shuffle of the layers' places between smallest and largest


def network(images: Images, spread: float, seed: int) -> nn.Sequential:
    """Return a ReLU network without biases: the same function at every ``spread``, in decades."""
    sizes = [math.prod(images.shape), *[WIDTH] * (LAYERS - 1), images.classes]
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    with torch.no_grad():
        for i in range(LAYERS):
            with torch.random.fork_rng(devices=[]):  # building draws from the global generator
                layer = nn.Linear(sizes[i], sizes[i + 1], bias=False)
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * math.sqrt(2 / sizes[i]))
            layer.weight.mul_(10.0 ** (spread * (ORDER[i] / (LAYERS - 1) - 0.5)))
            layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _final_loss(images: Images, optimizer: str, spread: float, lr: float, steps: int, seed: int) -> float:
    model = network(images, spread, seed)
    made = (
        torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        if optimizer == "SGD"
        else torch.optim.Adam(model.parameters(), lr=lr)
    )
    generator = torch.Generator().manual_seed(seed)
    last: list[float] = []
    for step in range(steps):
        chosen = torch.randint(0, len(images.train_targets), (BATCH,), generator=generator)
        loss = nn.functional.cross_entropy(model(images.train_inputs[chosen]), images.train_targets[chosen])
        if not torch.isfinite(loss):
            return math.inf
        made.zero_grad()
        loss.backward()
        made.step()
        if step >= steps * 0.8:
            last.append(float(loss.detach()))
    return sum(last) / len(last)


def _mean_loss(images: Images, optimizer: str, spread: float, lr: float, steps: int, seeds: range) -> float:
    """Return the geometric mean of the final losses."""
    losses = [_final_loss(images, optimizer, spread, lr, steps, seed) for seed in seeds]
    return math.exp(sum(math.log(loss) for loss in losses) / len(losses))


def run(settings: Settings) -> Verdict:
    """Train at every spread, with every learning rate."""
    images = load_images(settings.data)
    spreads = SPREADS[::2] if settings.quick else SPREADS
    steps = 30 if settings.quick else 150
    seeds = range(settings.seed, settings.seed + (1 if settings.quick else 3))
    rows: list[dict[str, Any]] = []
    for optimizer, rates in RATES.items():
        for spread in spreads:
            tried = {}
            for lr in rates:
                made = partial(_mean_loss, images, optimizer, spread, lr, steps, seeds)
                tried[lr] = kept_part(settings, f"{optimizer} {spread:g} {lr:.3g}", (lr, steps, seeds), made)
            lr = min(tried, key=tried.__getitem__)
            listed = [{"lr": r, "loss": value if math.isfinite(value) else None} for r, value in tried.items()]
            rows.append({"optimizer": optimizer, "spread": spread, "lr": lr, "loss": tried[lr], "tried": listed})
            settings.progress(f"{optimizer}, {spread} decades: loss {tried[lr]:.4f} at lr {lr:.2g}")
    best = {optimizer: [row["loss"] for row in rows if row["optimizer"] == optimizer] for optimizer in RATES}
    harm = {optimizer: losses[-1] / losses[0] for optimizer, losses in best.items()}
    keep(settings, {"rows": rows}, _figure(rows))
    finding = (
        f"loss with layers {spreads[-1]:g} decades apart over that with equal layers, each at its best rate: "
        f"SGD {harm['SGD']:.2f}, Adam {harm['Adam']:.2f}; SGD over Adam goes from "
        f"{best['SGD'][0] / best['Adam'][0]:.2f} to {best['SGD'][-1] / best['Adam'][-1]:.2f}"
    )
    figures = {"harm": harm, "sgd_over_adam": [s / a for s, a in zip(best["SGD"], best["Adam"], strict=True)]}
    return Verdict("adam-vs-sgd", CLAIM, harm["SGD"] > 1.5 and harm["SGD"] > 1.1 * harm["Adam"], figures, finding)


def _figure(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    losses, rates = figure.subplots(1, 2)
    for optimizer, colour in zip(RATES, ("C3", "C0"), strict=True):
        part = [row for row in rows if row["optimizer"] == optimizer]
        losses.plot([row["spread"] for row in part], [row["loss"] for row in part], "o-", color=colour, label=optimizer)
        for row, alpha in zip(part, (0.25, 0.4, 0.6, 0.8, 1.0), strict=False):
            kept = [t for t in row["tried"] if t["loss"] is not None and t["loss"] < 10]
            label = optimizer if row is part[-1] else None
            rates.plot([t["lr"] for t in kept], [t["loss"] for t in kept], ".-", color=colour, alpha=alpha, label=label)
    losses.set_xlabel("decades between the layers' norms")
    losses.set_ylabel("training loss at the best rate")
    rates.set_xlabel("learning rate (darker: more unequal)")
    rates.set_ylabel("training loss")
    rates.set_xscale("log")
    for axes in (losses, rates):
        axes.set_yscale("log")
        plain_log(axes.yaxis)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
    return figure
