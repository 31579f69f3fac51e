"""Bar: what prediction and filter cost a step, in process CPU time, for fifty layers."""

from __future__ import annotations

import time

import numpy as np

from lipadvisor.dynamics import Reconstruction, coefficients
from lipadvisor.experiments.bars import Bar, BarSettings
from lipadvisor.forecast import Forecaster
from lipadvisor.terms import Terms

__all__ = ["run"]

LAYERS = 50
_LIMIT_MS = 0.1


def run(settings: BarSettings) -> Bar:
    """Measure the bar: the median over blocks of steps, so that another process's burst does not count."""
    blocks, length = (3, 30) if settings.quick else (40, 100)
    generator = np.random.default_rng(settings.seed)
    first = _terms(0, generator)
    parts: dict[str, list[float]] = {"prediction": [], "filter": [], "reconstruction": [], "bands": []}
    forecaster = Forecaster(first.names, first.composition_L, "sgd", 0.9)
    rebuilt = Reconstruction(first.names)
    for block in range(blocks):
        # Made block by block: in a training a measurement comes from the processor's caches too.
        own = [_terms(step, generator) for step in range(block * length, (block + 1) * length)]
        marks = [time.process_time()]
        found = [coefficients(terms) for terms in own]
        marks.append(time.process_time())
        for terms, rates in zip(own, found, strict=True):
            forecaster.update(terms, rates)
        marks.append(time.process_time())
        for terms in own:
            rebuilt.update(terms)
        marks.append(time.process_time())
        for _ in own:
            forecaster.bands()
        marks.append(time.process_time())
        for name, spent in zip(parts, np.diff(marks), strict=True):
            parts[name].append(1e3 * float(spent) / length)
    cost = {name: float(np.median(values)) for name, values in parts.items()}
    best = {name: float(np.min(values)) for name, values in parts.items()}
    both = cost["prediction"] + cost["filter"]
    checks = (
        (f"prediction and filter, ms a step, {LAYERS} layers", both, f"below {_LIMIT_MS}", both < _LIMIT_MS),
        (
            "the same, least of the blocks",
            best["prediction"] + best["filter"],
            f"below {_LIMIT_MS}",
            best["prediction"] + best["filter"] < _LIMIT_MS,
        ),
    )
    lines = [f"{'part':16} {'median ms':>10} {'least ms':>10}"]
    lines += [f"{name:16} {cost[name]:10.4f} {best[name]:10.4f}" for name in parts]
    return Bar("cost", checks, {"median_ms": cost, "least_ms": best}, "\n".join(lines))


def _terms(step: int, generator: np.random.Generator) -> Terms:
    """Return a made-up measurement of fifty layers: what it costs does not depend on what it says."""
    factor = generator.normal(size=(LAYERS, 8))
    log_norm_L = 0.5 * np.log1p(0.01 * step) + 0.001 * generator.normal(size=LAYERS)
    return Terms(
        step=step,
        names=tuple(f"layer{i}" for i in range(LAYERS)),
        kinds=("linear",) * LAYERS,
        shapes=((64, 64),) * LAYERS,
        groups=(0,) * LAYERS,
        lr_L=np.full(LAYERS, 0.01),
        weight_decay_L=np.full(LAYERS, 0.01),
        composition_L=np.ones(LAYERS),
        log_norm_L=log_norm_L,
        gap_L=np.full(LAYERS, 0.1),
        log_gain_L=np.zeros(LAYERS),
        first_L=generator.normal(size=LAYERS),
        curvature_L=generator.uniform(size=LAYERS),
        change_L=0.001 * generator.normal(size=LAYERS),
        update_ratio_L=generator.uniform(size=LAYERS),
        noise_LL=factor @ factor.T,
        noise_curvature_L=generator.uniform(size=LAYERS),
        network_log_norm=float(log_norm_L.sum()),
        batch_size=64,
        optimizer="sgd",
        momentum=0.9,
        optimizer_step=step + 1,
        status_L=("ok",) * LAYERS,
    )
