"""Random runs to test policies on: sequences of observations as a probe gives them, and as it should not."""

from __future__ import annotations

import dataclasses
import math
import random

from lipadvisor.policies.contract import Band, Knobs, Layer, Observation, Status

__all__ = ["random_observations"]

BAD = (math.nan, math.inf, -math.inf, 1e308, -1e308, 0.0)


def random_observations(
    seed: int,
    *,
    steps: int = 40,
    total_steps: int | None = 40,
    layers: int = 3,
    groups: int = 2,
    broken: float = 0.0,
    longest_gap: int = 4,
) -> tuple[Observation, ...]:
    """Return the observations of one random run, the first of them before step 0.

    Args:
        seed: of the run; no global random state is touched.
        steps: number of observations, >= 1.
        total_steps: the horizon that they name; it may be exceeded.
        layers: number of weights, >= 0.
        groups: number of parameter groups, >= 1.
        broken: share of the observations in which numbers are replaced by nan, infinity, overflow, zero and a negative
            loss, or parts are missing, in [0, 1].
        longest_gap: largest number of steps between two observations, >= 1.

    Raises:
        ValueError: an argument is out of its range.
    """
    if steps < 1 or layers < 0 or groups < 1 or longest_gap < 1:
        raise ValueError(
            f"random_observations(steps=..., layers=..., groups=..., longest_gap=...) must be at least 1, 0, 1, 1, "
            f"got {(steps, layers, groups, longest_gap)!r}."
        )
    if not 0.0 <= broken <= 1.0:
        raise ValueError(f"random_observations(broken=...) must be in [0, 1], got {broken!r}.")
    source = random.Random(seed)
    log_norm_L = [source.gauss(0.0, 1.0) for _ in range(layers)]
    log_gain_L = [source.gauss(-0.3, 1.0) for _ in range(layers)]
    optimizer = source.choice(("sgd", "adamw", "adam", "unknown"))
    momentum = source.choice((0.0, 0.9))
    step, tau, measured, run = 0, 0.0, 0, []
    for _ in range(steps):
        if step > 0 and source.random() < 0.7:
            measured = step - 1
        knobs = tuple(Knobs(g, 10.0 ** source.uniform(-5.0, 0.0), source.choice((0.0, 0.1))) for g in range(groups))
        rows = tuple(_layer(source, f"layer{i}", i % groups, log_norm_L[i], log_gain_L[i], step) for i in range(layers))
        network = dataclasses.replace(
            _layer(source, "*", -1, sum(log_norm_L), 0.0, step), kind="network", shape=(), composition_weight=1.0
        )
        good = Observation(
            step=step,
            total_steps=total_steps,
            tau=tau,
            optimizer=optimizer,
            momentum=momentum,
            knobs=knobs,
            network=network,
            layers=rows,
            bands=_bands(source, network.log_norm) if step > 0 else (),
            loss=abs(source.gauss(1.0, 0.5)) if step > 0 else None,
            validation_loss=1.0 + source.random() if step > 10 else None,
            validation_step=step // 10 * 10 if step > 10 else None,
            measured_step=measured,
            overhead=0.03,
            status=Status.OK if step > 0 else Status.NOT_MEASURED,
        )
        run.append(_break(source, good) if source.random() < broken else good)
        gap = source.randint(1, longest_gap)
        step, tau = step + gap, tau + gap * (knobs[0].lr or 0.0)
        log_norm_L = [value + source.gauss(0.01, 0.05) for value in log_norm_L]
    return tuple(run)


def _layer(source: random.Random, name: str, group: int, log_norm: float, log_gain: float, step: int) -> Layer:
    seen = 1.0 if step > 0 else 0.0  # before step 0 there is no gradient
    ratio = seen * math.exp(source.gauss(2.0, 2.0))
    return Layer(
        name=name,
        kind=source.choice(("linear", "conv2d")),
        shape=(source.randint(1, 512), source.randint(1, 512)),
        group=group,
        composition_weight=source.uniform(0.1, 1.0),
        log_norm=log_norm,
        gap=source.random(),
        log_gain=log_gain,
        drift=seen * source.gauss(1.0, 5.0),
        diffusion=seen * abs(source.gauss(0.0, 1.0)),
        noise_curvature=seen * source.random(),
        finite_step=seen * source.gauss(0.0, 1.0),
        decay=-seen * source.random(),
        update_ratio=ratio,
        status=Status.OK if step > 0 else Status.NOT_MEASURED,
        frobenius_ratio=ratio * math.exp(source.gauss(-0.3, 0.3)),
        row_ratio=ratio * math.exp(source.gauss(0.0, 0.3)) * source.choice((0.0, 1.0, 1.0)),  # not of every kind
    )


def _bands(source: random.Random, log_norm: float) -> tuple[Band, ...]:
    bands = []
    for horizon in (1, 10, 50, 200):
        mean, std = log_norm + 0.01 * horizon * source.gauss(0.5, 1.0), 0.05 * math.sqrt(horizon)
        status = source.choice((Status.OK, Status.UNCALIBRATED))
        bands.append(Band(horizon, mean, std, mean - 1.645 * std, mean + 1.645 * std, status))
    return tuple(bands)


def _break(source: random.Random, good: Observation) -> Observation:
    """Return ``good`` with some of its numbers spoiled or parts of it missing."""
    kind = source.randrange(7)
    if kind == 0:
        return dataclasses.replace(good, loss=source.choice((None, math.nan, math.inf, -math.inf, 0.0, -0.5)))
    if kind == 1:
        return dataclasses.replace(good, layers=(), bands=())
    if kind == 2:
        return dataclasses.replace(good, knobs=tuple(Knobs(k.group) for k in good.knobs))
    if kind == 3:
        return dataclasses.replace(good, network=_spoil(source, good.network), status=Status.NON_FINITE)
    if kind == 4:
        bands = tuple(dataclasses.replace(b, mean=source.choice(BAD), std=source.choice(BAD)) for b in good.bands)
        return dataclasses.replace(good, bands=bands)
    layers = tuple(_spoil(source, layer) if source.random() < 0.5 else layer for layer in good.layers)
    if kind == 5:
        return dataclasses.replace(good, layers=layers, status=Status.NON_FINITE)
    validation = source.choice((None, math.nan, math.inf))
    return dataclasses.replace(good, layers=layers, validation_loss=validation, optimizer="unknown")


def _spoil(source: random.Random, layer: Layer) -> Layer:
    sizes = ("update_ratio", "frobenius_ratio", "row_ratio")
    names = ("log_norm", "log_gain", "drift", "diffusion", "finite_step", "decay", *sizes, "composition_weight")
    changes = {name: source.choice(BAD) for name in names if source.random() < 0.5}
    return dataclasses.replace(layer, status=Status.NON_FINITE, **changes)  # type: ignore[arg-type]
