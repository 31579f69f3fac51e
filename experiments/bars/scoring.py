"""Forecasts of a recorded run, made as they would have been online, beside slopes that are smoothed.

The forecast is made with the plan that came true, as a schedule is known in advance; the slope knows no plan. The best
slope is chosen in hindsight for each run and horizon, once for all its windows: nobody has it online. Its band is the
running root mean square of its own past errors at that horizon.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from lipadvisor.dynamics import coefficients
from lipadvisor.experiments.bars.recorded import INTERVAL, Recorded
from lipadvisor.forecast import Forecaster
from lipadvisor.terms import Array

__all__ = ["HORIZONS", "RunScore", "crps", "score_run"]

HORIZONS = (10, 50, 200)
SMOOTHINGS = (0.003, 0.01, 0.03, 0.1, 0.3)  # of the slope, per step
_FROM = 50  # steps before the first forecast that counts
_ERROR_GAIN = 0.05  # of the slope's running error, per forecast
_CHANGE = 1.5  # a window whose learning rate changes by more, or whose decay changes, is across a change


@dataclass(frozen=True, slots=True)
class RunScore:
    """Errors of one run at one horizon, one entry for each forecast; nats. ``G`` slopes."""

    error_N: Array
    crps_N: Array
    hit_N: Array
    slope_error_GN: Array
    slope_crps_GN: Array
    changed_N: Array

    def ratios(self, where_N: Array | None = None) -> dict[str, float]:
        """Return the figures over the best slope's, on the forecasts ``where_N``; which slope is best, all say."""
        keep = np.ones(len(self.error_N), bool) if where_N is None else where_N.astype(bool)
        if not keep.any():
            return {"n": 0.0}
        best = float(self.slope_error_GN[self.slope_error_GN.mean(1).argmin(), keep].mean())
        best_crps = float(self.slope_crps_GN[self.slope_crps_GN.mean(1).argmin(), keep].mean())
        return {
            "n": float(keep.sum()),
            "mae": float(self.error_N[keep].mean()),
            "mae_slope": best,
            "mae_ratio": float(self.error_N[keep].mean()) / best,
            "crps": float(self.crps_N[keep].mean()),
            "crps_slope": best_crps,
            "crps_ratio": float(self.crps_N[keep].mean()) / best_crps,
            "coverage": float(self.hit_N[keep].mean()),
        }


def crps(error_N: Array, std_N: Array) -> Array:
    """Return the CRPS of Gaussian forecasts, nats (Gneiting and Raftery 2007, section 4.2).

    Args:
        error_N: outcome minus mean.
        std_N: > 0.
    """
    z = error_N / std_N
    density = np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi)
    return np.asarray(std_N * (z * (2.0 * ndtr(z) - 1.0) + 2.0 * density - 1.0 / np.sqrt(np.pi)))


def score_run(run: Recorded) -> dict[int, RunScore]:
    """Replay a run through a fresh forecaster and score the network's forecasts at every horizon."""
    measured = run.log.terms()
    level = {int(step): z for step, z in zip(run.log.array("step"), run.log.array("network_log_norm"), strict=True)}
    forecaster: Forecaster | None = None
    slope_G = np.zeros(len(SMOOTHINGS))
    mass_G = np.zeros(len(SMOOTHINGS))
    gain_G = 1.0 - (1.0 - np.array(SMOOTHINGS)) ** INTERVAL
    rows: dict[int, list[tuple[int, float, float, bool, Array, bool]]] = {h: [] for h in HORIZONS}
    before = np.nan
    for terms in measured:
        forecaster = forecaster or Forecaster(terms.names, terms.composition_L, terms.optimizer, terms.momentum)
        forecaster.update(terms, coefficients(terms))
        now = terms.network_log_norm + float(terms.composition_L @ terms.change_L)
        if np.isfinite(before):
            slope_G += gain_G * ((now - before) / INTERVAL - slope_G)
            mass_G += gain_G * (1.0 - mass_G)
        before = now
        if terms.step >= _FROM:
            _forecast_all(run, forecaster, terms.step, now, slope_G / mass_G, level, rows)
    return {horizon: _scored(horizon, found) for horizon, found in rows.items() if found}


def _forecast_all(
    run: Recorded,
    forecaster: Forecaster,
    step: int,
    now: float,
    slope_G: Array,
    level: dict[int, float],
    rows: dict[int, list[tuple[int, float, float, bool, Array, bool]]],
) -> None:
    """Forecast the measurements ``h`` steps after ``step``, whose own step is taken already: ``h - 1`` ahead."""
    reach = max((h for h in HORIZONS if step + h in level), default=0) - 1
    if reach < 1:
        return
    ahead = slice(step + 1, step + 1 + reach)
    plan = {"lr": run.lr_N[ahead], "weight_decay": run.weight_decay_N[ahead]}
    made = forecaster.forecast(reach, plan).network
    for horizon in HORIZONS:
        if step + horizon not in level or horizon - 1 > reach:
            continue
        outcome, last = level[step + horizon], horizon - 2
        window = slice(step, step + horizon)
        rate, decay = np.ptp(np.log(run.lr_N[window])), np.ptp(run.weight_decay_N[window])
        changed = bool(rate > np.log(_CHANGE) or decay > 0)
        hit = bool(made.lower[last] <= outcome <= made.upper[last])
        error_G = outcome - now - slope_G * (horizon - 1)
        rows[horizon].append((step, float(outcome - made.mean[last]), float(made.std[last]), hit, error_G, changed))


def _scored(horizon: int, found: list[tuple[int, float, float, bool, Array, bool]]) -> RunScore:
    step_N = np.array([row[0] for row in found])
    error_N, std_N = np.array([row[1] for row in found]), np.array([row[2] for row in found])
    slope_GN = np.array([row[4] for row in found]).T
    # The band of the slope at forecast n knows the errors of forecasts whose outcome is in by then.
    square_GN = np.empty_like(slope_GN)
    for n in range(len(found)):
        known = step_N + horizon <= step_N[n]
        if not known.any():
            square_GN[:, n] = slope_GN[:, 0] ** 2  # its own first error: a present to the slope
            continue
        weight_n = (1.0 - _ERROR_GAIN) ** np.arange(known.sum())[::-1]
        square_GN[:, n] = (slope_GN[:, known] ** 2 @ weight_n) / weight_n.sum()
    return RunScore(
        error_N=np.abs(error_N),
        crps_N=crps(error_N, np.maximum(std_N, 1e-12)),
        hit_N=np.array([row[3] for row in found], dtype=np.float64),
        slope_error_GN=np.abs(slope_GN),
        slope_crps_GN=crps(slope_GN, np.sqrt(np.maximum(square_GN, 1e-24))),
        changed_N=np.array([row[5] for row in found], dtype=np.float64),
    )
