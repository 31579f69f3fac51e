"""A budget held by looking ahead: the learning rate is planned for the whole interval until the next decision.

Model-predictive control in its simplest honest form. Of the forecast over the next ``interval`` steps under the knobs
in force, the growth of the log-norm ``Z`` scales with the learning rate to first order, and so does its spread (the
noise of a step is ``lr`` times that of the direction); the finite-step part scales with its square. So the largest rate
for which ``growth + k sd`` fits the head room solves a quadratic equation, and no search is needed.

Where the observation carries forecast bands, calibrated ones, they are read; otherwise the forecast is that of the
linear stochastic differential equation, from the measured rates. The next measurement corrects what was planned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipadvisor.policies.chain import NOTHING, PASS
from lipadvisor.policies.checks import require_at_least_one, require_fraction, require_non_negative, require_positive
from lipadvisor.policies.contract import Band, Decision, Knobs, Observation, Status
from lipadvisor.policies.lipschitz_budget import LipschitzBudget

__all__ = ["ForecastBudget", "ForecastBudgetState", "largest_rate"]


@dataclass(frozen=True, slots=True)
class ForecastBudgetState:
    """Memory of :class:`ForecastBudget`. ``None``: not seen yet."""

    reference: float | None = None  # nats: Z of a healthy start
    weight: float = 1.0  # sum of the composition weights


@dataclass(frozen=True, slots=True)
class ForecastBudget:
    """Cuts the learning rate so that ``Z``, forecast to the end of the interval, stays within the budget there.

    The budget is that of :class:`~lipadvisor.policies.LipschitzBudget`: ``budget`` nats per matrix over the run,
    counted from a healthy start.

    Args:
        interval: steps until the next decision, >= 1: what ``every(policy, interval)`` wraps, or the probe's interval.
        budget: nats per unit of composition weight (per matrix, in a plain chain), > 0.
        first_share: share of the budget that is free from the start, in [0, 1].
        deviations: standard deviations of the forecast that must fit too, >= 0.
        softness: power of the cut that is made, in (0, 1]. 1 makes it whole, which is too much: the growth of a moment
            does not go on for a long interval, and the rate falls with the annealing besides.
        lowest: smallest factor on the learning rate, in (0, 1].
        healthy_gain: gain ``rms(W) sqrt(fan_in)`` of a healthy layer, > 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    interval: int = 100
    budget: float = 0.35
    first_share: float = 0.2
    deviations: float = 2.0
    softness: float = 0.5
    lowest: float = 0.05
    healthy_gain: float = 1.2

    def __post_init__(self) -> None:
        owner = "ForecastBudget"
        require_at_least_one(owner, "interval", self.interval)
        for argument in ("budget", "softness", "lowest", "healthy_gain"):
            require_positive(owner, argument, getattr(self, argument))
        require_fraction(owner, "first_share", self.first_share)
        require_fraction(owner, "softness", self.softness)
        require_fraction(owner, "lowest", self.lowest)
        require_non_negative(owner, "deviations", self.deviations)

    @property
    def name(self) -> str:
        """Short name."""
        return "forecast_budget"

    def init(self) -> ForecastBudgetState:
        """Return the state before the first observation."""
        return ForecastBudgetState()

    def refine(
        self, observation: Observation, decision: Decision, state: ForecastBudgetState
    ) -> tuple[Decision, ForecastBudgetState]:
        """Return the learning rates of ``decision``, cut to the largest that the forecast allows."""
        network, step = observation.network, observation.step
        if step <= 0:
            return NOTHING, state
        if not math.isfinite(network.log_norm):
            return Decision(step, self.name, "hold:budget_non_finite"), state
        if state.reference is None:
            state = ForecastBudgetState(*LipschitzBudget(healthy_gain=self.healthy_gain).healthy(observation))
        before = max([k.lr for k in observation.knobs if k.lr is not None], default=0.0)
        wished = max([k.lr for k in decision.knobs if k.lr is not None], default=0.0)
        if network.status is Status.NOT_MEASURED or not 0.0 < before < math.inf or wished <= 0.0:
            return NOTHING, state
        head = max(1e-3, self._allowed(observation, state) - (network.log_norm - (state.reference or 0.0)))
        linear, quadratic, source = self._forecast(observation, before)
        if not (math.isfinite(linear) and math.isfinite(quadratic)):
            return Decision(step, self.name, "hold:forecast_non_finite"), state
        fitting = min(1.0, largest_rate(linear, quadratic, head) / wished)
        factor = max(self.lowest, fitting**self.softness)
        wanted = decision.knobs if factor < 1.0 else ()
        knobs = tuple([Knobs(k.group, k.lr * factor) for k in wanted if k.lr is not None])
        read = (
            ("budget_head", head),
            ("forecast_growth", wished * (linear + wished * quadratic)),
            ("budget_factor", factor),
        )
        reason = f"forecast:{source}" if factor < 1.0 else PASS
        return Decision(step, self.name, reason, knobs, read=read), state

    def _allowed(self, observation: Observation, state: ForecastBudgetState) -> float:
        """Return the growth allowed by the end of the interval, nats above the reference."""
        total, end = observation.total_steps, observation.step + self.interval
        done = 1.0 if total is None else min(1.0, end / max(total, 1))
        return self.budget * state.weight * (self.first_share + (1.0 - self.first_share) * done)

    def _forecast(self, observation: Observation, lr: float) -> tuple[float, float, str]:
        """Return ``a, b`` of the growth ``a x + b x^2``, spread counted, at the rate ``x``; and what told them."""
        steps = float(self.interval)
        if observation.total_steps is not None:
            steps = min(steps, float(max(1, observation.total_steps - observation.step)))
        band = _band(observation.bands, steps)
        if band is not None:
            mean, std = band
            return (mean - observation.network.log_norm + self.deviations * std) / lr, 0.0, "bands"
        network = observation.network
        spread = self.deviations * network.diffusion * math.sqrt(steps / lr)  # diffusion grows as sqrt(lr) itself
        return steps * (network.drift + network.decay) + spread, steps * max(0.0, network.finite_step) / lr, "rates"


def largest_rate(linear: float, quadratic: float, head: float) -> float:
    """Return the largest ``x >= 0`` up to which ``linear x + quadratic x^2 <= head``; infinite if there is none.

    Args:
        linear: nats per unit of learning rate.
        quadratic: nats per unit of its square, >= 0.
        head: nats, > 0.
    """
    if quadratic <= 0.0:
        return head / linear if linear > 0.0 else math.inf
    # the form of the root that does not cancel for either sign of ``linear``
    root = math.hypot(linear, 2.0 * math.sqrt(quadratic) * math.sqrt(head))
    return 2.0 * head / (linear + root) if linear > 0.0 else (root - linear) / (2.0 * quadratic)


def _band(bands: tuple[Band, ...], steps: float) -> tuple[float, float] | None:
    """Return mean and standard deviation ``steps`` ahead: of the nearest calibrated band, stretched as they scale."""
    usable = [
        b
        for b in bands
        if b.status is Status.OK and math.isfinite(b.mean) and 0.0 <= b.std < math.inf and b.horizon > 0
    ]
    if not usable:
        return None
    best = min(usable, key=lambda b: abs(math.log(b.horizon / steps)))
    if not 0.5 <= best.horizon / steps <= 2.0:  # too far to stretch: the rates say as much
        return None
    first = min(usable, key=lambda b: b.horizon)
    slope = (best.mean - first.mean) / max(best.horizon - first.horizon, 1)
    return best.mean + slope * (steps - best.horizon), best.std * math.sqrt(steps / best.horizon)
