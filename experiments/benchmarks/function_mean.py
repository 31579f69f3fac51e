"""The default, its rate averaged with that of a second estimate of the step: the measured change of the function.

It reads ``function_rate``, which only the bench's wider observation has: one more forward pass a measurement, and the
spread of the targets for a regression. A candidate, not a product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from lipadvisor.policies import Decision, Guard, Knobs, Lipschitz, Observation, Policy, chain
from lipadvisor.policies.chain import NOTHING, PASS

__all__ = ["FunctionMean", "FunctionStep"]


@dataclass(frozen=True, slots=True)
class FunctionStepState:
    """Memory of :class:`FunctionStep`. ``None``: nothing measured yet."""

    log_rate: float | None = None  # ln of the function's change per unit of learning rate, smoothed


@dataclass(frozen=True, slots=True)
class FunctionStep:
    """Moves the proposed rate towards the one at which the outputs change by ``change`` a step.

    Two estimates of the right step whose errors are independent have a geometric mean that errs less than either, and
    a constant wrong by a factor moves the mean by its root only.

    Args:
        change: wanted rms change of the centred outputs a step, over the targets' spread for a regression, in a run of
            400 steps, > 0. It falls with the square root of the run's length.
        weight: share of this estimate in the mean of the logarithms, in [0, 1].
        smoothing: memory of the measured change, per measurement, in [0, 1).
    """

    change: float = 0.18
    weight: float = 0.5
    smoothing: float = 0.7

    @property
    def name(self) -> str:
        """Short name."""
        return "function_step"

    def init(self) -> FunctionStepState:
        """Return the empty state."""
        return FunctionStepState()

    def refine(
        self, observation: Observation, decision: Decision, state: FunctionStepState
    ) -> tuple[Decision, FunctionStepState]:
        """Return the learning rates of ``decision``, averaged with the function's."""
        rate, log_rate = getattr(observation, "function_rate", 0.0), state.log_rate
        if 0.0 < rate < math.inf:
            fresh = math.log(rate)
            log_rate = fresh if log_rate is None else fresh + self.smoothing * (log_rate - fresh)
        if log_rate is None or observation.step < 2:
            return NOTHING, FunctionStepState(log_rate)
        wanted = math.log(self.change) + 0.5 * math.log(400.0 / (observation.total_steps or 400)) - log_rate
        knobs = tuple(
            Knobs(k.group, math.exp((1.0 - self.weight) * math.log(k.lr) + self.weight * wanted))
            for k in decision.knobs
            if k.lr is not None
        )
        return Decision(observation.step, self.name, PASS, knobs), FunctionStepState(log_rate)


@dataclass(frozen=True, slots=True)
class FunctionMean:
    """The default's line with :class:`FunctionStep` after its first part."""

    base: Lipschitz = field(default_factory=Lipschitz)
    step: FunctionStep = field(default_factory=FunctionStep)
    _line: Policy[Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        first, *others = self.base.line().members
        object.__setattr__(self, "_line", Guard(chain(first, self.step, *others, name=self.name), title=self.name))

    @property
    def name(self) -> str:
        """Short name."""
        return "function_mean"

    def init(self) -> Any:
        """Return the state before the first observation."""
        return self._line.init()

    def decide(self, observation: Observation, state: Any) -> tuple[Decision, Any]:
        """Return the decision for step ``observation.step``."""
        return self._line.decide(observation, state)
