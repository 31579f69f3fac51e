"""[J] section 5 and its first open question: does the map of a weight update contract?

Two copies of one network that differ by a tiny perturbation take the same batches; the mean growth of their distance
over a step, ``ln(|dW'| / |dW|)``, is the log expansion factor of the update map along the direction that the map itself
selects. For SGD on the whole data it is also computed from the map's Jacobian, ``max |1 - lr wd - lr lambda(H)|``.
Weight decay must lower it by ``ln(1 - lr wd)``. Loss, size of the weights and length of the steps stand beside it: they
tell whether a map that contracts still trains a network; the lowest curvature tells why one does not. DropPath must
contract the forward map: in expectation a block has the constant ``1 + (1 - p) K``.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lipadvisor.experiments.reproduce import Settings, Verdict
from lipadvisor.experiments.reproduce.images import Images, load_images
from lipadvisor.experiments.reproduce.kept import keep, kept_part, slope
from lipadvisor.modules import DropPath, Residual, constant_of, local_lipschitz

__all__ = ["run"]

CLAIM = (
    "[J]: weight decay makes the update map contract, DropPath the forward map; [J]'s open question is the "
    "update map's own factor"
)
DECAYS = (0.0, 0.3, 1.0, 3.0, 10.0)  # lr * wd * 100: per cent that a step takes off
DROPS = (0.0, 0.2, 0.4, 0.6, 0.8)
BATCH, TINY = 64, 1e-7
MEASURED = ("loss", "weights", "relative_step", "lowest_curvature")
LEARNS = 0.95  # of the loss of guessing: above it the decay has won, and the network no longer learns


def _orthogonal(G: Tensor) -> Tensor:
    """Newton and Schulz's quintic iteration on a momentum matrix, as in Muon (Jordan et al. 2024)."""
    X: Tensor = G / (G.norm() + 1e-12)
    transposed = X.shape[0] > X.shape[1]
    X = X.T if transposed else X
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X + (-4.775 * A + 2.0315 * A @ A) @ X
    return X.T if transposed else X


class _Rule:
    """One optimizer's direction, with its moments; decay is applied outside."""

    def __init__(self, name: str, parameters: list[Tensor]) -> None:
        self.name, self.count = name, 0
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]

    def directions(self, gradients: tuple[Tensor, ...]) -> list[Tensor]:
        if self.name == "SGD":
            return [-g for g in gradients]
        self.count += 1
        if self.name in ("momentum", "Muon"):
            self.first = [0.9 * m + g for m, g in zip(self.first, gradients, strict=True)]
            if self.name == "momentum":
                return [-m for m in self.first]
            return [-_orthogonal(m) if m.ndim == 2 else -m for m in self.first]
        self.first = [0.9 * m + 0.1 * g for m, g in zip(self.first, gradients, strict=True)]
        self.second = [0.999 * v + 0.001 * g * g for v, g in zip(self.second, gradients, strict=True)]
        lift = 1 - 0.9**self.count, 1 - 0.999**self.count
        return [-(m / lift[0]) / ((v / lift[1]).sqrt() + 1e-8) for m, v in zip(self.first, self.second, strict=True)]

    def scale(self) -> Tensor | None:
        """What a gradient's entries are multiplied with once the momentum has settled; None where it is turned, too."""
        if self.name == "Muon":
            return None
        if self.name == "AdamW":
            lift = 1 - 0.999**self.count
            return torch.cat([1 / ((v / lift).sqrt() + 1e-8).flatten() for v in self.second])
        settled = 1 / (1 - 0.9) if self.name == "momentum" else 1.0
        return torch.full((sum(m.numel() for m in self.first),), settled, dtype=torch.float64)


RATES = {"SGD": 0.1, "momentum": 0.02, "AdamW": 0.002, "Muon": 0.01}


def _network(images: Images, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(math.prod(images.shape), 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh()]
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(32, images.classes)).double()


@dataclass(frozen=True, slots=True)
class Expansion:
    """Means over the second half of a run.

    Attributes:
        log_factor: of the distance between the two copies, per step, nats.
        loss: on the batches, nats.
        weights: |W| over its value at the start.
        relative_step: ``lr |direction| / |W|``, decay aside.
        lowest_curvature: lr times the lowest eigenvalue of the Hessian as the optimizer scales it, after the last step;
            where it is negative a step expands by that much. ``None`` for Muon, which has no fixed scale.
    """

    log_factor: float
    loss: float
    weights: float
    relative_step: float
    lowest_curvature: float | None


def _step(model: nn.Module, rule: _Rule, x: Tensor, y: Tensor, lr: float, shrink: float) -> tuple[float, float]:
    """Take one step; return the loss before it and the direction's length."""
    parameters = list(model.parameters())
    loss = nn.functional.cross_entropy(model(x), y)
    directions = rule.directions(torch.autograd.grad(loss, parameters))
    with torch.no_grad():
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.mul_(1 - shrink).add_(direction, alpha=lr)
    return float(loss.detach()), _length(directions)


def _length(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.detach().square().sum()) for tensor in tensors))


def expansion(images: Images, optimizer: str, shrink: float, steps: int, seed: int) -> Expansion:
    """Follow two copies of one network over ``steps`` and return how their distance grew, and what became of it.

    Args:
        images: training data.
        optimizer: a key of ``RATES``.
        shrink: lr * weight decay, in [0, 1).
        steps: optimizer steps; the distance is set back to tiny after each, moments included.
        seed: of weights, perturbation and batches.
    """
    generator = torch.Generator().manual_seed(seed)
    model = _network(images, seed)
    other = copy.deepcopy(model)
    rules = _Rule(optimizer, list(model.parameters())), _Rule(optimizer, list(model.parameters()))
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise, alpha=TINY / math.sqrt(sum(p.numel() for p in other.parameters())))
    inputs, lr, start = images.train_inputs.double(), RATES[optimizer], _length(model.parameters())
    kept: list[tuple[float, float, float, float]] = []
    for step in range(steps):
        chosen = torch.randint(0, len(images.train_targets), (BATCH,), generator=generator)
        size = _length(model.parameters())
        x, y = inputs[chosen], images.train_targets[chosen]
        loss, length = _step(model, rules[0], x, y, lr, shrink)
        _step(other, rules[1], x, y, lr, shrink)
        growth = _reset(model, other, rules)
        if step > 0:  # the first one sets the moments
            kept.append((growth, loss, size / start, lr * length / size))
    late = kept[len(kept) // 2 :]
    growth, loss, size, relative = (sum(column) / len(late) for column in zip(*late, strict=True))
    scale, lowest = rules[0].scale(), None
    if scale is not None:
        lowest = lr * _curvatures(model, inputs[:512], images.train_targets[:512], generator, scale)[0]
    return Expansion(growth, loss, size, relative, lowest)


def _expansion(images: Images, optimizer: str, shrink: float, steps: int, seed: int) -> dict[str, float | None]:
    return asdict(expansion(images, optimizer, shrink, steps, seed))


def _reset(model: nn.Module, other: nn.Module, rules: tuple[_Rule, _Rule]) -> float:
    """Scale the distance of the two states (weights and moments) back to tiny; return the log of how it had grown."""
    pairs = list(zip(model.parameters(), other.parameters(), strict=True))
    size = math.sqrt(sum(float((b - a).detach().square().sum()) for a, b in pairs))
    if size == 0:
        return -math.inf
    factor = TINY / size
    with torch.no_grad():
        for a, b in pairs:
            b.copy_(a + factor * (b - a))
        for a_T, b_T in ((rules[0].first, rules[1].first), (rules[0].second, rules[1].second)):
            for m, n in zip(a_T, b_T, strict=True):
                n.copy_((m + factor * (n - m)).clamp_min(0) if b_T is rules[1].second else m + factor * (n - m))
    return -math.log(factor)


def sgd_factor(images: Images, shrink: float, steps: int, seed: int) -> tuple[float, float]:
    """Return (predicted, measured) log factor of full-batch SGD after some steps of training.

    The prediction is ``ln max |1 - lr wd - lr lambda|`` over the Hessian's largest and smallest eigenvalues; measured
    is the growth of a perturbation after two hundred steps of the map linearised by differences at one point.
    """
    model, lr = _network(images, seed), RATES["SGD"]
    x, y = images.train_inputs[:256].double(), images.train_targets[:256]
    rule = _Rule("SGD", list(model.parameters()))
    for _ in range(steps):
        _step(model, rule, x, y, lr, shrink)
    weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    generator = torch.Generator().manual_seed(seed)

    def mapped(w: Tensor) -> Tensor:
        probe = copy.deepcopy(model)
        torch.nn.utils.vector_to_parameters(w.clone(), probe.parameters())
        _step(probe, rule, x, y, lr, shrink)
        return torch.nn.utils.parameters_to_vector(probe.parameters()).detach()

    base = mapped(weights)
    v = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
    measured = 0.0
    for _ in range(200):
        v = v / v.norm()
        v = (mapped(weights + 1e-6 * v) - base) / 1e-6
        measured = math.log(float(v.norm()))
    return _predicted(model, x, y, lr, shrink, generator), measured


def _predicted(model: nn.Module, x: Tensor, y: Tensor, lr: float, shrink: float, generator: torch.Generator) -> float:
    ends = [abs(1 - shrink - lr * value) for value in _curvatures(model, x, y, generator)]
    return math.log(max(*ends, abs(1 - shrink)))  # most of the Hessian's eigenvalues are near 0


def _curvatures(
    model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, scale: Tensor | None = None
) -> tuple[float, float]:
    """Lowest and highest eigenvalue of ``P^1/2 H P^1/2`` by Lanczos, H the loss's Hessian and P = ``scale``."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), parameters, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradients])
    root = torch.ones_like(flat).detach() if scale is None else scale.sqrt()

    def hessian(v: Tensor) -> Tensor:
        product = torch.autograd.grad(flat, parameters, root * v, retain_graph=True)
        return root * torch.cat([h.flatten() for h in product])

    basis: list[Tensor] = []
    v = torch.randn(flat.shape, generator=generator, dtype=torch.float64)
    for _ in range(60):  # with full orthogonalisation: both ends of the spectrum
        for other in basis * 2:
            v = v - (v @ other) * other
        basis.append(v / v.norm())
        v = hessian(basis[-1])
    images = torch.stack([hessian(b) for b in basis])
    eigenvalues = torch.linalg.eigvalsh(torch.stack(basis) @ images.T)
    return float(eigenvalues[0]), float(eigenvalues[-1])


def _drop_path(p: float, seed: int, depth: int = 6, dim: int = 12) -> dict[str, float]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = [nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim)) for _ in range(depth)]
    model = nn.Sequential(*(Residual(nn.Sequential(part, DropPath(p))) for part in parts)).double().eval()
    x = torch.randn(8, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {
        "p": p,
        "log_bound": constant_of(model, x).log,
        "log_local": math.log(local_lipschitz(model, x).value),
        "formula": sum(math.log1p((1 - p) * constant_of(part, x).value) for part in parts),
    }


def run(settings: Settings) -> Verdict:
    """Measure every optimizer at every decay, SGD's factor against its Jacobian's, and DropPath."""
    images = load_images(settings.data)
    decays = DECAYS[::2] if settings.quick else DECAYS
    steps = 30 if settings.quick else 200
    rows: list[dict[str, Any]] = []
    for optimizer in RATES:
        for decay in decays:
            part = partial(_expansion, images, optimizer, decay / 100, steps, settings.seed)
            given = (steps, BATCH, TINY, RATES[optimizer])
            found = Expansion(**kept_part(settings, f"{optimizer} {decay:g}", given, part))
            row = {"optimizer": optimizer, "decay_per_step": decay / 100, "log_expansion": found.log_factor}
            rows.append(row | {name: getattr(found, name) for name in MEASURED})
            settings.progress(
                f"{optimizer}, {decay:g} % a step: ln of the factor {found.log_factor:+.4f}, loss {found.loss:.3f}, "
                f"|W| {found.weights:.3f} of its start, relative step {found.relative_step:.4f}"
                + ("" if found.lowest_curvature is None else f", lowest curvature {found.lowest_curvature:+.4f}")
            )
    checks = [
        kept_part(settings, f"Jacobian {decay:g}", 20, partial(sgd_factor, images, decay / 100, 20, settings.seed))
        for decay in decays
    ]
    drops = [_drop_path(p, settings.seed) for p in DROPS]
    falls = {name: _slope_over_decay(rows_of(rows, name)) for name in RATES}
    bare = {r["optimizer"]: r["log_expansion"] for r in rows if r["decay_per_step"] == 0}
    error = max(abs(predicted - measured) for predicted, measured in checks)
    most = {name: rows_of(rows, name)[-1]["log_expansion"] for name in RATES}
    contracting = [name for name in RATES if most[name] < min(0.0, bare[name])]
    local = [drop["log_local"] for drop in drops]
    alive = [row for row in rows if row["loss"] < LEARNS * math.log(images.classes)]
    dead = [row for row in rows if row not in alive]
    rule = [
        (r["log_expansion"] > 0) == (-r["lowest_curvature"] > -math.log1p(-r["decay_per_step"]))
        for r in rows
        if r["lowest_curvature"] is not None
    ]
    shrinks = all(b < a for a, b in itertools.pairwise(local))
    holds = all(abs(drop["formula"] - drop["log_bound"]) < 1e-6 for drop in drops)
    keep(
        settings,
        {"rows": rows, "sgd": [list(pair) for pair in checks], "drop_path": drops},
        _figure(rows, drops, LEARNS * math.log(images.classes)),
    )
    finding = (
        "ln of the update map's factor without decay: "
        + ", ".join(f"{n} {bare[n]:+.4f}" for n in RATES)
        + "; its change per unit of lr*wd (-1 where decay acts alone): "
        + ", ".join(f"{n} {falls[n]:.2f}" for n in RATES)
        + f"; with the strongest decay {', '.join(contracting) or 'none'} of {len(RATES)} contract"
        + f"; of the {len(alive)} runs that still learn {_contract(alive)} contract, of the {len(dead)} whose loss is "
        f"that of guessing {_contract(dead)}"
        + "".join(f", {r['optimizer']} at |W| {r['weights']:.3f} of its start" for r in dead)
        + f"; a run expands where its lowest curvature outweighs the decay: so in {sum(rule)} of {len(rule)} runs"
        + f"; SGD's Jacobian predicts its factor within {error:.1e} nats; DropPath takes the local constant from "
        f"e^{local[0]:.2f} to e^{local[-1]:.2f}"
    )
    figures = {
        "log_expansion_without_decay": bare,
        "slope_over_decay": falls,
        "log_expansion_strongest_decay": most,
        "learning_runs": len(alive),
        "learning_runs_that_contract": _contract(alive),
        "guessing_runs": len(dead),
        "sign_by_lowest_curvature": [sum(rule), len(rule)],
        "guessing_runs_that_contract": _contract(dead),
        "sgd_error": error,
        "drop_path_shrinks": shrinks,
        "drop_path_formula_holds": holds,
    }
    return Verdict(
        "contraction", CLAIM, len(contracting) == len(RATES) and shrinks and holds and error < 0.01, figures, finding
    )


def _contract(rows: list[dict[str, Any]]) -> int:
    return sum(row["log_expansion"] < 0 for row in rows)


def rows_of(rows: list[dict[str, Any]], optimizer: str) -> list[dict[str, Any]]:
    """Return one optimizer's rows, by rising decay."""
    return [row for row in rows if row["optimizer"] == optimizer]


def _slope_over_decay(rows: list[dict[str, Any]]) -> float:
    return slope([-math.log1p(-r["decay_per_step"]) for r in rows], [r["log_expansion"] for r in rows])


_TICKS = (-0.1, -0.05, -0.02, -0.01, -0.005, 0, 0.005, 0.01, 0.02)


def _figure(rows: list[dict[str, Any]], drops: list[dict[str, float]], limit: float) -> Figure:
    figure = Figure(figsize=(8.5, 3.6), layout="constrained")
    update, forward = figure.subplots(1, 2)
    decays = sorted({r["decay_per_step"] for r in rows})
    for optimizer in RATES:
        part = rows_of(rows, optimizer)
        line = [decays.index(r["decay_per_step"]) for r in part], [r["log_expansion"] for r in part]
        (drawn,) = update.plot(*line, "-", label=optimizer)
        for x, y, r in zip(*line, part, strict=True):
            update.plot(x, y, "o", color=drawn.get_color(), mfc=None if r["loss"] < limit else "white")
    update.set_title("open circles: the loss is that of guessing; linear within 0.01", fontsize=9)
    update.axhline(0, color="0.4", lw=0.8)
    update.set_xticks(range(len(decays)), [f"{100 * decay:g} %" for decay in decays])
    update.set_yscale("symlog", linthresh=0.01)
    update.set_yticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    update.set_yticks([], minor=True)
    update.set_xlabel("learning rate x weight decay, not to scale")
    update.set_ylabel("ln of the update map's factor, nats per step")
    forward.plot([d["p"] for d in drops], [d["log_bound"] for d in drops], "o-", label="bound, 1 + (1 - p) K")
    forward.plot([d["p"] for d in drops], [d["log_local"] for d in drops], "o-", label="local constant")
    forward.set_xlabel("DropPath p")
    forward.set_ylabel("log Lipschitz constant, nats")
    for axes in (update, forward):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
    return figure
