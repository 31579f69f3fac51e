"""[D], abstract: noisy supervision shapes how the bound grows."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import nn

from lipadvisor.experiments.reproduce import Settings, Verdict
from lipadvisor.experiments.reproduce.convnet import conv_net, initialize
from lipadvisor.experiments.reproduce.figures import keep_figure
from lipadvisor.experiments.reproduce.images import Images, load_images, noisy_labels
from lipadvisor.experiments.reproduce.run_log import RunLog, kept_run
from lipadvisor.experiments.reproduce.training import Recipe, steps_for
from lipadvisor.report.style import COLOURS
from lipadvisor.trajectory import write_json

__all__ = ["run"]

CLAIM = "[D], abstract: noisy supervision shapes the evolution of the bound; the more wrong labels, the larger K."
_AGREES = 0.8  # rank correlation of rate and final ln K


def run(settings: Settings) -> Verdict:
    """Rerun the experiment."""
    images = load_images(settings.data)
    steps = 60 if settings.quick else steps_for(images, 1500)
    rates = (0.0, 0.4, 0.8) if settings.quick else (0.0, 0.2, 0.4, 0.6, 0.8)
    seeds = (settings.seed,) if settings.quick else (settings.seed, settings.seed + 1)
    logs = {(rate, seed): _one(settings, images, rate, seed, steps) for rate in rates for seed in seeds}
    rows: dict[str, Any] = {}
    for rate in rates:
        own = [logs[rate, seed] for seed in seeds]
        rows[f"{rate:.1f}"] = {
            "start": float(np.mean([log.array("network_log_norm")[0] for log in own])),
            "end": float(np.mean([log.array("network_log_norm")[-1] for log in own])),
            "loss": float(np.mean([np.mean(log.loss_T[-50:]) for log in own])),
            "test_accuracy": float(np.mean([log.end["test_accuracy"] for log in own])),
        }
    ends = [logs[rate, seed].array("network_log_norm")[-1] for rate in rates for seed in seeds]
    rank = float(spearmanr([rate for rate in rates for _ in seeds], ends).statistic)
    figures = {"rank_correlation": rank, "rates": rows}
    write_json(settings.out / "data.json", figures)
    keep_figure(settings.out, lambda made: _draw(made, logs, rates, seeds), 9.0, 3.8)
    listed = ", ".join(f"{rate}: {row['end']:.2f}" for rate, row in rows.items())
    finding = (
        f"ln K after {steps} steps of SGD by share of wrong labels: {listed} (rank correlation {rank:.2f}, "
        f"{len(seeds)} seeds each)."
    )
    return Verdict("label-noise", CLAIM, rank >= _AGREES, figures, finding)


def _one(settings: Settings, images: Images, rate: float, seed: int, steps: int) -> RunLog:
    def build() -> nn.Module:
        model = conv_net(images.shape, images.classes)
        initialize(model, "kaiming")
        return model

    noisy = noisy_labels(images, rate, seed + 17)
    recipe = Recipe("sgd", steps, seed=seed, level="norms", interval=10)
    path = settings.out / "runs" / f"rate-{rate:.1f}-seed-{seed}.npz"
    return kept_run(path, recipe, noisy, build, settings.progress, f"convnet rate {rate}")


def _draw(
    made: Figure, logs: dict[tuple[float, int], RunLog], rates: tuple[float, ...], seeds: tuple[int, ...]
) -> None:
    left, right = made.subplots(1, 2)
    for colour, rate in zip(COLOURS, rates, strict=False):
        for seed in seeds:
            log = logs[rate, seed]
            label = f"{rate:.0%} wrong" if seed == seeds[0] else None
            left.plot(log.array("step"), log.array("network_log_norm"), color=colour, linewidth=1.0, label=label)
            width = min(25, len(log.loss_T))
            smooth = np.convolve(log.loss_T, np.ones(width) / width, mode="valid")
            right.plot(np.arange(len(smooth)), smooth, color=colour, linewidth=1.0)
    left.set(title="the bound", xlabel="step", ylabel="ln K, nats")
    left.legend(title="labels")
    right.set(title="training loss, smoothed", xlabel="step", ylabel="nats")
