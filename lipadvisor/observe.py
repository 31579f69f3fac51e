"""From numbers to words: turns a measurement, its rates and its forecast into the observation a policy reads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from lipadvisor.dynamics import Coefficients
from lipadvisor.policies.contract import Band, Knobs, Layer, Observation, Status
from lipadvisor.terms import Array, Terms

__all__ = ["initial_observation", "observation", "refreshed"]


def initial_observation(terms: Terms, total_steps: int | None, knobs: tuple[Knobs, ...]) -> Observation:
    """Return the observation before step 0, from the spectrum of the initial weights alone."""
    layers = tuple(_layer(terms, index, terms.log_norm_L, terms.gap_L) for index in range(len(terms.names)))
    network = Layer("*", "network", (), -1, 1.0, terms.network_log_norm, 0.0, 0.0, status=Status.NOT_MEASURED)
    return Observation(
        step=0,
        total_steps=total_steps,
        tau=0.0,
        optimizer=terms.optimizer,
        momentum=terms.momentum,
        knobs=knobs,
        network=network,
        layers=layers,
        status=Status.NOT_MEASURED,
    )


def observation(
    terms: Terms,
    coefficients: Coefficients,
    bands: tuple[Band, ...],
    *,
    total_steps: int | None,
    tau: float,
    knobs: tuple[Knobs, ...],
    loss: float | None,
    overhead: float,
) -> Observation:
    """Return the observation after the measured step ``terms.step``: ``terms.step + 1`` steps have been taken.

    Args:
        terms: the measurement.
        coefficients: its rates, per unit of tau.
        bands: the network's forecast, ascending horizons.
        total_steps: the horizon, or None where it is not known.
        tau: sum of the learning rates of all steps taken.
        knobs: in force during the step.
        loss: the step's training loss.
        overhead: share of the run's time spent on measuring.
    """
    after = terms.log_norm_after_L.size > 0
    log_norm_L = terms.log_norm_after_L if after else terms.log_norm_L
    gap_L = terms.gap_after_L if after else terms.gap_L
    layers = tuple(
        dataclasses.replace(
            _layer(terms, index, log_norm_L, gap_L),
            drift=float(coefficients.drift_L[index]),
            diffusion=float(coefficients.diffusion_L[index]),
            noise_curvature=float(coefficients.noise_curvature_L[index]),
            finite_step=float(coefficients.finite_step_L[index]),
            decay=float(coefficients.decay_L[index]),
            update_ratio=float(terms.update_ratio_L[index]),
            status=Status(terms.status_L[index]),
        )
        for index in range(len(terms.names))
    )
    counted_L = terms.composition_L != 0.0  # the rest stands beside the network
    moved_L = (log_norm_L - terms.log_norm_L)[counted_L]
    network_log_norm = terms.network_log_norm + float(terms.composition_L[counted_L] @ moved_L)
    status = worst([layer.status for layer, counted in zip(layers, counted_L, strict=True) if counted])
    if status in (Status.OK, Status.GAP_LIMITED) and not math.isfinite(network_log_norm):
        status = Status.NON_FINITE
    network = Layer(
        "*",
        "network",
        (),
        -1,
        1.0,
        network_log_norm,
        float(np.min(gap_L[counted_L], initial=1.0)),
        0.0,
        drift=coefficients.drift,
        diffusion=coefficients.diffusion,
        noise_curvature=coefficients.noise_curvature,
        finite_step=coefficients.finite_step,
        decay=coefficients.decay,
        update_ratio=float(np.max(terms.update_ratio_L[counted_L], initial=0.0)),
        status=status,
    )
    if loss is not None and not math.isfinite(loss):
        status = Status.NON_FINITE
    return Observation(
        step=terms.step + 1,
        total_steps=total_steps,
        tau=tau,
        optimizer=terms.optimizer,
        momentum=terms.momentum,
        knobs=knobs,
        network=network,
        layers=layers,
        bands=bands,
        loss=loss,
        measured_step=terms.step,
        overhead=overhead,
        status=status,
    )


def refreshed(
    last: Observation, *, step: int, tau: float, knobs: tuple[Knobs, ...], loss: float | None, overhead: float
) -> Observation:
    """Return ``last`` brought forward to ``step`` for a step that was not measured: its measurement stays as it is."""
    status = last.network.status
    if loss is not None and not math.isfinite(loss):
        status = Status.NON_FINITE
    return dataclasses.replace(last, step=step, tau=tau, knobs=knobs, loss=loss, overhead=overhead, status=status)


_SEVERITY = (Status.OK, Status.GAP_LIMITED, Status.NOT_CONVERGED, Status.NOT_MEASURED, Status.NON_FINITE)


def worst(statuses: Sequence[Status]) -> Status:
    """Return the gravest of ``statuses``; ``OK`` for none."""
    return max(statuses, key=lambda s: _SEVERITY.index(s) if s in _SEVERITY else 0, default=Status.OK)


def _layer(terms: Terms, index: int, log_norm_L: Array, gap_L: Array) -> Layer:
    return Layer(
        name=terms.names[index],
        kind=terms.kinds[index],
        shape=terms.shapes[index],
        group=terms.groups[index],
        composition_weight=float(terms.composition_L[index]),
        log_norm=float(log_norm_L[index]),
        gap=float(gap_L[index]),
        log_gain=float(terms.log_gain_L[index]),
        status=Status.NOT_MEASURED,
    )
