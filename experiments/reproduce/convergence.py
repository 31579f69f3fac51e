"""[D] Fig 3: near convergence the drift fades, the noise-curvature stays positive, and the bound goes on growing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional

from lipadvisor.dynamics import coefficients, noise_split
from lipadvisor.experiments.reproduce import Settings, Verdict
from lipadvisor.experiments.reproduce.convnet import conv_net, initialize
from lipadvisor.experiments.reproduce.figures import keep_figure
from lipadvisor.experiments.reproduce.full_batch import gradient_variance
from lipadvisor.experiments.reproduce.images import Images, load_images
from lipadvisor.experiments.reproduce.norms import bound_covector
from lipadvisor.experiments.reproduce.run_log import RunLog
from lipadvisor.experiments.reproduce.training import Recipe, steps_for, train
from lipadvisor.report.style import COLOURS
from lipadvisor.terms import Array, Terms
from lipadvisor.trajectory import read_json, write_json

__all__ = ["run"]

CLAIM = (
    "[D] Fig 3: near convergence the drift fades, the noise-curvature kappa_Z stays positive, and the bound goes on "
    "growing."
)
_INTERVAL = 20
_SPLITS = 24  # times at which the noise is split into variances and covariances
_SPLIT_BATCH = 256


def run(settings: Settings) -> Verdict:
    """Rerun the figure."""
    images = load_images(settings.data)
    steps = 200 if settings.quick else steps_for(images, 4000)
    rates, split = _measured(settings, images, steps)
    figures = _figures(rates, split)
    write_json(settings.out / "data.json", {"steps": steps, "figures": figures, "split": split})
    keep_figure(settings.out, lambda made: _draw(made, rates, split), 10.0, 3.6)
    agrees = (
        figures["kappa_positive_share"] > 0.99
        and figures["drift_late_over_early"] < 0.1
        and figures["growth_last_quarter"] > 0.0
    )
    finding = (
        f"In the last quarter of {steps} steps kappa_Z is positive in {figures['kappa_positive_share']:.1%} of the "
        f"measurements; the size of the drift is {figures['drift_late_over_early']:.1%} of the first quarter's, "
        f"kappa_Z {figures['kappa_late_over_early']:.2%} of its own and {figures['kappa_over_drift_late']:.2%} of the "
        f"drift: on data that the network fits exactly both fade, kappa_Z faster. Z still grew by "
        f"{figures['growth_last_quarter']:.3f} nats. Variances of single entries make up "
        f"{figures['variance_share']:.1%} of the noise of Z at the median, covariances the rest."
    )
    return Verdict("convergence", CLAIM, bool(agrees), figures, finding)


def _measured(settings: Settings, images: Images, steps: int) -> tuple[dict[str, Array], list[dict[str, float]]]:
    recipe = Recipe("sgd", steps, batch_size=32, seed=settings.seed, interval=_INTERVAL)
    path, split_path = settings.out / "runs" / "long.npz", settings.out / "runs" / "split.json"
    if not (path.exists() and split_path.exists() and RunLog.load(path).recipe == recipe.identity + images.name):
        _long_run(settings, images, recipe)
    log = RunLog.load(path)
    found = [coefficients(terms) for terms in log.terms()]
    rates = {
        "step": log.array("step"),
        "Z": log.array("network_log_norm"),
        "drift": np.array([c.drift for c in found]),
        "noise_curvature": np.array([c.noise_curvature for c in found]),
        "diffusion": np.array([0.5 * c.diffusion**2 for c in found]),
        "loss": np.array(log.loss_T)[::_INTERVAL][: len(found)],
    }
    return rates, read_json(split_path)


def _long_run(settings: Settings, images: Images, recipe: Recipe) -> None:
    log = RunLog(recipe.identity + images.name)
    split: list[dict[str, float]] = []
    made: list[nn.Module] = []
    every = max(1, recipe.steps // _SPLITS)

    def build() -> nn.Module:
        model = conv_net(images.shape, images.classes)
        initialize(model, "kaiming")
        made.append(model)
        return model

    def on_step(step: int, loss: float, terms: Terms | None) -> bool:
        log.add(loss, terms)
        if step % every == 0:
            split.append({"step": float(step), **_split(made[0], images)})
            settings.progress(f"step {step} of {recipe.steps}, loss {loss:.4f}")
        return not np.isfinite(loss)

    done = train(recipe, images, build, on_step)
    log.end = {"steps": float(done.steps)}
    write_json(settings.out / "runs" / "split.json", split)
    log.save(settings.out / "runs" / "long.npz")  # last: its identity stands for both files


def _split(model: nn.Module, images: Images) -> dict[str, float]:
    """Split the variance of one sample's ``dZ/dW g`` as [D] Prop 6 does: variances of entries, covariances between."""
    rows = slice(0, min(_SPLIT_BATCH, len(images.train_targets)))
    inputs = images.train_inputs[rows]
    target = functional.one_hot(images.train_targets[rows], images.classes).to(inputs.dtype)
    covector = bound_covector(model, inputs[:2])
    variances = gradient_variance(model, inputs, target)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def losses(at: dict[str, torch.Tensor]) -> torch.Tensor:
        output = torch.func.functional_call(model, at, (inputs,))
        return -(target * functional.log_softmax(output, dim=1)).sum(1)

    along = {name: covector.get(name, torch.zeros_like(value)).to(value.dtype) for name, value in weights.items()}
    scalars = torch.func.jvp(losses, (weights,), (along,))[1]

    def flat(parts: dict[str, torch.Tensor]) -> Array:
        return np.concatenate([parts[name].double().numpy().ravel() for name in covector])

    return asdict(noise_split(flat(covector), flat(variances), scalars.double().numpy()))


def _figures(rates: dict[str, Array], split: list[dict[str, float]]) -> dict[str, Any]:
    quarter = max(1, len(rates["step"]) // 4)
    early, late = slice(0, quarter), slice(-quarter, None)
    kappa = rates["noise_curvature"]
    drift = np.abs(_smooth(rates["drift"]))  # smoothed first: one batch's drift is mostly noise
    shares = [row["variance"] / (row["variance"] + row["covariance"]) for row in split]
    return {
        "kappa_positive_share": float((kappa[late] > 0.0).mean()),
        "kappa_late_over_early": float(kappa[late].mean() / kappa[early].mean()),
        "drift_late_over_early": float(drift[late].mean() / drift[early].mean()),
        "drift_late": float(drift[late].mean()),
        "kappa_over_drift_late": float(kappa[late].mean() / drift[late].mean()),
        "kappa_late": float(kappa[late].mean()),
        "growth_last_quarter": float(rates["Z"][-1] - rates["Z"][-quarter]),
        "loss_late": float(rates["loss"][late].mean()),
        "variance_share": float(np.median(shares)),
    }


def _smooth(values: Array, width: int = 15) -> Array:
    width = min(width, len(values))
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def _draw(made: Figure, rates: dict[str, Array], split: list[dict[str, float]]) -> None:
    left, middle, right = made.subplots(1, 3)
    left.plot(rates["step"], rates["Z"], color=COLOURS[0])
    left.set(title="the bound", xlabel="step", ylabel="ln K, nats")
    names = (("drift", "|drift|", 0), ("noise_curvature", "noise-curvature", 1), ("diffusion", "diffusion$^2$/2", 2))
    for key, label, colour in names:
        middle.plot(rates["step"], np.abs(_smooth(rates[key])), color=COLOURS[colour], label=label)
    middle.set(title="rates of Z, smoothed", xlabel="step", ylabel="nats per tau", yscale="log")
    middle.legend()
    step = [row["step"] for row in split]
    right.plot(step, [row["variance"] for row in split], color=COLOURS[0], marker=".", label="variances")
    right.plot(step, [abs(row["covariance"]) for row in split], color=COLOURS[1], marker=".", label="|covariances|")
    right.set(title="noise of Z, one sample", xlabel="step", ylabel="nats$^2$ per tau$^2$", yscale="log")
    right.legend()
