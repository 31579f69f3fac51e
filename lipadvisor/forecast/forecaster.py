"""The forecast of every log-norm under a plan of learning rates and weight decays, with a calibrated band.

The drift per unit of ``tau``, smoothed by experts that disagree on how it decays, is carried along the planned
``tau``; the planned decay is added exactly; the SDE's variance and the experts' spread give the band, and past errors
its scale. ``docs/science.md``, section 6. Series: the ``L`` layers, then the network; ``S = L + 1``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lipadvisor.dynamics import Coefficients
from lipadvisor.forecast.beliefs import expected_rate, fading, moments
from lipadvisor.forecast.between import between, blend
from lipadvisor.forecast.displacement import Displacement
from lipadvisor.forecast.drift_noise import ResidualNoise, measured_noise
from lipadvisor.forecast.experts import POWER_E, Averages, power_integrals
from lipadvisor.forecast.guard import WARN_LOAD
from lipadvisor.forecast.motion import Interval, Motion
from lipadvisor.forecast.outcomes import LEVEL, NOISE, START, TAU, VALUES, Present, noise_growth, raw_variance
from lipadvisor.forecast.plan import Plan, Standing, planned, validated_horizon
from lipadvisor.forecast.plan_guard import PlanGuard
from lipadvisor.forecast.rebound import rebound, steady_share
from lipadvisor.forecast.result import BandSeries, Forecast, Score
from lipadvisor.forecast.tracker import Tracker
from lipadvisor.policies import Band, Status
from lipadvisor.terms import Array, Terms

__all__ = ["Forecaster"]

_FEW_POINTS = 5  # updates before a forecast means anything
_CALIBRATED = 20  # scored forecasts before a band does
_TREND_HORIZON = 10  # steps: the tracked horizon nearest to it says what growth was expected
_CHANGE, _CHANGE_WIDENS = float(np.log(1.5)), 1.3  # bands across a change of lr beyond 1.5x are that much wider


def _prior() -> Array:
    """Return the experts' mild prior, in ``POWER_E`` order: the drift fades, as it does in runs of every optimizer."""
    prior_E = np.array((0.1, 2.0, 1.0))[POWER_E]
    return np.asarray(prior_E / prior_E.sum())


class Forecaster:
    """Forecasts the log-norms of the layers and of the network; learns online which drift to believe.

    Args:
        names: the layers, in the order of the measurements.
        composition_L: weight of each layer in the network's log-norm; later measurements bring their own.
        optimizer: ``"sgd"``, ``"adam"``, ``"adamw"``, or anything else for "no memory".
        momentum: coefficient of the first moment, in [0, 1).
        horizons: steps ahead at which forecasts are scored and bands given; ascending, at least 1.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        names: Sequence[str],
        composition_L: Array,
        optimizer: str = "sgd",
        momentum: float = 0.0,
        horizons: Sequence[int] = (1, 10, 50, 200),
    ) -> None:
        self.names = tuple(names)
        if not self.names or len(self.names) != len(composition_L):
            raise ValueError(
                f"Forecaster(names=..., composition_L=...) must have one length of at least 1, "
                f"got {len(self.names)} and {len(composition_L)}."
            )
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"Forecaster(momentum=...) must be in [0, 1), got {momentum!r}.")
        self.horizons = tuple(validated_horizon(h) for h in horizons)
        if not self.horizons or list(self.horizons) != sorted(set(self.horizons)):
            raise ValueError(f"Forecaster(horizons=...) must be ascending and not empty, got {horizons!r}.")
        self.optimizer, self.momentum = optimizer, momentum
        count, series = len(self.names), len(self.names) + 1
        self.updates = 0
        self._lr_L: Array = np.zeros(count)
        self._weight_decay_L: Array = np.zeros(count)
        self._composition_L: Array = np.array(composition_L, dtype=np.float64)
        self._guard = PlanGuard(self.names, optimizer, momentum)
        self._displacement = Displacement(series, momentum)
        steps_H1 = np.array(self.horizons, dtype=np.float64)[:, None]
        self._factors_H2 = np.hstack(self._displacement.factors(steps_H1))
        self._rate_S: Array = np.zeros(series)  # of the trend, nats per tau
        near = [abs(math.log(horizon / _TREND_HORIZON)) for horizon in self.horizons]
        self._trend_place = near.index(min(near))
        self._residual = ResidualNoise(series)
        self._motion = Motion(series)
        self._averages = Averages(series)
        self._steps_H = np.array(self.horizons, dtype=np.float64)
        self._tracker = Tracker(self.horizons, _prior(), series, optimizer, momentum)

    @property
    def step(self) -> int:
        """Optimizer steps taken at the last known log-norms: where a forecast starts."""
        return self._motion.step

    @property
    def first_loss(self) -> float:
        """The first training loss that was told; 0 before any was."""
        return self._guard.first_loss

    def update(self, terms: Terms, coefficients: Coefficients, loss: float | None = None) -> None:
        """Take in a measurement: learn the drift, score the forecasts whose time has come, make new ones.

        A measurement of an earlier step than the last (weights were put back) starts the series afresh and keeps what
        was learned.

        Args:
            terms: the measurement.
            coefficients: of it.
            loss: training loss, nats or any other measure of it that falls to 0; the guard on plans knows more by it.

        Raises:
            ValueError: the layers are not those of the constructor.
        """
        if terms.names is not self.names and terms.names != self.names:
            raise ValueError(f"Forecaster.update(terms) must have the layers {self.names}, got {terms.names}.")
        if terms.step < self._motion.measured_step:
            self.restart()
        factor_S = self._motion.offset_factor(terms, coefficients.lr)
        if factor_S is not None:
            self._averages.rescale(factor_S)
        interval = self._motion.advance(terms, coefficients)
        if self.updates > 0 and not self._averages.noisy:
            self._learn_residual(interval)
        self._displacement.update(interval, self._rate_S)
        self._averages.update(interval, measured_noise(interval, coefficients, self._motion.lr_S))
        self._lr_L, self._weight_decay_L = terms.lr_L.copy(), terms.weight_decay_L.copy()
        self._composition_L = terms.composition_L.copy()
        steps = max(1.0, interval.steps)
        self._guard.update(terms, coefficients, loss, steps)
        self.updates += int(interval.whole or interval.valid_S.any())
        if self.updates >= _FEW_POINTS:
            self._track()

    def forecast(
        self,
        horizon: int,
        plan: Mapping[str, Any] | None = None,
        step: int | None = None,
        standing: Standing | None = None,
    ) -> Forecast:
        """Forecast all log-norms under a plan.

        Args:
            horizon: steps ahead, at least 1.
            plan: ``{"lr": x, "weight_decay": y}``, numbers or arrays of length ``horizon``; the same for every layer.
                What is left out goes on as it is (``standing``).
            step: optimizer steps taken by now, where the last measurement is older; the steps between are taken to
                have had the knobs that were in force at the measurement.
            standing: knobs of the next step, layer by layer; ``None``: those of the last measurement, whose decay goes
                on as a coefficient.

        Raises:
            ValueError: ``horizon``, ``plan``, ``step`` or ``standing`` is impossible.
        """
        horizon = validated_horizon(horizon)
        if standing is None:
            standing = Standing(self._lr_L, self._weight_decay_L, np.zeros(len(self.names), bool))
        if len(standing.lr_G) != len(self.names):
            raise ValueError(f"forecast(standing=...) must be of {len(self.names)} layers, got {len(standing.lr_G)}.")
        future = planned(plan, horizon, standing, self._composition_L, self._lr_L)
        start = self.step if step is None else step
        if start < self.step:
            raise ValueError(f"forecast(step=...) must be at least {self.step}, the last measurement's, got {step!r}.")
        gap = start - self.step
        steps_h = np.arange(gap + 1, gap + horizon + 1, dtype=np.float64)
        lr_S, log_decay_S = self._motion.lr_S, self._motion.log_decay_S
        mean_hS, std_hS, quantile_hS = self._evaluate(
            steps_h,
            gap * lr_S + np.cumsum(self._guard.share.effective(future.lr_hS, lr_S), axis=0),
            gap * log_decay_S + np.cumsum(future.log_decay_hS, axis=0),
            gap * lr_S**2 + np.cumsum(future.lr_hS**2, axis=0),
        )
        progress_hS = (gap * lr_S + np.cumsum(future.lr_hS, axis=0)) / np.where(lr_S > 0.0, lr_S, np.inf)
        mean_hS = mean_hS + self._displacement.answer(progress_hS)
        clock_h = gap * lr_S[-1] + np.cumsum(future.lr_hS[:, -1])
        weight_hPS = blend(fading(self._tracker.learned.weight_HES), *between(self._steps_H, steps_h))
        mean_hS = mean_hS + rebound(future.log_decay_hS, self._motion.clock + clock_h, weight_hPS)
        std_hS = std_hS * np.where(future.changes > _CHANGE, _CHANGE_WIDENS, 1.0)[:, None]
        std_hS = np.maximum.accumulate(std_hS, axis=0)
        half_hS = np.maximum.accumulate(std_hS * quantile_hS, axis=0)
        series = [
            BandSeries(mean_hS[:, s], std_hS[:, s], mean_hS[:, s] - half_hS[:, s], mean_hS[:, s] + half_hS[:, s])
            for s in range(len(self.names) + 1)
        ]
        status, warnings = self._status(future, gap + horizon, bool(np.isfinite(mean_hS).all()))
        return Forecast(series[-1], dict(zip(self.names, series[:-1], strict=True)), status, horizon, start, warnings)

    def bands(self) -> tuple[Band, ...]:
        """Return the network's band at each of the ``horizons``, with the knobs in force."""
        motion, tracker, steps_H = self._motion, self._tracker, self._steps_H
        record_R = self._present().record_RS[:, -1]
        learned = tracker.learned
        advance_H = steps_H * motion.lr_S[-1]
        integral_PH = power_integrals(record_R[START], record_R[START] + advance_H)
        forecast_HE = record_R[VALUES] * integral_PH.T[:, POWER_E]
        weighted_HE = learned.weight_HES[:, :, -1] * forecast_HE
        free_H = np.add.reduce(weighted_HE, axis=1)
        weighted_HE *= forecast_HE
        second_H = np.add.reduce(weighted_HE, axis=1)
        variance_H = raw_variance(advance_H * motion.lr_S[-1], record_R[NOISE], tracker.growth_H, free_H, second_H)
        std_H = np.maximum.accumulate(learned.scale_HS[:, -1] * np.sqrt(variance_H))
        half_H = np.maximum.accumulate(std_H * learned.quantile_HS[:, -1])
        mean_H = record_R[LEVEL] + steps_H * motion.log_decay_S[-1] + free_H
        moving = float(motion.lr_S[-1] > 0.0)
        mean_H += self._displacement.answer((steps_H * moving)[:, None])[:, -1]
        if motion.log_decay_S[-1] != 0.0:
            mean_H += self._rebound(-1)[:, 0]
        load = self._guard.present_load(self._lr_L)
        return tuple(
            Band(horizon, mean, std, mean - half, mean + half, self._judge(load, horizon, math.isfinite(mean)))
            for horizon, mean, std, half in zip(
                self.horizons, mean_H.tolist(), std_H.tolist(), half_H.tolist(), strict=True
            )
        )

    def scores(self, name: str = "*") -> dict[int, Score]:
        """Return, for each of the ``horizons``, how the forecasts of one series have done so far.

        Args:
            name: a layer, or ``"*"`` for the network.

        Raises:
            KeyError: there is no such layer.
        """
        if name != "*" and name not in self.names:
            raise KeyError(f"no layer {name!r}; there are {self.names}")
        series = -1 if name == "*" else self.names.index(name)
        return {horizon: self._tracker.result(place, series) for place, horizon in enumerate(self.horizons)}

    def shift(self, log_factor_L: Array) -> None:
        """Account for weights that something else than the optimizer has rescaled.

        Args:
            log_factor_L: ln of each layer's factor, nats, shape ``(L,)``.
        """
        log_factor_S = np.append(log_factor_L, self._composition_L @ log_factor_L)
        self._motion.shift(log_factor_S)
        self._displacement.shift(log_factor_S)
        for record_RS in {id(one.record_RS): one.record_RS for one in self._tracker.presents()}.values():
            record_RS[LEVEL] += log_factor_S

    def restart(self) -> None:
        """Drop the levels and the forecasts that wait (weights were put back); keep what was learned."""
        self._motion.forget_levels()
        self._displacement.forget()
        self._tracker.forget_waiting()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a restart needs, as numbers and arrays; going on from it changes no bit."""
        state: dict[str, Any] = {"names": list(self.names), "horizons": list(self.horizons), "updates": self.updates}
        state |= {name: getattr(self, name).copy() for name in _ARRAYS} | self._residual.state_dict()
        state["motion"] = self._motion.state_dict()
        state["displacement"] = self._displacement.state_dict()
        state["averages"] = self._averages.state_dict()
        state["tracker"] = self._tracker.state_dict()
        return state | self._guard.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            ValueError: the state belongs to other layers or horizons.
        """
        for key, own in (("names", self.names), ("horizons", self.horizons)):
            if tuple(state[key]) != own:
                raise ValueError(f"Forecaster.load_state_dict(state) must have {key} {own}, got {tuple(state[key])}.")
        self.updates = int(state["updates"])
        for name in _ARRAYS:
            setattr(self, name, np.array(state[name], dtype=np.float64))
        self._residual.load_state_dict(state)
        self._motion.load_state_dict(state["motion"])
        self._displacement.load_state_dict(state["displacement"])
        self._averages.load_state_dict(state["averages"])
        self._guard.load_state_dict(state)
        self._tracker.load_state_dict(state["tracker"])

    def _learn_residual(self, interval: Interval) -> None:
        """Average the squared residuals of the drift: they stand in for a noise that is not measured."""
        moving_S = interval.moving_S
        integral_PS = power_integrals(interval.start_S, interval.start_S + np.where(moving_S, interval.advance_S, 0.0))
        first_HPS, _ = moments(self._tracker.learned.weight_HES, self._averages.values()[: len(POWER_E)])
        self._residual.update(interval, (first_HPS[0] * integral_PS).sum(axis=0))

    def _track(self) -> None:
        """Judge the surplus over the trend; learn from the forecasts whose time has come, and make new ones."""
        motion, displacement = self._motion, self._displacement
        if not self._tracker.is_due(motion.step):  # what comes between is learned from when the next ones are made
            if self._tracker.is_ripe(motion.step):
                self._tracker.mature(Present.standing(motion.step, motion.state_4S))
            return
        present = self._present()
        self._tracker.update(present, motion.lr_S)
        record_RS = present.record_RS
        weight_ES = self._tracker.learned.weight_HES[self._trend_place]
        self._rate_S = expected_rate(weight_ES, record_RS[VALUES], record_RS[START])
        displacement.judge(motion, self._rate_S)
        answer_HS = displacement.answer_by(self._factors_H2)
        if np.count_nonzero(motion.lr_S) < len(motion.lr_S):  # where the clock stands still nothing is given back
            answer_HS = answer_HS * (motion.lr_S > 0.0)
        if np.count_nonzero(motion.log_decay_S):
            answer_HS = answer_HS + self._rebound()
        self._tracker.make(present, answer_HS)

    def _rebound(self, first: int = 0) -> Array:
        """Return what the decay in force will have called forth at each of the horizons, nats, shape ``(H, S)``.

        Args:
            first: of the series; -1 for the network alone.
        """
        motion = self._motion
        share_HP1 = steady_share(motion.clock, float(motion.lr_S[-1]), self.horizons)[:, :, None]
        weight_HPS = fading(self._tracker.learned.weight_HES[:, :, first:])
        called_HS = np.add.reduce(weight_HPS * share_HP1, axis=1)
        called_HS *= -motion.log_decay_S[first:]
        return np.asarray(called_HS)

    def _present(self) -> Present:
        """Return where the series stand."""
        motion = self._motion
        present, averages_AS = Present.empty(motion.step, len(self.names) + 1)
        record_RS = present.record_RS
        record_RS[:START] = motion.state_4S
        np.add(record_RS[TAU], motion.offset_S, out=record_RS[START])
        self._averages.values(averages_AS)
        if not self._averages.noisy:
            record_RS[NOISE] = np.where(self._averages.noisy_S, record_RS[NOISE], self._residual.variance_S)
        return present

    def _evaluate(
        self, steps_h: Array, tau_hS: Array, log_decay_hS: Array, squared_hS: Array
    ) -> tuple[Array, Array, Array]:
        """Return mean, calibrated standard deviation and band quantile, shapes ``(h, S)``.

        Args:
            steps_h: steps ahead of the last known log-norms.
            tau_hS: advance of the growth's clocks by then.
            log_decay_hS: sum of ``ln(1 - lr wd)`` by then.
            squared_hS: sum of ``lr^2`` by then.
        """
        low_h, share_h = between(self._steps_H, steps_h)
        record_RS, learned = self._present().record_RS, self._tracker.learned
        first_hPS, second_hPS = (
            blend(part_HPS, low_h, share_h) for part_HPS in moments(learned.weight_HES, record_RS[VALUES])
        )
        scale_hS = blend(learned.scale_HS, low_h, share_h)
        quantile_hS = blend(learned.quantile_HS, low_h, share_h)
        start_S = record_RS[START]
        integral_PhS = power_integrals(start_S, start_S + tau_hS)
        free_hS = np.einsum("hps,phs->hs", first_hPS, integral_PhS)
        second_hS = np.einsum("hps,phs->hs", second_hPS, integral_PhS**2)
        growth_h1 = noise_growth(self.optimizer, self.momentum, steps_h)[:, None]
        variance_hS = raw_variance(squared_hS, record_RS[NOISE], growth_h1, free_hS, second_hS)
        return self._motion.level_S + log_decay_hS + free_hS, scale_hS * np.sqrt(variance_hS), quantile_hS

    def _status(self, future: Plan, horizon: int, finite: bool) -> tuple[Status, tuple[str, ...]]:
        load, what = self._guard.load(self._lr_L, future.lr_hS[:, :-1].max(axis=0), self._composition_L)
        status = self._judge(load, horizon, finite)
        verdict = "refused" if load > 1.0 else "near its limit"
        return status, (f"planned lr {what}: {verdict}",) if load > WARN_LOAD else ()

    def _judge(self, load: float, horizon: int, finite: bool) -> Status:
        if self.updates > 0 and not finite:
            return Status.NON_FINITE
        if load > 1.0:
            return Status.UNSTABLE
        if self.updates < _FEW_POINTS:
            return Status.TOO_FEW_POINTS
        return Status.OK if self._tracker.vouching(horizon) >= _CALIBRATED else Status.UNCALIBRATED


_ARRAYS = ("_lr_L", "_weight_decay_L", "_composition_L", "_rate_S")
