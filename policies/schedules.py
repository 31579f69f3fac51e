"""The baselines: learning rates that follow the step number alone.

Every schedule sets the same learning rate and decoupled weight decay in every parameter group. ``warmup_fraction`` is
the share of the run in which the learning rate rises linearly to its peak. What needs the horizon holds without one,
with the reason ``hold:no_horizon``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lipadvisor.policies.checks import require_fraction, require_non_negative, require_positive, require_tuple
from lipadvisor.policies.contract import Decision, Knobs, Observation, hold

__all__ = ["Constant", "Cosine", "Linear", "NoState", "OneCycle", "Step", "WarmupStableDecay"]


@dataclass(frozen=True, slots=True)
class NoState:
    """The memory of a policy that needs none."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What all schedules share; subclasses give ``factor``, the share of the peak learning rate after the warmup.

    Args:
        lr: peak learning rate, per step, > 0.
        weight_decay: decoupled, per unit of tau, >= 0.
        warmup_fraction: share of the run in which the learning rate rises linearly, in [0, 1].

    Raises:
        ValueError: an argument is out of its range.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup_fraction: float = 0.0

    title: ClassVar[str] = "schedule"
    needs_horizon: ClassVar[bool] = True

    def __post_init__(self) -> None:
        owner = type(self).__name__
        require_positive(owner, "lr", self.lr)
        require_non_negative(owner, "weight_decay", self.weight_decay)
        require_fraction(owner, "warmup_fraction", self.warmup_fraction)

    @property
    def name(self) -> str:
        """Short name."""
        return self.title

    def init(self) -> NoState:
        """Return the empty state."""
        return NoState()

    def decide(self, observation: Observation, state: NoState) -> tuple[Decision, NoState]:
        """Return learning rate and weight decay for every group, for step ``observation.step``."""
        total = observation.total_steps
        if total is None or total < 1:
            if self.needs_horizon or self.warmup_fraction > 0.0:
                return hold(observation, self.name, "no_horizon"), state
            total = max(1, observation.step + 1)
        step = min(max(observation.step, 0), total)
        warmup_steps = self.warmup_fraction * total
        share = warmup_share(step, warmup_steps) * self.factor(step, total, warmup_steps)
        warmed = step + 1 >= warmup_steps
        started = warmed and step >= self.cooldown_step(total, warmup_steps)
        decision = Decision(
            step=observation.step,
            policy=self.name,
            reason=f"{self.title}:{'cooldown' if started else 'stable' if warmed else 'warmup'}",
            knobs=same_knobs(observation, self.lr * max(share, LOWEST_SHARE), self.weight_decay),
            warmup_ended=warmed,
            cooldown_started=started,
            read=(("step", float(step)), ("total_steps", float(total)), ("share", share)),
        )
        return decision, state

    def factor(self, step: int, total: int, warmup_steps: float) -> float:
        """Return the share of the peak at ``step``, in [0, 1], the warmup left out."""
        return 1.0

    def cooldown_step(self, total: int, warmup_steps: float) -> float:
        """Return the first step of the cooldown; infinite if there is none."""
        return math.inf


LOWEST_SHARE = 1e-6  # a learning rate must stay above zero


def warmup_share(step: int, warmup_steps: float) -> float:
    """Return the share of the peak in a linear warmup: its first step is not zero, its last is 1."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0.0 else 1.0


def same_knobs(observation: Observation, lr: float, weight_decay: float | None) -> tuple[Knobs, ...]:
    """Return the same learning rate and weight decay for every group of ``observation``."""
    return tuple([Knobs(knobs.group, lr, weight_decay) for knobs in observation.knobs])


def progress(step: float, start: float, end: float) -> float:
    """Return how far ``step`` is from ``start`` to ``end``, in [0, 1]."""
    return min(1.0, max(0.0, (step - start) / (end - start))) if end > start else float(step >= end)


@dataclass(frozen=True, slots=True)
class Constant(Schedule):
    """The peak learning rate throughout. Needs a horizon only for a warmup."""

    title: ClassVar[str] = "constant"
    needs_horizon: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Linear(Schedule):
    """From the peak, after the warmup, straight down to ``final_fraction`` of it at the end."""

    final_fraction: float = 0.0

    title: ClassVar[str] = "linear"

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        require_fraction("Linear", "final_fraction", self.final_fraction)

    def factor(self, step: int, total: int, warmup_steps: float) -> float:
        """Return the share of the peak at ``step``, in [0, 1]."""
        return 1.0 - (1.0 - self.final_fraction) * progress(step, warmup_steps, total)

    def cooldown_step(self, total: int, warmup_steps: float) -> float:
        """Return the first step after the warmup."""
        return warmup_steps


@dataclass(frozen=True, slots=True)
class Cosine(Schedule):
    """From the peak, after the warmup, down half a cosine to ``final_fraction`` of it (Loshchilov and Hutter 2017)."""

    final_fraction: float = 0.0

    title: ClassVar[str] = "cosine"

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        require_fraction("Cosine", "final_fraction", self.final_fraction)

    def factor(self, step: int, total: int, warmup_steps: float) -> float:
        """Return the share of the peak at ``step``, in [0, 1]."""
        wave = 0.5 * (1.0 + math.cos(math.pi * progress(step, warmup_steps, total)))
        return self.final_fraction + (1.0 - self.final_fraction) * wave

    def cooldown_step(self, total: int, warmup_steps: float) -> float:
        """Return the first step after the warmup."""
        return warmup_steps


@dataclass(frozen=True, slots=True)
class WarmupStableDecay(Schedule):
    """The peak until the last ``decay_fraction`` of the run, then linearly to zero (Hu et al. 2024, MiniCPM)."""

    decay_fraction: float = 0.3

    title: ClassVar[str] = "wsd"

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        require_fraction("WarmupStableDecay", "decay_fraction", self.decay_fraction)
        if self.decay_fraction + self.warmup_fraction > 1.0:
            raise ValueError(
                f"WarmupStableDecay(decay_fraction=...) must be at most 1 - warmup_fraction = "
                f"{1.0 - self.warmup_fraction!r}, got {self.decay_fraction!r}."
            )

    def factor(self, step: int, total: int, warmup_steps: float) -> float:
        """Return the share of the peak at ``step``, in [0, 1]."""
        start = self.cooldown_step(total, warmup_steps)
        return 1.0 if step < start else 1.0 - progress(step, start, total)

    def cooldown_step(self, total: int, warmup_steps: float) -> float:
        """Return the first step of the decay."""
        return total * (1.0 - self.decay_fraction)


@dataclass(frozen=True, slots=True)
class OneCycle(Schedule):
    """Up half a cosine over ``warmup_fraction`` of the run, down another one to almost zero (Smith and Topin 2018).

    Args:
        lr: peak learning rate, per step, > 0.
        weight_decay: decoupled, per unit of tau, >= 0.
        warmup_fraction: share of the run that goes up, in [0, 1].
        start_fraction: share of the peak at the first step, in [0, 1].
    """

    warmup_fraction: float = 0.3
    start_fraction: float = 0.04

    title: ClassVar[str] = "one_cycle"

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        require_fraction("OneCycle", "start_fraction", self.start_fraction)

    def decide(self, observation: Observation, state: NoState) -> tuple[Decision, NoState]:
        """Return learning rate and weight decay for every group, for step ``observation.step``."""
        total = observation.total_steps
        if total is None or total < 1:
            return hold(observation, self.name, "no_horizon"), state
        step = min(max(observation.step, 0), total)
        peak = self.warmup_fraction * total
        if step < peak:
            wave = 0.5 * (1.0 - math.cos(math.pi * step / peak))
            share = self.start_fraction + (1.0 - self.start_fraction) * wave
        else:
            share = 0.5 * (1.0 + math.cos(math.pi * progress(step, peak, total)))
        falling = step >= peak
        decision = Decision(
            step=observation.step,
            policy=self.name,
            reason=f"one_cycle:{'cooldown' if falling else 'warmup'}",
            knobs=same_knobs(observation, self.lr * max(share, LOWEST_SHARE), self.weight_decay),
            warmup_ended=falling,
            cooldown_started=falling,
            read=(("step", float(step)), ("total_steps", float(total)), ("share", share)),
        )
        return decision, state


@dataclass(frozen=True, slots=True)
class Step(Schedule):
    """The peak, multiplied by ``gamma`` at each of the ``milestones``, which are shares of the run, ascending."""

    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1

    title: ClassVar[str] = "step"

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        require_positive("Step", "gamma", self.gamma)
        require_fraction("Step", "gamma", self.gamma)
        for milestone in require_tuple("Step", "milestones", self.milestones):
            require_fraction("Step", "milestones", milestone)
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"Step(milestones=...) must ascend, got {self.milestones!r}.")

    def factor(self, step: int, total: int, warmup_steps: float) -> float:
        """Return the share of the peak at ``step``, in [0, 1]."""
        return self.gamma ** sum(step >= milestone * total for milestone in self.milestones)

    def cooldown_step(self, total: int, warmup_steps: float) -> float:
        """Return the step of the first milestone."""
        return self.milestones[0] * total if self.milestones else math.inf
