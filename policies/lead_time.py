"""A guard that acts before the divergence: it keeps the forecast's time to danger above a few decisions.

The reactive guard goes back to a snapshot once the loss is no number. This one asks how many steps are left until the
network's log-norm ``Z``, at the upper edge of its forecast, passes a level that no healthy run reaches, and cuts the
learning rate while that *lead time* is shorter than ``decisions`` intervals. To first order the growth is in
proportion to the learning rate and the lead time in inverse proportion, so one division restores it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipadvisor.policies.chain import NOTHING, PASS
from lipadvisor.policies.checks import require_at_least_one, require_fraction, require_non_negative, require_positive
from lipadvisor.policies.contract import Decision, Knobs, Observation, Status
from lipadvisor.policies.lipschitz_budget import LipschitzBudget

__all__ = ["LeadTimeGuard", "LeadTimeGuardState"]


@dataclass(frozen=True, slots=True)
class LeadTimeGuardState:
    """Memory of :class:`LeadTimeGuard`. ``None``: not seen yet."""

    danger: float | None = None  # nats: Z from which on the run is lost


@dataclass(frozen=True, slots=True)
class LeadTimeGuard:
    """Refines any policy: ``chain(policy, LeadTimeGuard(interval=200))``.

    Danger is ``excess`` nats per matrix above a healthy start (see :class:`~lipadvisor.policies.LipschitzBudget`).
    Where the observation carries calibrated forecast bands, their upper edge is read; beyond them, and without them,
    it is that of the linear equation: ``drift + decay + finite step`` per step and ``deviations`` standard deviations.

    Args:
        interval: steps until the next decision, >= 1.
        decisions: intervals that must be left before danger, > 0.
        excess: nats per unit of composition weight (per matrix, in a plain chain) that are danger, > 0.
        deviations: standard deviations of the forecast's upper edge, >= 0.
        lowest: smallest factor on the learning rate, in (0, 1].

    Raises:
        ValueError: an argument is out of its range.
    """

    interval: int = 100
    decisions: float = 2.0
    excess: float = 1.5
    deviations: float = 2.0
    lowest: float = 0.05

    def __post_init__(self) -> None:
        owner = "LeadTimeGuard"
        require_at_least_one(owner, "interval", self.interval)
        for argument in ("decisions", "excess", "lowest"):
            require_positive(owner, argument, getattr(self, argument))
        require_non_negative(owner, "deviations", self.deviations)
        require_fraction(owner, "lowest", self.lowest)

    @property
    def name(self) -> str:
        """Short name."""
        return "lead_time_guard"

    def init(self) -> LeadTimeGuardState:
        """Return the state before the first observation."""
        return LeadTimeGuardState()

    def refine(
        self, observation: Observation, decision: Decision, state: LeadTimeGuardState
    ) -> tuple[Decision, LeadTimeGuardState]:
        """Return the learning rates of ``decision``, cut where danger is nearer than a few decisions."""
        network, step = observation.network, observation.step
        if step <= 0 or not math.isfinite(network.log_norm):
            return NOTHING, state
        if state.danger is None:
            healthy, weight = LipschitzBudget().healthy(observation)
            state = LeadTimeGuardState(healthy + self.excess * weight)
        danger = state.danger
        before = max([k.lr for k in observation.knobs if k.lr is not None], default=0.0)
        wished = max([k.lr for k in decision.knobs if k.lr is not None], default=0.0)
        usable = network.status is not Status.NOT_MEASURED and 0.0 < before < math.inf and wished > 0.0
        if not usable or danger is None:
            return NOTHING, state
        head = max(1e-3, danger - network.log_norm)
        lead, source = self._lead(observation, head, before)
        if math.isnan(lead):
            return Decision(step, self.name, "hold:lead_non_finite"), state
        lead *= before / wished  # the forecast is for the rate in force
        wanted = self.decisions * self.interval
        if observation.total_steps is not None:
            wanted = min(wanted, float(max(1, observation.total_steps - step)))
        factor = max(self.lowest, min(1.0, lead / wanted))
        cut = decision.knobs if factor < 1.0 else ()
        knobs = tuple([Knobs(k.group, k.lr * factor) for k in cut if k.lr is not None])
        reason = f"lead_time:{source}" if factor < 1.0 else PASS
        read = (("lead_steps", min(lead, 1e9)), ("lead_factor", factor))
        return Decision(step, self.name, reason, knobs, read=read), state

    def _lead(self, observation: Observation, head: float, lr: float) -> tuple[float, str]:
        """Return the steps until the forecast's upper edge has grown by ``head`` nats; and what told them."""
        level = observation.network.log_norm
        for band in observation.bands:  # ascending
            if band.status is not Status.OK or not math.isfinite(band.mean) or not 0.0 <= band.std < math.inf:
                continue
            rise = band.mean + self.deviations * band.std - level
            if rise >= head:
                return band.horizon * head / rise, "bands"
        network = observation.network
        trend = lr * (network.drift + network.decay + max(0.0, network.finite_step))
        return steps_until(trend, self.deviations * math.sqrt(lr) * network.diffusion, head), "rates"


def steps_until(trend: float, spread: float, head: float) -> float:
    """Return the first ``n > 0`` with ``trend n + spread sqrt(n) = head``; infinite if there is none.

    Args:
        trend: nats per step.
        spread: nats per square root of a step, >= 0.
        head: nats, > 0.
    """
    if math.isnan(trend) or math.isnan(spread):
        return math.nan
    if math.isinf(trend) or math.isinf(spread):
        return 0.0 if trend > 0.0 or spread == math.inf else math.inf
    discriminant = spread * spread + 4.0 * trend * head
    if discriminant < 0.0:
        return math.inf
    below = spread + math.sqrt(discriminant)
    return (2.0 * head / below) ** 2 if below > 0.0 else math.inf
