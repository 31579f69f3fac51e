"""Bar: every measured step of real trainings beside exact values in float64, singular values that cross included.

The trained networks are float32 and free of BatchNorm, as users train them; the exact values are those of
:mod:`lipadvisor.experiments.bars.exact_terms` at the same weights and batch. Noise-curvature is exact for matrices and
an unbiased estimate from random sums of samples for convolutions: the first is judged step by step, of the second bias
and spread are shown. Where a pair is flagged as too close (relative gap below 1e-3) its denominator is floored, and the
estimate stands below the true value: shown apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import nn

from lipadvisor.experiments.bars import Bar, BarSettings
from lipadvisor.experiments.bars.exact_terms import (
    DenseLayer,
    ExactLayer,
    exact_layer,
    input_shapes,
    optimizer_direction,
    sample_gradients,
)
from lipadvisor.experiments.bars.networks import NETWORKS
from lipadvisor.experiments.reproduce.images import Images, load_images
from lipadvisor.probe import Probe
from lipadvisor.terms import Array, Terms
from lipadvisor.trajectory import read_json, write_json

__all__ = ["run"]

Make = Callable[[nn.Module], torch.optim.Optimizer]
_OPTIMIZERS: dict[str, Make] = {
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.02, momentum=0.9),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=2e-3, weight_decay=0.1),
}
_NETWORKS = ("mlp", "convnet")
_STEPS = {1: 300, 10: 600}  # steps between measurements: steps of the training
_RENEWED = (4, 8)  # steps between renewals where every step is measured lightly: s_1 and lam are judged
_BATCH = 64
# What is judged: quantity -> (quantile over layers and steps, largest relative error there)
_BARS = {
    "s_1": (0.95, 1e-4),
    "lam": (0.90, 0.05),
    "kappa": (0.90, 0.05),  # of matrices
    "update_ratio": (0.95, 0.01),  # of matrices
    "update_ratio_conv": (0.95, 0.01),  # of convolutions
}


@dataclass(slots=True)
class _Compared:
    """Relative errors of one training, or of several, over layers and measured steps."""

    errors: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _BARS})
    estimate: list[float] = field(default_factory=list)  # stochastic kappa over the exact one
    floored: list[float] = field(default_factory=list)  # the same of pairs flagged as too close
    gap: list[float] = field(default_factory=list)  # absolute errors
    flagged: list[bool] = field(default_factory=list)
    crossings: int = 0
    closest: float = 1.0  # smallest exact gap

    def add(self, terms: Terms, exact: list[ExactLayer], before: list[ExactLayer] | None) -> None:
        """Take in one measured step."""
        for index, true in enumerate(exact):
            found_kappa = float(terms.noise_curvature_L[index]) / true.noise_curvature  # nan in light steps
            self.errors["s_1"].append(float(abs(np.expm1(terms.log_norm_L[index] - true.log_norm))))
            self.errors["lam"].append(float(abs(np.sqrt(terms.noise_LL[index, index] / true.noise) - 1.0)))
            size = float(abs(terms.update_ratio_L[index] / true.update_ratio - 1.0))
            if terms.kinds[index] == "linear":
                self.errors["kappa"] += [abs(found_kappa - 1.0)] if np.isfinite(found_kappa) else []
                self.errors["update_ratio"].append(size)
            else:
                self.errors["update_ratio_conv"].append(size)
            if terms.kinds[index] != "linear" and np.isfinite(found_kappa):
                (self.floored if terms.status_L[index] == "gap_limited" else self.estimate).append(found_kappa)
            self.gap.append(abs(float(terms.gap_L[index]) - true.gap))
            self.flagged.append(terms.status_L[index] == "gap_limited")
            self.closest = min(self.closest, true.gap)
            self.crossings += before is not None and true.crossed(before[index])

    def join(self, other: _Compared) -> None:
        """Take in all of ``other``."""
        for name, values in other.errors.items():
            self.errors[name] += values
        self.estimate += other.estimate
        self.floored += other.floored
        self.gap += other.gap
        self.flagged += other.flagged
        self.crossings += other.crossings
        self.closest = min(self.closest, other.closest)

    def figures(self) -> dict[str, float]:
        """Return the quantiles that are judged, and what stands beside them."""
        found = {name: float(np.quantile(self.errors[name], q)) for name, (q, _) in _BARS.items() if self.errors[name]}
        ratio: Array = np.asarray(self.estimate)
        if len(ratio):
            found["estimate_bias"] = float(ratio.mean() - 1.0)
            found["estimate_bias_error"] = float(ratio.std() / len(ratio) ** 0.5)
            found["estimate_spread"] = float(ratio.std())
        if self.floored:
            found["floored_bias"] = float(np.mean(self.floored)) - 1.0
        return found | {
            "gap_95": float(np.quantile(self.gap, 0.95)),
            "crossings": float(self.crossings),
            "closest_gap": self.closest,
            "flagged_share": float(np.mean(self.flagged)),
            "compared": float(len(self.gap)),
        }


def run(settings: BarSettings) -> Bar:
    """Measure the bar on both networks, both optimizers, two intervals and light steps. Finished trainings are kept."""
    images = load_images("digits")
    ways = [(interval, 1, "all") for interval in _STEPS] + [(1, k, f"all, renewed every {k}") for k in _RENEWED]
    pooled: dict[str, _Compared] = {whole: _Compared() for _, _, whole in ways}
    figures: dict[str, dict[str, float]] = {}
    for network in _NETWORKS:
        for name in _OPTIMIZERS:
            for interval, renew_every, whole in ways:
                key = f"{network} {name} every {interval}"
                key += f", renewed every {renew_every}" if renew_every > 1 else ""
                compared = _kept(settings, key, images, network, name, interval, renew_every)
                pooled[whole].join(compared)
                figures[key] = compared.figures()
                settings.progress(f"{key}: " + ", ".join(f"{k} {v:.2g}" for k, v in figures[key].items()))
    figures |= {whole: compared.figures() for whole, compared in pooled.items()}
    return Bar("tracking", _checks(figures), figures, _table(figures))


def _kept(
    settings: BarSettings, key: str, images: Images, network: str, optimizer: str, interval: int, renew_every: int
) -> _Compared:
    """Return one training's errors, taken now or kept from before."""
    steps = min(_STEPS[interval], 6 * interval) if settings.quick else _STEPS[interval]
    name = key.replace(",", "").replace(" ", "_")
    kept = settings.out / "trainings" / f"{name}_{steps}_seed{settings.seed}.json"
    if kept.exists():
        return _Compared(**read_json(kept))
    compared = _follow(network, _OPTIMIZERS[optimizer], images, interval, steps, settings.seed, renew_every)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, asdict(compared))
    return compared


def _follow(
    network: str, make: Make, images: Images, interval: int, steps: int, seed: int, renew_every: int = 1
) -> _Compared:
    """Train, and compare every measured step; without curvature where blocks are not renewed at each."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = NETWORKS[network]()
    optimizer = make(model)
    weight_decay = float(optimizer.param_groups[0]["weight_decay"])
    example = images.train_inputs[:2]
    level = "full" if renew_every == 1 else "noise"
    probe = Probe(model, optimizer, level, interval=interval, seed=seed, example_input=example, renew_every=renew_every)
    names = [layer.name for layer in probe.layers]
    shapes = input_shapes(model, names, example)
    dense = [DenseLayer(model.get_submodule(name), shapes[name]) for name in names]  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    compared, before = _Compared(), None
    for step in range(steps):
        index_B = torch.randint(0, len(images.train_inputs), (_BATCH,), generator=generator)
        x, y = images.train_inputs[index_B], images.train_targets[index_B]
        measured = step % interval == 0
        old = [layer.weight.detach().double() for layer in probe.layers] if measured else []
        gradients = sample_gradients(model, names, x, y) if measured else {}
        probe.arm(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        probe.before_update()
        optimizer.step()
        probe.after_update({0: float(optimizer.param_groups[0]["lr"])}, {0: weight_decay})
        terms = probe.collect(step)
        if terms is None:
            continue
        exact = []
        for index, layer in enumerate(probe.layers):
            direction, scale = optimizer_direction(optimizer, layer.weight)
            exact.append(exact_layer(dense[index], old[index], direction, scale * gradients[names[index]]))
        compared.add(terms, exact, before)
        before = exact
    return compared


def _checks(figures: dict[str, dict[str, float]]) -> tuple[tuple[str, float, str, bool], ...]:
    found = figures["all"]
    checks = [
        (f"{name}, relative error, quantile {q:g}", found[name], f"at most {limit:g}", found[name] <= limit)
        for name, (q, limit) in _BARS.items()
    ]
    bias = abs(found["estimate_bias"])
    allowed = max(0.05, 3.0 * found["estimate_bias_error"])
    checks.append(("bias of the estimated kappa of convolutions", bias, f"at most {allowed:.2g}", bias <= allowed))
    checks.append(("crossings that were followed", found["crossings"], "at least 1", found["crossings"] >= 1))
    for k in _RENEWED:
        light = figures[f"all, renewed every {k}"]
        for name in ("s_1", "lam"):
            q, limit = _BARS[name]
            what = f"{name} renewed every {k}, quantile {q:g}"
            checks.append((what, light[name], f"at most {limit:g}", light[name] <= limit))
    return tuple(checks)


def _table(figures: dict[str, dict[str, float]]) -> str:
    head = (*_BARS, "estimate_bias", "estimate_spread", "floored_bias", "closest_gap")
    lines = [f"{'training':42}" + "".join(f"{name:>18}" for name in head) + f"{'crossings':>11}{'compared':>10}"]
    for key, row in figures.items():
        cells = "".join(f"{row[name]:18.2e}" if name in row else f"{'-':>18}" for name in head)
        lines.append(f"{key:42}{cells}{row['crossings']:11.0f}{row['compared']:10.0f}")
    quantiles = ", ".join(f"{name} {q:g}" for name, (q, _) in _BARS.items())
    lines.append(f"relative errors at the quantiles {quantiles}")
    lines.append("kappa and update_ratio of matrices, the others' estimate of convolutions")
    return "\n".join(lines)
