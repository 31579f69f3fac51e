"""[D] Fig 4: the order of the batches spreads the bound; the spread over seeds against the predicted variance."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from lipadvisor.dynamics import coefficients, finite_population
from lipadvisor.experiments.reproduce import Settings, Verdict
from lipadvisor.experiments.reproduce.convnet import conv_net, initialize
from lipadvisor.experiments.reproduce.figures import keep_figure
from lipadvisor.experiments.reproduce.images import Images, load_images
from lipadvisor.experiments.reproduce.run_log import RunLog, kept_run
from lipadvisor.experiments.reproduce.training import Recipe, steps_for
from lipadvisor.report.style import COLOURS
from lipadvisor.terms import Array
from lipadvisor.trajectory import write_json

__all__ = ["run"]

CLAIM = "[D] Fig 4: mini-batch sampling spreads the trajectories of the bound, as much as the predicted Var[Z] says."
_INTERVAL = 10
_WITHIN = 2.0  # agreement: observed over predicted standard deviation within this factor, at the median over the run


def run(settings: Settings) -> Verdict:
    """Rerun the figure."""
    images = load_images(settings.data)
    steps, seeds = (60, 4) if settings.quick else (steps_for(images, 300), 16)
    measured = _one(settings, images, steps, 0, "full")
    runs = [_one(settings, images, steps, seed, "norms") for seed in range(1, seeds + 1)]
    step_T = measured.array("step")
    Z_RT = np.stack([log.array("network_log_norm") for log in runs])
    predicted_T, independent_T = _variances(measured, images)
    figures = _figures(step_T, Z_RT, predicted_T, independent_T)
    write_json(
        settings.out / "data.json",
        {"step": step_T.tolist(), "observed_variance": Z_RT.var(0, ddof=1).tolist(), "predicted": predicted_T.tolist()},
    )
    keep_figure(settings.out, lambda made: _draw(made, step_T, Z_RT, predicted_T), 9.0, 3.8)
    ratio = figures["median_ratio_of_deviations"]
    agrees = 1.0 / _WITHIN <= ratio <= _WITHIN
    finding = (
        f"Over {seeds} orders of batches, from one initialization, the observed standard deviation of Z is "
        f"{ratio:.2f} times the predicted one at the median over {steps} steps ({figures['first_ratio']:.2f} after "
        f"{_INTERVAL} steps, {figures['last_ratio']:.2f} at the end); {figures['inside_90']:.1%} lie in the "
        "predicted 90 % band."
    )
    return Verdict("sampling", CLAIM, bool(agrees), figures, finding)


def _one(settings: Settings, images: Images, steps: int, batch_seed: int, level: str) -> RunLog:
    def build() -> nn.Module:
        model = conv_net(images.shape, images.classes)
        initialize(model, "kaiming")
        return model

    recipe = Recipe("sgd", steps, seed=settings.seed, batch_seed=1000 + batch_seed, level=level, interval=_INTERVAL)
    return kept_run(settings.out / "runs" / f"order-{batch_seed}.npz", recipe, images, build, settings.progress)


def _variances(measured: RunLog, images: Images) -> tuple[Array, Array]:
    """Return the integral of ``lam_Z^2`` up to each measurement, nats^2, with exact and with independent layers."""
    factor = finite_population(measured.constants["batch_size"], len(images.train_targets))
    sums = []
    for noise in ("exact", "independent"):
        rate = [
            factor * _INTERVAL * c.lr * c.diffusion**2
            for c in (coefficients(terms, noise=noise) for terms in measured.terms())
        ]
        sums.append(np.concatenate(([0.0], np.cumsum(rate)[:-1])))
    return sums[0], sums[1]


def _figures(step_T: Array, Z_RT: Array, predicted_T: Array, independent_T: Array) -> dict[str, Any]:
    observed_T = Z_RT.var(0, ddof=1)
    ratio_T = np.sqrt(observed_T[1:] / predicted_T[1:])
    standardised = (Z_RT[:, 1:] - Z_RT[:, 1:].mean(0)) / np.sqrt(predicted_T[1:])
    return {
        "median_ratio_of_deviations": float(np.median(ratio_T)),
        "first_ratio": float(ratio_T[0]),
        "last_ratio": float(ratio_T[-1]),
        "inside_90": float((np.abs(standardised) < 1.645).mean()),
        "independent_over_exact_variance": float(independent_T[-1] / predicted_T[-1]),
        "observed_deviation_at_end": float(np.sqrt(observed_T[-1])),
    }


def _draw(made: Figure, step_T: Array, Z_RT: Array, predicted_T: Array) -> None:
    left, right = made.subplots(1, 2)
    mean_T, half_T = Z_RT.mean(0), 1.645 * np.sqrt(predicted_T)
    left.fill_between(step_T, mean_T - half_T, mean_T + half_T, color=COLOURS[5], alpha=0.35, label="predicted 90 %")
    for Z_T in Z_RT:
        left.plot(step_T, Z_T, color=COLOURS[0], linewidth=0.6)
    left.set(title="one line for each order of the batches", xlabel="step", ylabel="ln K, nats")
    left.legend()
    right.plot(step_T, Z_RT.std(0, ddof=1), color=COLOURS[0], label="observed")
    right.plot(step_T, np.sqrt(predicted_T), color=COLOURS[1], linestyle="--", label="predicted")
    right.set(title="standard deviation of Z over seeds", xlabel="step", ylabel="nats")
    right.legend()
