"""Two published-in-house rules with their exact constants, as policies: what the default is compared against.

The first measures the relative spectral size of the update and throttles under a budget on ``Z``; the second takes the
smaller of a cap on the weights' and a cap on the function's change, and holds the budget by shrinking the weights.
Both were written for a loop that sees the direction of the step that it is about to take. Here, as in the product, the
measurement is one step old, so the first step is a listening step and the rate rises at most fourfold a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lipadvisor.policies import Decision, Knobs, Observation, hold

__all__ = ["FirstRule", "RuleState", "SecondRule"]

_LISTEN = 0.01  # size of the first step relative to TAU, for the largest direction that Adam can give
_RISE = 4.0


@dataclass(frozen=True, slots=True)
class RuleState:
    """Memory of both rules."""

    z_0: float | None = None
    mean: float = 0.0  # of dz
    variance: float = 0.0
    log_function: float | None = None  # of G
    excess: float = 0.0  # E of the second rule
    lr: float = 0.0


def _listen(observation: Observation, tau: float) -> tuple[float, tuple[tuple[str, float], ...]]:
    """Return the first learning rate, and the rescaling of every matrix whose gain is outside 0.6 to 1.8."""
    lr = _LISTEN * tau * min(math.exp(x.log_norm) / math.sqrt(math.prod(x.shape)) for x in observation.layers)
    gains = ((layer.name, math.exp(layer.log_gain)) for layer in observation.layers)
    return lr, tuple((name, 1.2 / gain) for name, gain in gains if not 0.6 <= gain <= 1.8)


def _readable(observation: Observation) -> bool:
    return math.isfinite(observation.network.log_norm) and all(
        math.isfinite(layer.update_ratio) and layer.update_ratio > 0.0 for layer in observation.layers
    )


@dataclass(frozen=True, slots=True)
class FirstRule:
    """Relative spectral rate, throttled by a budget on the growth of ``Z`` from its start."""

    tau: float = 0.08
    budget: float = 0.3  # nats per matrix
    decay_total: float = 0.6

    @property
    def name(self) -> str:
        """Short name."""
        return "first_rule"

    def init(self) -> RuleState:
        """Return the empty state."""
        return RuleState()

    def decide(self, observation: Observation, state: RuleState) -> tuple[Decision, RuleState]:
        """Return the decision for step ``observation.step``."""
        step, total = observation.step, observation.total_steps
        if total is None or (step > 0 and not _readable(observation)):
            return hold(observation, self.name, "unusable"), state
        if step == 0:
            lr, scales = _listen(observation, self.tau)
            return Decision(0, self.name, "listen", (Knobs(0, lr, 0.0),), init_scale=scales), replace(state, lr=lr)
        z = observation.network.log_norm
        z_0 = z if state.z_0 is None else state.z_0
        s = 0.5 * (1.0 + math.cos(math.pi * step / total))
        lr = self.tau * s / max(layer.update_ratio for layer in observation.layers)
        dz = lr * observation.network.drift
        mean = 0.9 * state.mean + 0.1 * dz
        variance = 0.9 * state.variance + 0.1 * (dz - mean) ** 2
        ahead = 0.1 * total
        allowed = self.budget * len(observation.layers) * (0.2 + 0.8 * min(1.0, (step + ahead) / total))
        head = max(1e-3, allowed - (z - z_0))
        need = max(0.0, mean) * ahead + 2.0 * math.sqrt(variance * ahead)
        lr *= min(1.0, max(0.05, head / max(need, 1e-12)))
        lr = max(min(lr, _RISE * state.lr), 1e-12)
        shrink = min(0.1, 2.0 * self.decay_total * s / total)
        decision = Decision(step, self.name, "rate", (Knobs(0, lr, shrink / lr),))
        return decision, replace(state, z_0=z_0, mean=mean, variance=variance, lr=lr)


@dataclass(frozen=True, slots=True)
class SecondRule:
    """Two caps, on the weights' and on the function's change, and a budget held by shrinking the weights.

    Reads ``function_rate``, which only the bench's wider observation has; without it the first cap stands alone.
    """

    tau: float = 0.06
    phi: float = 0.6
    budget: float = 0.1  # nats per matrix
    excess: float = 0.3

    @property
    def name(self) -> str:
        """Short name."""
        return "second_rule"

    def init(self) -> RuleState:
        """Return the empty state."""
        return RuleState()

    def decide(self, observation: Observation, state: RuleState) -> tuple[Decision, RuleState]:
        """Return the decision for step ``observation.step``."""
        step, total = observation.step, observation.total_steps
        if total is None or (step > 0 and not _readable(observation)):
            return hold(observation, self.name, "unusable"), state
        if step == 0:
            lr, scales = _listen(observation, self.tau)
            return Decision(0, self.name, "listen", (Knobs(0, lr, 0.0),), init_scale=scales), replace(state, lr=lr)
        count = len(observation.layers)
        z = observation.network.log_norm
        z_0 = z if state.z_0 is None else state.z_0
        s = 0.5 * (1.0 + math.cos(math.pi * step / total))
        ratio = max(layer.update_ratio for layer in observation.layers)
        log_function = self._function(observation, state, ratio)
        cap = self.tau if log_function is None else min(self.tau, self.phi / math.exp(log_function))
        allowed = self.budget * count * (0.2 + 0.8 * min(1.0, (step + 0.1 * total) / total))
        over = min(0.1, max(0.0, (z - z_0 - allowed) / count))
        excess = state.excess * (1.0 - 1.0 / max(1.0, 0.1 * total)) + over
        room = self.excess * (0.2 + 0.8 * s)
        lr = cap * s / ratio * min(1.0, max(0.05, (room - excess) / (0.3 * room)))
        lr = max(min(lr, _RISE * state.lr), 1e-12)
        shrink = min(0.1, 2.0 * min(0.6, 0.002 * total) * s / total)
        scales = tuple((layer.name, math.exp(-over)) for layer in observation.layers) if over > 0.0 else ()
        decision = Decision(step, self.name, "caps", (Knobs(0, lr, shrink / lr),), weight_scale=scales)
        return decision, replace(state, z_0=z_0, log_function=log_function, excess=excess, lr=lr)

    def _function(self, observation: Observation, state: RuleState, ratio: float) -> float | None:
        """Return ``ln G``, smoothed."""
        rate = getattr(observation, "function_rate", 0.0)
        if not (0.0 < rate < math.inf):
            return state.log_function
        fresh = math.log(rate / ratio)
        return fresh if state.log_function is None else 0.7 * state.log_function + 0.3 * fresh
