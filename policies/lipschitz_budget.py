"""A budget for the growth of the network's Lipschitz bound: the learning rate is cut where growth would overrun it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipadvisor.policies.chain import NOTHING, PASS
from lipadvisor.policies.checks import (
    require_at_least_one,
    require_factor,
    require_fraction,
    require_non_negative,
    require_positive,
)
from lipadvisor.policies.contract import Decision, Knobs, Observation, Status
from lipadvisor.policies.quick_record import quick_record

__all__ = ["LipschitzBudget", "LipschitzBudgetState"]


@quick_record
@dataclass(frozen=True, slots=True)
class LipschitzBudgetState:
    """Memory of :class:`LipschitzBudget`. ``None``: not seen yet."""

    reference: float | None = None  # nats: Z of a healthy start
    growth: float = 0.0  # nats per step, smoothed
    variance: float = 0.0  # nats^2: variance of one step's growth, smoothed
    measured_step: int = -1
    weight: float = 1.0  # sum of the composition weights: the number of matrices, in a plain chain
    first_loss: float | None = None
    loss: float | None = None  # smoothed
    best: float = math.inf  # lowest validation loss
    validated_step: int = -1  # of the last validation
    wins: float = 0.0  # twentieths of the run that ended with the best validation so far, less those that did not


@dataclass(frozen=True, slots=True)
class LipschitzBudget:
    """Cuts the learning rate so that ``Z``, looked ahead, stays within a budget counted from a healthy start.

    ``Z`` may rise above its reference by ``budget`` nats per weight matrix over the run, ``first_share`` of it from
    the start. The reference counts each layer at least at the norm it would have with the gain ``healthy_gain``: a
    network that starts small must be allowed to grow; and each convolution with its taps aligned, which training does
    at once. What is to come within ``lookahead`` of the run is the mean and
    ``deviations`` standard deviations of the growth ``lr * drift`` of the last steps. That growth happened under the
    learning rate as cut, so the cut settles at the square root of the one that an open loop would make: soft on
    purpose.

    Where validation losses are reported, they say whether growth pays. Each that is the lowest so far, and not far
    above the training loss, makes all of the room ``release`` times as large, each other takes one such factor back,
    down to none; of more frequent ones, each counts by its share of half a ``lookahead``. So a network that learns on
    from one validation to the next is not held; one that learns by heart, or whose loss fluctuates under large steps,
    is.

    Args:
        budget: nats per unit of composition weight (per matrix, in a plain chain), > 0.
        first_share: share of the budget that is free from the start, in [0, 1].
        lookahead: share of the run to look ahead, and to remember the growth for, in (0, 1].
        unknown_lookahead: the same in steps where the horizon is unknown, >= 1.
        deviations: standard deviations of the growth that are counted, >= 0.
        lowest: smallest factor on the learning rate, in (0, 1].
        healthy_gain: gain ``rms(W) sqrt(fan_in)`` of a healthy layer, > 0.
        loss_room: how much more room there is while the training loss stands at its first value, >= 0. A first loss
            that is not positive gives none.
        release: factor on the room for each validation that is the best so far, in [1, 100]; 1 to be blind to them.
        most_release: factor on the room that is never exceeded, in [1, 100].
        release_gap: ratio of the validation to the smoothed training loss above which none releases any room, > 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    budget: float = 0.3
    first_share: float = 0.2
    lookahead: float = 0.1
    unknown_lookahead: int = 50
    deviations: float = 2.0
    lowest: float = 0.05
    healthy_gain: float = 1.2
    loss_room: float = 3.0
    release: float = 1.2
    most_release: float = 4.0
    release_gap: float = 1.5

    def __post_init__(self) -> None:
        owner = "LipschitzBudget"
        for argument in ("budget", "lookahead", "lowest", "healthy_gain", "release_gap"):
            require_positive(owner, argument, getattr(self, argument))
        for argument in ("first_share", "lookahead", "lowest"):
            require_fraction(owner, argument, getattr(self, argument))
        require_at_least_one(owner, "unknown_lookahead", self.unknown_lookahead)
        require_non_negative(owner, "deviations", self.deviations)
        require_non_negative(owner, "loss_room", self.loss_room)
        for argument in ("release", "most_release"):
            require_factor(owner, argument, getattr(self, argument))

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
        if observation.step <= 0:
            return NOTHING, state
        level = observation.network.log_norm
        if not math.isfinite(level):
            return Decision(observation.step, self.name, "hold:budget_non_finite"), state
        ahead = self._ahead(observation)
        state = self._learn(observation, ahead, state)
        if state.reference is None or state.measured_step < 0:
            return NOTHING, state
        head = max(1e-3, self._allowed(observation, ahead, state) - (level - state.reference))
        spread = math.sqrt(state.variance * ahead)
        need = max(0.0, state.growth) * ahead + self.deviations * spread
        factor = 1.0 if need <= head else max(self.lowest, head / need)
        wanted = decision.knobs if factor < 1.0 else ()
        knobs = tuple([Knobs(k.group, k.lr * factor) for k in wanted if k.lr is not None])
        reason = "budget" if factor < 1.0 else PASS
        read = (
            ("budget_head", head),
            ("growth", state.growth * ahead),
            ("growth_std", spread),
            ("budget_factor", factor),
        )
        return Decision(observation.step, self.name, reason, knobs, (), (), False, False, False, read), state

    def healthy(self, observation: Observation) -> tuple[float, float]:
        """Return Z of a healthy start, nats, and the sum of the composition weights: what a budget is counted by."""
        return self._reference(observation), _total_weight(observation)

    def _allowed(self, observation: Observation, ahead: float, state: LipschitzBudgetState) -> float:
        """Return the growth allowed so far, nats above the reference."""
        total = observation.total_steps
        done = 1.0 if total is None else min(1.0, (observation.step + ahead) / max(total, 1))
        room = 1.0 + self.loss_room * math.sqrt(_share(state.loss, state.first_loss))
        room *= math.exp(state.wins * math.log(self.release))
        return self.budget * state.weight * room * (self.first_share + (1.0 - self.first_share) * done)

    def _ahead(self, observation: Observation) -> float:
        """Return the number of steps to look ahead."""
        total = observation.total_steps
        return float(self.unknown_lookahead) if total is None else max(1.0, self.lookahead * total)

    def _learn(self, observation: Observation, ahead: float, state: LipschitzBudgetState) -> LipschitzBudgetState:
        """Take up a new measurement: the reference once, mean and variance of a step's growth smoothed."""
        network = observation.network
        reference = state.reference
        if reference is None and not any(x.log_gain == -math.inf for x in observation.layers):
            reference = self._reference(observation)
        steps = observation.measured_step - state.measured_step
        first, loss = _follow_loss(observation.loss, steps / (LOSS_MEMORY * ahead), state)
        lr = max([k.lr for k in observation.knobs if k.lr is not None], default=0.0)
        growth = lr * network.drift
        mean, variance, at, weight = state.growth, state.variance, state.measured_step, state.weight
        if steps > 0 and network.status is not Status.NOT_MEASURED and abs(growth) < LARGEST_GROWTH:  # false for nan
            new = 1.0 - math.exp(-steps / ahead)
            mean += new * (growth - mean)
            variance += new * ((growth - mean) ** 2 - variance)
            at, weight = observation.measured_step, _total_weight(observation)
        best, validated, wins = state.best, state.validated_step, state.wins
        when = observation.validation_step
        if when is not None and when > validated:
            best, validated, wins = self._follow_validation(observation, ahead, state)
        return LipschitzBudgetState(reference, mean, variance, at, weight, first, loss, best, validated, wins)

    def _follow_validation(
        self, observation: Observation, ahead: float, state: LipschitzBudgetState
    ) -> tuple[float, int, float]:
        """Return the lowest validation loss, the step of the last one, and the balance of the wins."""
        loss, when = observation.validation_loss, observation.validation_step
        if loss is None or when is None or not math.isfinite(loss):
            return state.best, state.validated_step, state.wins
        if state.validated_step < 0:  # the first one is no news
            return loss, when, state.wins
        share = min(1.0, (when - state.validated_step) / (0.5 * ahead))
        if loss < state.best and (state.loss is None or loss <= self.release_gap * state.loss):
            most = math.log(self.most_release) / math.log(self.release) if self.release > 1.0 else 0.0
            return loss, when, min(state.wins + share, most)
        return min(state.best, loss), when, max(0.0, state.wins - share)

    def _reference(self, observation: Observation) -> float:
        """Return Z of a healthy start: no layer counted below the norm that it has at ``healthy_gain``."""
        reference = float(observation.network.log_norm)
        for layer in observation.layers:
            lift = math.log(self.healthy_gain) - layer.log_gain
            if math.isfinite(lift * layer.composition_weight):
                aligned = ALIGNED_TAPS.get(layer.kind, 0.0)
                reference += layer.composition_weight * (max(0.0, min(lift, 20.0)) + aligned)
        return reference


# Nats by which a convolution's norm rises when its taps, drawn at random, come to point the same way, the weights no
# larger than before: half the logarithm of the number of taps, for the usual three in each direction.
ALIGNED_TAPS = {f"conv{n}d": 0.5 * n * math.log(3.0) for n in (1, 2, 3)}
LOSS_MEMORY = 0.5  # of the loss, relative to that of the growth
LARGEST_GROWTH = 1e6  # nats in one step: more is not a measurement


def _total_weight(observation: Observation) -> float:
    """Return the sum of the composition weights, at least 1."""
    total = sum([layer.composition_weight for layer in observation.layers])
    return max(total, 1.0) if math.isfinite(total) else 1.0


def _follow_loss(loss: float | None, elapsed: float, state: LipschitzBudgetState) -> tuple[float | None, float | None]:
    """Return the first and the smoothed loss, ``elapsed`` memories after the last one."""
    if loss is None or not math.isfinite(loss) or elapsed <= 0.0:
        return state.first_loss, state.loss
    if state.first_loss is None or state.loss is None:
        return loss, loss
    return state.first_loss, state.loss + (1.0 - math.exp(-elapsed)) * (loss - state.loss)


def _share(loss: float | None, first: float | None) -> float:
    """Return the loss relative to the first one, in [0, 1]; 0 where that says nothing."""
    if loss is None or first is None or not first > 0.0:
        return 0.0
    return min(1.0, max(0.0, loss / first))
