"""A budget for the growth of the network's Lipschitz bound: the learning rate is cut where the forecast overruns it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lipadvisor.policies.chain import PASS
from lipadvisor.policies.checks import (
    require_at_least_one,
    require_fraction,
    require_non_negative,
    require_positive,
)
from lipadvisor.policies.contract import Band, Decision, Knobs, Observation, Status

__all__ = ["LipschitzBudget", "LipschitzBudgetState"]


@dataclass(frozen=True, slots=True)
class LipschitzBudgetState:
    """Memory of :class:`LipschitzBudget`. ``None``: not seen yet."""

    reference: float | None = None  # nats: Z of a healthy start
    growth: float | None = None  # nats per tau, smoothed
    variance: float | None = None  # nats^2 per tau^2: variance of one step, smoothed
    measured_step: int = -1
    weight: float = 1.0  # sum of the composition weights: the number of matrices, in a plain chain


@dataclass(frozen=True, slots=True)
class LipschitzBudget:
    """Cuts the learning rate so that ``Z``, looked ahead, stays within a budget counted from a healthy start.

    ``Z`` may rise above its reference by ``budget`` nats per weight matrix over the run, ``first_share`` of it from
    the start. The reference counts each layer at least at the norm it would have with the gain ``healthy_gain``: a
    network that starts small must be allowed to grow. What is to come within ``lookahead`` of the run is read from the
    forecast's band where one is calibrated, else from the smoothed drift and diffusion; both a mean and a spread of
    ``deviations``.

    Args:
        budget: nats per unit of composition weight (per matrix, in a plain chain), > 0.
        first_share: share of the budget that is free from the start, in [0, 1].
        lookahead: share of the run to look ahead, in (0, 1].
        unknown_lookahead: steps to look ahead where the horizon is unknown, >= 1.
        deviations: standard deviations of the growth that are counted, >= 0.
        lowest: smallest factor on the learning rate, in (0, 1].
        healthy_gain: gain ``rms(W) sqrt(fan_in)`` of a healthy layer, > 0.
        smoothing: memory of the mean rates per step, in [0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """

    budget: float = 1.0
    first_share: float = 0.2
    lookahead: float = 0.1
    unknown_lookahead: int = 50
    deviations: float = 2.0
    lowest: float = 0.05
    healthy_gain: float = 1.2
    smoothing: float = 0.9

    def __post_init__(self) -> None:
        owner = "LipschitzBudget"
        for argument in ("budget", "lookahead", "lowest", "healthy_gain"):
            require_positive(owner, argument, getattr(self, argument))
        for argument in ("first_share", "lookahead", "lowest"):
            require_fraction(owner, argument, getattr(self, argument))
        require_at_least_one(owner, "unknown_lookahead", self.unknown_lookahead)
        require_non_negative(owner, "deviations", self.deviations)
        if not 0.0 <= self.smoothing < 1.0:
            raise ValueError(f"LipschitzBudget(smoothing=...) must be in [0, 1), got {self.smoothing!r}.")

    @property
    def name(self) -> str:
        """Short name."""
        return "lipschitz_budget"

    def init(self) -> LipschitzBudgetState:
        """Return the state before the first observation."""
        return LipschitzBudgetState()

    def refine(
        self, observation: Observation, decision: Decision, state: LipschitzBudgetState
    ) -> tuple[Decision, LipschitzBudgetState]:
        """Return the learning rates of ``decision``, cut where the growth to come exceeds the head room."""
        lr = max((k.lr for k in decision.knobs if k.lr is not None), default=None)
        if observation.step <= 0 or lr is None:
            return Decision(observation.step, self.name, PASS), state
        level = observation.network.log_norm
        if not math.isfinite(level):
            return Decision(observation.step, self.name, "hold:budget_non_finite"), state
        state = self._learn(observation, state)
        if state.reference is None or state.growth is None or state.variance is None:
            return Decision(observation.step, self.name, PASS), state
        head = max(1e-3, self._allowed(observation, state.weight) - (level - state.reference))
        ahead = self._ahead(observation)
        growth, spread = self._to_come(observation, state, lr, ahead)
        need = growth + self.deviations * spread
        factor = 1.0 if need <= head else max(self.lowest, head / need)
        knobs = tuple(Knobs(k.group, k.lr * factor) for k in decision.knobs if k.lr is not None and factor < 1.0)
        return Decision(
            step=observation.step,
            policy=self.name,
            reason="budget" if factor < 1.0 else PASS,
            knobs=knobs,
            read=(("budget_head", head), ("growth", growth), ("growth_std", spread), ("budget_factor", factor)),
        ), state

    def _allowed(self, observation: Observation, weight: float) -> float:
        """Return the growth allowed so far, nats above the reference."""
        total = observation.total_steps
        done = 1.0 if total is None else min(1.0, (observation.step + self._ahead(observation)) / max(total, 1))
        return self.budget * weight * (self.first_share + (1.0 - self.first_share) * done)

    def _ahead(self, observation: Observation) -> float:
        """Return the number of steps to look ahead."""
        total = observation.total_steps
        return float(self.unknown_lookahead) if total is None else max(1.0, self.lookahead * total)

    def _learn(self, observation: Observation, state: LipschitzBudgetState) -> LipschitzBudgetState:
        """Take up a new measurement: the reference once, the rates smoothed."""
        network = observation.network
        reference = state.reference
        if reference is None:
            reference = self._reference(observation)
        steps = observation.measured_step - state.measured_step
        growth = network.drift + network.finite_step
        variance = network.diffusion**2 if abs(network.diffusion) < 1e150 else math.inf
        if steps <= 0 or network.status is Status.NOT_MEASURED or not math.isfinite(growth + variance):
            return replace(state, reference=reference, weight=_total_weight(observation))
        lr = max((k.lr for k in observation.knobs if k.lr is not None), default=0.0)
        variance = variance / lr if lr > 0.0 else 0.0  # diffusion^2 is per tau and holds the learning rate once
        if state.growth is not None and state.variance is not None and math.isfinite(variance):
            kept = self.smoothing**steps
            growth += kept * (state.growth - growth)
            variance += kept * (state.variance - variance)
        weight = _total_weight(observation)
        return LipschitzBudgetState(reference, growth, variance, observation.measured_step, weight)

    def _reference(self, observation: Observation) -> float:
        """Return Z of a healthy start: no layer counted below the norm that it has at ``healthy_gain``."""
        reference = observation.network.log_norm
        for layer in observation.layers:
            lift = math.log(self.healthy_gain) - layer.log_gain
            if math.isfinite(lift * layer.composition_weight):
                reference += layer.composition_weight * max(0.0, min(lift, 20.0))
        return reference

    def _to_come(
        self, observation: Observation, state: LipschitzBudgetState, lr: float, ahead: float
    ) -> tuple[float, float]:
        """Return mean (at least 0) and standard deviation of the growth over the next ``ahead`` steps, nats."""
        band = _nearest(observation.bands, ahead)
        used = max((k.lr for k in observation.knobs if k.lr is not None), default=0.0)
        if band is not None and used > 0.0:
            scale = lr / used * ahead / band.horizon
            growth = max(0.0, band.mean - observation.network.log_norm) * scale
            return min(growth, 1e6), min(band.std * lr / used * math.sqrt(ahead / band.horizon), 1e6)
        response = 1.0 / (1.0 - observation.momentum) if observation.optimizer.startswith("sgd") else 1.0
        growth = lr * max(0.0, state.growth or 0.0) * ahead
        return min(growth, 1e6), min(lr * response * math.sqrt((state.variance or 0.0) * ahead), 1e6)


def _nearest(bands: tuple[Band, ...], ahead: float) -> Band | None:
    """Return the trustworthy band whose horizon is within a factor 2 of ``ahead``, the nearest one."""
    best, distance = None, math.log(2.0)
    for band in bands:
        if band.status is Status.OK and band.horizon >= 1 and math.isfinite(band.mean + band.std) and band.std >= 0.0:
            apart = abs(math.log(band.horizon / ahead))
            if apart <= distance:
                best, distance = band, apart
    return best


def _total_weight(observation: Observation) -> float:
    """Return the sum of the composition weights, at least 1."""
    total = sum([layer.composition_weight for layer in observation.layers])
    return max(total, 1.0) if math.isfinite(total) else 1.0
