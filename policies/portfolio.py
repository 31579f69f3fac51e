"""Picks between policies by the progress that was measured under each.

A round tries every member for a few steps, in order and then in reverse (A B C C B A), so that a trend of the loss
that is common to all cancels; then the one under which the smoothed log-loss fell fastest drives until the next round.
All members watch every observation, so that a change of driver meets a policy that knows the run.

Short-horizon progress prefers small steps late in a run: the loss falls when the rate falls. So no round begins in
the last part of a run whose length is known, and the members should anneal by themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from lipadvisor.policies.checks import require_at_least_one, require_fraction, require_tuple
from lipadvisor.policies.contract import Decision, Observation, Policy
from lipadvisor.policies.members import member

__all__ = ["Portfolio", "PortfolioState", "portfolio"]


@dataclass(frozen=True, slots=True)
class PortfolioState:
    """Memory of :class:`Portfolio`."""

    members: tuple[Any, ...]
    gains: tuple[float, ...] = ()  # nats per step by which the log-loss fell, sum over this round's turns
    round_step: int = 0  # where the round began
    turn: int = -1  # the last one seen; the number of turns once the trials are over
    best: int = 0
    smooth: float | None = None  # log-loss
    turn_loss: float | None = None  # at the beginning of the turn
    seen_step: int = -1
    warmup_ended: bool = False
    cooldown_started: bool = False


@dataclass(frozen=True, slots=True)
class Portfolio:
    """See :func:`portfolio`."""

    policies: tuple[Policy[Any], ...]
    trial_steps: int
    drive_steps: int
    last_share: float
    smoothing: int

    def __post_init__(self) -> None:
        if len(require_tuple("portfolio", "policies", self.policies)) < 2:
            raise ValueError(f"portfolio(...) must be given at least two policies, got {len(self.policies)}.")
        for argument in ("trial_steps", "drive_steps", "smoothing"):
            require_at_least_one("portfolio", argument, getattr(self, argument))
        require_fraction("portfolio", "last_share", self.last_share)

    @property
    def name(self) -> str:
        """``portfolio(a|b|...)``."""
        return f"portfolio({'|'.join(policy.name for policy in self.policies)})"

    def init(self) -> PortfolioState:
        """Return the members' first states."""
        return PortfolioState(tuple(policy.init() for policy in self.policies), (0.0,) * len(self.policies))

    def decide(self, observation: Observation, state: PortfolioState) -> tuple[Decision, PortfolioState]:
        """Return the decision of the member whose turn it is, or of the best one."""
        asked = [p.decide(observation, s) for p, s in zip(self.policies, state.members, strict=True)]
        state = self._listen(observation, replace(state, members=tuple(memory for _, memory in asked)))
        driver = self._driver(state)
        chosen = asked[driver][0]
        told = f"{'trial' if state.turn < 2 * len(asked) else 'best'}:{driver}"
        decision = replace(
            chosen,
            policy=self.name,
            reason=f"{chosen.reason}+{told}"[:199],
            # before step 0 there is one set of weights for all: the first member's
            init_scale=asked[0][0].init_scale,
            warmup_ended=state.warmup_ended or chosen.warmup_ended,
            cooldown_started=state.cooldown_started or chosen.cooldown_started,
            rollback=any(part.rollback for part, _ in asked),
            read=(*chosen.read, *((f"gain[{i}]", gain) for i, gain in enumerate(state.gains))),
        )
        return decision, replace(state, warmup_ended=decision.warmup_ended, cooldown_started=decision.cooldown_started)

    def _driver(self, state: PortfolioState) -> int:
        count = len(self.policies)
        turn = max(state.turn, 0)
        return state.best if turn >= 2 * count else min(turn, 2 * count - 1 - turn)

    def _listen(self, observation: Observation, state: PortfolioState) -> PortfolioState:
        """Take up the loss, give the last turn its due, and find out whose turn it is now."""
        step, loss, count = observation.step, observation.loss, len(self.policies)
        if step <= state.seen_step:
            return state
        bad = loss is not None and not math.isfinite(loss)
        if loss is not None and not bad:
            log_loss = math.log(max(loss, 1e-12))
            kept = math.exp(-max(1, step - max(state.seen_step, 0)) / self.smoothing)
            smooth = log_loss if state.smooth is None else log_loss + kept * (state.smooth - log_loss)
            state = replace(state, smooth=smooth)
        state = replace(state, seen_step=step)
        turn = min((step - state.round_step) // self.trial_steps, 2 * count)
        if bad and state.turn < 2 * count:
            state = _credit(state, self._driver(state), -LARGE)
        if turn != state.turn:
            state = self._close_turn(state, turn)
        over = step - state.round_step >= 2 * count * self.trial_steps + self.drive_steps
        if over and not self._late(observation):
            return replace(state, gains=(0.0,) * count, round_step=step, turn=0, turn_loss=state.smooth)
        return state

    def _close_turn(self, state: PortfolioState, turn: int) -> PortfolioState:
        count = len(self.policies)
        if 0 <= state.turn < 2 * count and state.smooth is not None and state.turn_loss is not None:
            state = _credit(state, self._driver(state), (state.turn_loss - state.smooth) / self.trial_steps)
        best = max(range(count), key=lambda i: state.gains[i]) if turn == 2 * count else state.best
        return replace(state, turn=turn, best=best, turn_loss=state.smooth)

    def _late(self, observation: Observation) -> bool:
        total = observation.total_steps
        return total is not None and observation.step >= (1.0 - self.last_share) * total


LARGE = 1e6  # nats per step: a member under which the loss broke is not chosen in this round


def _credit(state: PortfolioState, member: int, gain: float) -> PortfolioState:
    gains = tuple(g + gain if i == member else g for i, g in enumerate(state.gains))
    return replace(state, gains=gains)


def portfolio(
    *policies: Policy[Any],
    trial_steps: int = 20,
    drive_steps: int = 200,
    last_share: float = 0.5,
    smoothing: int = 5,
) -> Portfolio:
    """Return the policy that lets the best of ``policies`` drive, chosen by the progress measured under each.

    Args:
        *policies: two or more; the first one's rescaling of the initialization counts.
        trial_steps: length of a turn; each member has two in a round, >= 1.
        drive_steps: steps that the best one drives before the next round, >= 1.
        last_share: share at the end of a run of known length in which no round begins, in [0, 1].
        smoothing: time constant of the mean of the log-loss, steps, >= 1.

    Raises:
        ValueError: there are fewer than two policies, or an argument is out of its range.
    """
    return Portfolio(
        tuple([member("portfolio", policy) for policy in policies]), trial_steps, drive_steps, last_share, smoothing
    )
