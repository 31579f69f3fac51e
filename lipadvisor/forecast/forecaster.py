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
from lipadvisor.forecast.displacement import Displacement
from lipadvisor.forecast.experts import POWER_E, SMOOTHINGS, Experts, power_integrals
from lipadvisor.forecast.guard import WARN_LOAD, UpdateRatio
from lipadvisor.forecast.motion import Interval, Motion
from lipadvisor.forecast.plan import Plan, planned, validated_horizon
from lipadvisor.forecast.rebound import rebound
from lipadvisor.forecast.result import BandSeries, Forecast, Score
from lipadvisor.forecast.step_share import StepShare
from lipadvisor.forecast.tracker import HorizonTracker, Made, Present, noise_growth, raw_variance
from lipadvisor.policies import Band, Status
from lipadvisor.terms import Array, Terms

__all__ = ["Forecaster"]

_FEW_POINTS = 5  # updates before a forecast means anything
_CALIBRATED = 20  # scored forecasts before a band does
_TREND_HORIZON = 10  # steps: the tracker nearest to it says what growth was expected
_NOISE_GAIN = 0.03  # averaging of the noise: one batch's estimate is off by half near the end
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
        self._ratio = UpdateRatio(count)
        self._share = StepShare()
        self._displacement = Displacement(series, momentum)
        self._noise_S: Array = np.zeros(series)
        self._noise_mass_S: Array = np.zeros(series)
        self._residual_S: Array = np.zeros(series)
        self._residual_mass_S: Array = np.zeros(series)
        self._slope_GS: Array = np.zeros((len(SMOOTHINGS), series))
        self._slope_mass_GS: Array = np.zeros((len(SMOOTHINGS), series))
        self._rate_S: Array = np.zeros(series)  # of the trend, nats per tau
        self._motion = Motion(series)
        self._experts = Experts(series)
        prior_E = _prior()
        self._trackers = tuple(HorizonTracker(h, prior_E, series, optimizer, momentum) for h in self.horizons)
        self._trend_tracker = min(self._trackers, key=lambda one: abs(math.log(one.horizon / _TREND_HORIZON)))

    @property
    def step(self) -> int:
        """Optimizer steps taken at the last known log-norms: where a forecast starts."""
        return self._motion.step

    def update(self, terms: Terms, coefficients: Coefficients) -> None:
        """Take in a measurement: learn the drift, score the forecasts whose time has come, make new ones.

        A measurement of an earlier step than the last (weights were put back) starts the series afresh and keeps what
        was learned.

        Raises:
            ValueError: the layers are not those of the constructor.
        """
        if terms.names != self.names:
            raise ValueError(f"Forecaster.update(terms) must have the layers {self.names}, got {terms.names}.")
        if terms.step < self._motion.measured_step:
            self.restart()
        factor_S = self._motion.offset_factor(terms, coefficients.lr)
        if factor_S is not None:
            self._experts.rescale(factor_S)
        interval = self._motion.advance(terms, coefficients.lr)
        self._learn_noise(interval, coefficients)
        self._displacement.update(interval, self._rate_S)
        self._experts.update(interval.free_S, interval.start_S, interval.end_S, interval.steps_S, interval.moving_S)
        self._learn_slopes(interval)
        self._lr_L, self._weight_decay_L = terms.lr_L.copy(), terms.weight_decay_L.copy()
        self._composition_L = terms.composition_L.copy()
        steps = max(1.0, float(interval.steps_S.max()))
        self._ratio.update(terms.update_ratio_L, steps)
        self._share.update(coefficients, steps)
        self.updates += int(interval.valid_S.any())
        self._track()

    def forecast(self, horizon: int, plan: Mapping[str, Any] | None = None, step: int | None = None) -> Forecast:
        """Forecast all log-norms under a plan.

        Args:
            horizon: steps ahead, at least 1.
            plan: ``{"lr": x, "weight_decay": y}``, numbers or arrays of length ``horizon``; the same for every layer.
                What is left out goes on as it is.
            step: optimizer steps taken by now, where the last measurement is older; the steps between are taken to
                have had the knobs that were in force at the measurement.

        Raises:
            ValueError: ``horizon``, ``plan`` or ``step`` is impossible.
        """
        horizon = validated_horizon(horizon)
        future = planned(plan, horizon, self._lr_L, self._weight_decay_L, self._composition_L)
        start = self.step if step is None else step
        if start < self.step:
            raise ValueError(f"forecast(step=...) must be at least {self.step}, the last measurement's, got {step!r}.")
        gap = start - self.step
        steps_h = np.arange(gap + 1, gap + horizon + 1, dtype=np.float64)
        lr_S, log_decay_S = self._motion.lr_S, self._motion.log_decay_S
        mean_hS, std_hS, quantile_hS = self._evaluate(
            steps_h,
            gap * lr_S + np.cumsum(self._share.effective(future.lr_hS, lr_S), axis=0),
            gap * log_decay_S + np.cumsum(future.log_decay_hS, axis=0),
            gap * lr_S**2 + np.cumsum(future.lr_hS**2, axis=0),
        )
        progress_hS = (gap * lr_S + np.cumsum(future.lr_hS, axis=0)) / np.where(lr_S > 0.0, lr_S, np.inf)
        mean_hS = mean_hS + self._displacement.answer(progress_hS, steps_h[:, None])
        clock_h = gap * lr_S[-1] + np.cumsum(future.lr_hS[:, -1])
        mean_hS = mean_hS + rebound(log_decay_S - future.log_decay_hS, self._motion.clock + clock_h)
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
        steps_H = np.array(self.horizons, dtype=np.float64)
        motion, column_H = self._motion, steps_H[:, None]
        mean_HS, std_HS, quantile_HS = self._evaluate(
            steps_H, column_H * motion.lr_S, column_H * motion.log_decay_S, column_H * motion.lr_S**2
        )
        mean_HS = mean_HS + self._displacement.answer(np.where(motion.lr_S > 0.0, column_H, 0.0), column_H)
        std_H = np.maximum.accumulate(std_HS[:, -1])
        half_H = np.maximum.accumulate(std_H * quantile_HS[:, -1])
        load = float(np.max(self._ratio.load_L(self._lr_L, self._lr_L)))
        bands = []
        for horizon, mean, std, half in zip(self.horizons, mean_HS[:, -1], std_H, half_H, strict=True):
            status = self._judge(load, horizon, bool(np.isfinite(mean)))
            bands.append(Band(horizon, float(mean), float(std), float(mean - half), float(mean + half), status))
        return tuple(bands)

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
        return {tracker.horizon: tracker.result(series) for tracker in self._trackers}

    def shift(self, log_factor_L: Array) -> None:
        """Account for weights that something else than the optimizer has rescaled.

        Args:
            log_factor_L: ln of each layer's factor, nats, shape ``(L,)``.
        """
        log_factor_S = np.append(log_factor_L, self._composition_L @ log_factor_L)
        self._motion.shift(log_factor_S)
        self._displacement.shift(log_factor_S)
        for tracker in self._trackers:
            tracker.shift(log_factor_S)

    def restart(self) -> None:
        """Drop the levels and the forecasts that wait (weights were put back); keep what was learned."""
        self._motion.forget_levels()
        self._displacement.forget()
        for tracker in self._trackers:
            tracker.forget_waiting()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a restart needs, as numbers and arrays; going on from it changes no bit."""
        state: dict[str, Any] = {"names": list(self.names), "horizons": list(self.horizons), "updates": self.updates}
        state |= {name: getattr(self, name).copy() for name in _ARRAYS}
        state["motion"] = self._motion.state_dict()
        state["experts"] = self._experts.state_dict()
        state["displacement"] = self._displacement.state_dict()
        state["ratio"], state["share"] = self._ratio.state_dict(), self._share.state_dict()
        state["trackers"] = [tracker.state_dict() for tracker in self._trackers]
        return state

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
        self._motion.load_state_dict(state["motion"])
        self._experts.load_state_dict(state["experts"])
        self._displacement.load_state_dict(state["displacement"])
        self._ratio.load_state_dict(state["ratio"])
        self._share.load_state_dict(state["share"])
        for tracker, saved in zip(self._trackers, state["trackers"], strict=True):
            tracker.load_state_dict(saved)

    def _learn_noise(self, interval: Interval, coefficients: Coefficients) -> None:
        """Average the noise of one step's direction; where it is not measured, the residuals of the drift stand in."""
        moving_S = interval.moving_S
        diffusion_S = np.append(coefficients.diffusion_L, coefficients.diffusion)
        lr_S = self._motion.lr_S
        good_S = moving_S & (lr_S > 0.0) & np.isfinite(diffusion_S)
        scale_S = np.where(good_S, coefficients.own_response**2 * lr_S, 1.0)
        noise_S = np.where(good_S, diffusion_S, 0.0) ** 2 / scale_S
        gain_S = _NOISE_GAIN * good_S
        self._noise_S += gain_S * (noise_S - self._noise_S)
        self._noise_mass_S += gain_S * (1.0 - self._noise_mass_S)
        if self.updates < 1 or (self._noise_mass_S > 0.0).all():
            return
        integral_PS = power_integrals(interval.start_S, np.where(moving_S, interval.end_S, interval.start_S))
        first_PS, _ = self._trackers[0].moments(self._experts.values_ES())
        residual_S = interval.free_S - (first_PS * integral_PS).sum(axis=0)
        residual_S = residual_S**2 / np.where(moving_S, interval.squared_S, 1.0)
        gain_S = _NOISE_GAIN * moving_S
        self._residual_S += gain_S * (residual_S - self._residual_S)
        self._residual_mass_S += gain_S * (1.0 - self._residual_mass_S)

    def _learn_slopes(self, interval: Interval) -> None:
        steps_S = np.maximum(interval.steps_S, 1.0)
        gain_GS = (1.0 - (1.0 - _SMOOTHING_G[:, None]) ** steps_S) * interval.valid_S
        self._slope_GS += gain_GS * (interval.change_S / steps_S - self._slope_GS)
        self._slope_mass_GS += gain_GS * (1.0 - self._slope_mass_GS)

    def _noise(self) -> Array:
        measured_S = self._noise_mass_S > 0.0
        noise_S = self._noise_S / np.where(measured_S, self._noise_mass_S, 1.0)
        fallback_S = self._residual_S / np.maximum(self._residual_mass_S, 1e-300)
        return np.where(measured_S, noise_S, fallback_S)

    def _track(self) -> None:
        """Score what is due, then queue this measurement's forecasts."""
        motion = self._motion
        now = Present(motion.step, motion.level_S, motion.tau_S, motion.decay_S, motion.squared_S)
        for tracker in self._trackers:
            tracker.score(now)
        if self.updates < _FEW_POINTS:
            return
        value_ES, noise_S = self._experts.values_ES(), self._noise()
        slope_GS = self._slope_GS / np.maximum(self._slope_mass_GS, 1e-300)
        start_S = now.tau_S + motion.offset_S
        self._rate_S = self._trend_tracker.rate(value_ES, start_S)
        self._displacement.judge(motion, self._rate_S)
        moving_S = (motion.lr_S > 0.0).astype(np.float64)
        for place, tracker in enumerate(self._trackers):
            if not tracker.due(now.step):
                continue
            first_PS, second_PS = tracker.moments(value_ES)
            integral_PS = power_integrals(start_S, start_S + tracker.horizon * motion.lr_S)
            squared_S = tracker.horizon * motion.lr_S * motion.lr_S
            raw_S = tracker.raw_std(integral_PS, squared_S, first_PS, second_PS, noise_S)
            tracker.settle(raw_S, self._nearest_scored(place))
            tracker.make(
                Made(
                    step=now.step,
                    level_S=motion.level_S.copy(),
                    tau_S=motion.tau_S,
                    offset_S=motion.offset_S,
                    decay_S=motion.decay_S,
                    squared_S=motion.squared_S,
                    value_ES=value_ES,
                    first_PS=first_PS,
                    second_PS=second_PS,
                    noise_S=noise_S,
                    scale_S=tracker.live_scale_S,
                    quantile_S=tracker.quantile_S,
                    slope_GS=slope_GS,
                    answer_S=self._displacement.answer(tracker.horizon * moving_S, float(tracker.horizon)),
                )
            )

    def _nearest_scored(self, place: int) -> HorizonTracker | None:
        scored = [i for i, tracker in enumerate(self._trackers) if tracker.n_S[-1] > 0]
        return self._trackers[min(scored, key=lambda i: abs(i - place))] if scored else None

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
        low_h, share_h = _between(np.array(self.horizons, dtype=np.float64), steps_h)
        value_ES = self._experts.values_ES()
        moments = [tracker.moments(value_ES) for tracker in self._trackers]
        first_hPS = _blend(np.stack([first for first, _ in moments]), low_h, share_h)
        second_hPS = _blend(np.stack([second for _, second in moments]), low_h, share_h)
        scale_hS = _blend(np.stack([tracker.live_scale_S for tracker in self._trackers]), low_h, share_h)
        quantile_hS = _blend(np.stack([tracker.quantile_S for tracker in self._trackers]), low_h, share_h)
        start_S = self._motion.tau_S + self._motion.offset_S
        integral_PhS = power_integrals(start_S, start_S + tau_hS)
        free_hS = np.einsum("hps,phs->hs", first_hPS, integral_PhS)
        second_hS = np.einsum("hps,phs->hs", second_hPS, integral_PhS**2)
        growth_h1 = noise_growth(self.optimizer, self.momentum, steps_h)[:, None]
        variance_hS = raw_variance(squared_hS, self._noise(), growth_h1, free_hS, second_hS)
        return self._motion.level_S + log_decay_hS + free_hS, scale_hS * np.sqrt(variance_hS), quantile_hS

    def _status(self, future: Plan, horizon: int, finite: bool) -> tuple[Status, tuple[str, ...]]:
        load_L = self._ratio.load_L(self._lr_L, future.lr_hS[:, :-1].max(axis=0))
        worst = int(np.argmax(load_L))
        load = float(load_L[worst])
        status = self._judge(load, horizon, finite)
        if not load > WARN_LOAD:
            return status, ()
        verdict = "refused" if load > 1.0 else "near its limit"
        return status, (f"planned lr moves layer {self.names[worst]!r} by {load:.2f} of what it bears: {verdict}",)

    def _judge(self, load: float, horizon: int, finite: bool) -> Status:
        if self.updates > 0 and not finite:
            return Status.NON_FINITE
        if load > 1.0:
            return Status.UNSTABLE
        if self.updates < _FEW_POINTS:
            return Status.TOO_FEW_POINTS
        return Status.OK if self._reference(horizon).n_S[-1] >= _CALIBRATED else Status.UNCALIBRATED

    def _reference(self, horizon: int) -> HorizonTracker:
        """Return the tracker that vouches for a horizon: the longest one within it that the measuring can score."""
        able = [tracker for tracker in self._trackers if tracker.n_S[-1] > 0 or tracker.dropped == 0]
        able = able or list(self._trackers)
        within = [tracker for tracker in able if tracker.horizon <= horizon]
        return within[-1] if within else able[0]


def _between(horizons_H: Array, steps_h: Array) -> tuple[np.ndarray[Any, np.dtype[np.intp]], Array]:
    """Return, for each number of steps, the index of the tracked horizon below it and the share of the next one."""
    place_h = np.interp(np.log(steps_h), np.log(horizons_H), np.arange(len(horizons_H), dtype=np.float64))
    low_h = np.minimum(place_h.astype(np.intp), max(len(horizons_H) - 2, 0))
    return low_h, place_h - low_h


def _blend(values_H: Array, low_h: np.ndarray[Any, np.dtype[np.intp]], share_h: Array) -> Array:
    high_h = np.minimum(low_h + 1, len(values_H) - 1)
    share = share_h.reshape(-1, *([1] * (values_H.ndim - 1)))
    return np.asarray((1.0 - share) * values_H[low_h] + share * values_H[high_h])


_SMOOTHING_G = np.array(SMOOTHINGS)
_ARRAYS = (
    *("_lr_L", "_weight_decay_L", "_composition_L", "_noise_S", "_noise_mass_S"),
    *("_residual_S", "_residual_mass_S", "_slope_GS", "_slope_mass_GS", "_rate_S"),
)
