"""Bar: the integrated finite-step prediction against the observed bound, over full trainings.

Nine settings of [D] Fig 2, each with SGD, momentum and AdamW, every step measured, at least 3,000 steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lipadvisor.dynamics import Reconstruction
from lipadvisor.experiments.bars import Bar, BarSettings
from lipadvisor.experiments.reproduce.convnet import conv_net, initialize
from lipadvisor.experiments.reproduce.images import load_images
from lipadvisor.experiments.reproduce.regularizers import REGULARIZERS
from lipadvisor.experiments.reproduce.run_log import RunLog, kept_run
from lipadvisor.experiments.reproduce.training import OPTIMIZERS, OptimizerKind, Recipe

__all__ = ["reconstruction_errors", "run", "setting_run"]

STEPS = 3000
NOISE_INTERVAL = 5  # the noise enters the paper's form alone; between two measurements of it, it is carried on
_NETWORK, _LAYER = 0.01, 0.005  # the demands, relative errors of K


def setting_run(settings: BarSettings, setting: str, optimizer: OptimizerKind, steps: int) -> RunLog:
    """Return the measured run of one setting and optimizer, kept below ``settings.out``."""
    images = load_images("digits")
    regularizer = REGULARIZERS[setting]

    def build() -> Any:
        model = conv_net(images.shape, images.classes, regularizer.dropout, regularizer.batch_norm)
        initialize(model, "kaiming")
        return model

    recipe = Recipe(optimizer, steps, regularizer=regularizer, seed=settings.seed, noise_interval=NOISE_INTERVAL)
    path = settings.out / "runs" / f"{setting}-{optimizer}.npz"
    return kept_run(path, recipe, images, build, settings.progress)


def reconstruction_errors(log: RunLog) -> dict[str, float]:
    """Integrate both forms over a run; all errors are relative, of ``K`` or of a layer's norm."""
    rebuilt: Reconstruction | None = None
    layer_TL = []
    for terms in log.terms():
        rebuilt = rebuilt or Reconstruction(terms.names)
        rebuilt.update(terms)
        layer_TL.append(rebuilt.error_L)
    assert rebuilt is not None
    return {
        "steps": float(len(log)),
        "max_error": rebuilt.max_error,
        "mean_error": rebuilt.mean_error,
        "layer_median": float(np.median(layer_TL)),
        "layer_max": float(np.max(layer_TL)),
        "paper_max_error": rebuilt.max_paper_error,
        "replaced": float(rebuilt.replaced),
        "test_accuracy": log.end["test_accuracy"],
    }


def run(settings: BarSettings) -> Bar:
    """Measure the bar."""
    steps = 60 if settings.quick else STEPS
    names = ("none", "clipping") if settings.quick else tuple(REGULARIZERS)
    rows: dict[str, dict[str, float]] = {}
    for optimizer in OPTIMIZERS:
        for setting in names:
            rows[f"{optimizer} {setting}"] = reconstruction_errors(setting_run(settings, setting, optimizer, steps))
    worst = max(row["max_error"] for row in rows.values())
    median = float(np.median([row["layer_median"] for row in rows.values()]))
    worst_median = max(row["layer_median"] for row in rows.values())
    checks = (
        ("largest error of the network's bound, any run and step", worst, f"at most {_NETWORK}", worst <= _NETWORK),
        ("median error of a layer, over the runs", median, f"at most {_LAYER}", median <= _LAYER),
        ("median error of a layer, worst run", worst_median, f"at most {_LAYER}", worst_median <= _LAYER),
    )
    lines = [f"{'run':26} {'steps':>5} {'max err':>8} {'mean':>8} {'layer med':>9} {'paper max':>10} {'test acc':>8}"]
    lines += [
        f"{name:26} {row['steps']:5.0f} {row['max_error']:8.2%} {row['mean_error']:8.2%} {row['layer_median']:9.3%} "
        f"{row['paper_max_error']:10.3g} {row['test_accuracy']:8.3f}"
        for name, row in rows.items()
    ]
    return Bar("reconstruction", checks, {"runs": rows}, "\n".join(lines))
