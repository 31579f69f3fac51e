"""From numbers to words: turns a measurement, its rates and its forecast into the observation a policy reads."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Sequence
from itertools import repeat
from typing import Any

import numpy as np

from lipadvisor.dynamics import Coefficients
from lipadvisor.policies.contract import Band, Knobs, Layer, Observation, Status
from lipadvisor.terms import Array, Terms

__all__ = ["endangered", "initial_observation", "observation", "refreshed"]


def initial_observation(
    terms: Terms, total_steps: int | None, knobs: tuple[Knobs, ...], chain: bool = False
) -> Observation:
    """Return the observation before step 0, from the spectrum of the initial weights alone.

    ``chain``: the network is known for a plain chain of its layers.
    """
    count = len(terms.names)
    none = (0.0,) * count
    sizes = (none,) * _SIZES
    layers = _layers(terms, terms.log_norm_L, terms.gap_L, (none,) * _RATES, (Status.NOT_MEASURED,) * count, sizes)
    kind = "chain" if chain else "network"
    network = Layer("*", kind, (), -1, 1.0, terms.network_log_norm, 0.0, 0.0, status=Status.NOT_MEASURED)
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
    rates = (
        coefficients.drift_L,
        coefficients.diffusion_L,
        coefficients.noise_curvature_L,
        coefficients.finite_step_L,
        coefficients.decay_L,
        terms.update_ratio_L,
    )
    found = [_STATUS[status] for status in terms.status_L]
    none_L = np.zeros(len(found))
    sizes = [
        ratio_L if ratio_L.size else none_L  # terms of old, or from elsewhere, do not have them
        for ratio_L in (terms.frobenius_ratio_L, terms.row_ratio_L)
    ]
    layers = _layers(
        terms, log_norm_L, gap_L, [values_L.tolist() for values_L in rates], found, [s_L.tolist() for s_L in sizes]
    )
    counted_L = terms.composition_L != 0.0  # the rest stands beside the network
    moved_L = (log_norm_L - terms.log_norm_L)[counted_L]
    network_log_norm = terms.network_log_norm + float(terms.composition_L[counted_L] @ moved_L)
    kinds = {status for status, counted in zip(terms.status_L, counted_L.tolist(), strict=True) if counted}
    status = worst([_STATUS[kind] for kind in kinds])
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
        frobenius_ratio=float(np.max(sizes[0][counted_L], initial=0.0)),
        row_ratio=float(np.max(sizes[1][counted_L], initial=0.0)),
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
    status = Status.UNSTABLE if last.status is Status.UNSTABLE else last.network.status
    if loss is not None and not math.isfinite(loss):
        status = Status.NON_FINITE
    return dataclasses.replace(last, step=step, tau=tau, knobs=knobs, loss=loss, overhead=overhead, status=status)


def endangered(seen: Observation) -> Observation:
    """Return ``seen`` with the status ``UNSTABLE``, unless there is no loss or no norm that could diverge any more."""
    if seen.status in (Status.NON_FINITE, Status.NOT_MEASURED):
        return seen
    return dataclasses.replace(seen, status=Status.UNSTABLE)


_SEVERITY = (Status.OK, Status.GAP_LIMITED, Status.NOT_CONVERGED, Status.NOT_MEASURED, Status.NON_FINITE)


def worst(statuses: Sequence[Status]) -> Status:
    """Return the gravest of ``statuses``; ``OK`` for none."""
    return max(statuses, key=lambda s: _SEVERITY.index(s) if s in _SEVERITY else 0, default=Status.OK)


_RATES, _SIZES = 6, 2  # columns
_STATUS = {status.value: status for status in Status}
_SET = tuple(getattr(Layer, field.name).__set__ for field in dataclasses.fields(Layer))


def _layers(
    terms: Terms,
    log_norm_L: Array,
    gap_L: Array,
    rates: Sequence[Sequence[float]],
    statuses: Sequence[Status],
    sizes: Sequence[Sequence[float]],
) -> tuple[Layer, ...]:
    """Return the layers, given the columns of their rates, and those after the status, in the order of the fields.

    Filled column by column: the constructor of a frozen dataclass, layer by layer, takes twice as long as the rest of
    an observation.
    """
    count = len(terms.names)
    measured = (terms.composition_L.tolist(), log_norm_L.tolist(), gap_L.tolist(), terms.log_gain_L.tolist())
    columns: tuple[Sequence[Any], ...] = (terms.names, terms.kinds, terms.shapes, terms.groups, *measured, *rates)
    layers: list[Layer] = [*map(object.__new__, repeat(Layer, count))]
    for write, column in zip(_SET, (*columns, statuses, *sizes), strict=True):
        deque(map(write, layers, column), maxlen=0)
    return tuple(layers)
