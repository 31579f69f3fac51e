"""When to measure: at fixed steps, or as often as a share of the run's time allows."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

__all__ = ["Budget"]

# Always measured, whatever the budget, and the debt is paid back later: a policy has to find its rate by step 5, and
# momentum goes on building up the update for some ten times as long.
EARLY_STEPS = (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 49, 66, 89, 120)
GRACE_S = 0.5  # seconds that measuring may take in any run: on tiny models a share of the time is too little
OWN_TIME = 0.8  # of the share that is spent knowingly: what is not seen is estimated
AROUND = 0.4  # of an idle step's hooks goes by around them too: 8 of 13 us (digits MLP), 5 to 8 of 21 (digits ConvNet)
TYPICAL = 31  # steps of either kind over which the time beside measuring is compared
FEW = 3  # of either kind below which it is not
FIRST_S = 0.03  # seconds of the run from which on they are spread over the logarithm of its time
_SAVED = ("measured_s", "total_s", "plain_s", "cost_s", "next_step")


@dataclass(slots=True)
class Budget:
    """Decides which steps are measured.

    Measuring takes the larger of ``0.8 max_overhead`` of the run's time and half a second in all: a run of ``0.5 /
    max_overhead`` seconds (17 by default) or more keeps to its share, and a shorter one of a tiny model has its half
    second spread over the logarithm of its time.

    What is timed inside the hooks is not all: a step with hooks is slower around them too (calls, autograd nodes, kept
    tensors, cold caches). So the rest of the measured steps is compared with the steps that are not measured, by
    medians, which a validation between two steps seldom moves; the difference, at most what was timed, is part of a
    measurement's cost. Nothing is left to compare the others with; what their hooks take is counted
    with 40 % on top.

    Attributes:
        max_overhead: allowed share of the run's time, in (0, 1].
        interval: fixed number of steps between measurements; None follows the budget.
        measured_s: seconds spent measuring so far.
        total_s: seconds of the run so far, measuring included.
        plain_s: smoothed seconds of a step without measuring.
        cost_s: smoothed seconds of one measurement.
        next_step: first step to be measured again.
    """

    max_overhead: float
    interval: int | None
    measured_s: float = 0.0
    total_s: float = 0.0
    plain_s: float = 0.0
    cost_s: float = 0.0
    next_step: int = 0
    _idle_s: deque[float] = field(default_factory=lambda: deque(maxlen=TYPICAL))
    _beside_s: deque[float] = field(default_factory=lambda: deque(maxlen=TYPICAL))

    @property
    def overhead(self) -> float:
        """Share of the run's time spent on measuring so far, in [0, 1]."""
        return self.measured_s / self.total_s if self.total_s > 0 else 0.0

    def due(self, step: int) -> bool:
        """Return whether step number ``step`` is to be measured."""
        if self.interval is not None:
            return step % self.interval == 0
        return step >= self.next_step or step in EARLY_STEPS

    def pass_over(self, step: int, step_s: float, own_s: float) -> None:
        """Account for an idle step, whose hooks took ``own_s``."""
        self.spend(step, step_s, min((1.0 + AROUND) * own_s, step_s), False)

    def spend(self, step: int, step_s: float, measure_s: float, measured: bool) -> int:
        """Account for one step; return the planned number of steps until the next measurement (1 or more)."""
        self.total_s += step_s
        self.measured_s += measure_s
        plain_s = max(step_s - measure_s, 1e-9)
        self.plain_s = plain_s if self.plain_s == 0.0 else self.plain_s + 0.1 * (plain_s - self.plain_s)
        if not measured:
            self._idle_s.append(plain_s)
            return max(1, self.next_step - step)
        self.cost_s = measure_s if self.cost_s == 0.0 else self.cost_s + 0.3 * (measure_s - self.cost_s)
        wait = self.interval if self.interval is not None else self._wait(step)
        self.next_step = step + wait
        early = [one - step for one in EARLY_STEPS if one > step and self.interval is None]
        return min([wait, *early[:1]])

    def unseen_s(self, beside_s: float) -> float:
        """Return the seconds that a measurement costs outside of its own timing, >= 0.

        Args:
            beside_s: of the measured step, what was not timed as measuring.
        """
        self._beside_s.append(beside_s)
        if min(len(self._idle_s), len(self._beside_s)) < FEW:
            return 0.0
        return max(0.0, median(self._beside_s) - median(self._idle_s))

    def urge(self, step: int, always: bool = False) -> None:
        """Have step number ``step`` measured, out of turn, unless twice the allowance is spent.

        Args:
            step: to be measured; with an ``interval`` nothing changes.
            always: whatever has been spent: the processes of one training must agree, and their clocks differ.
        """
        if always or self.measured_s <= 2.0 * max(GRACE_S, self.max_overhead * self.total_s):
            self.next_step = min(self.next_step, step)

    def charge(self, seconds: float) -> None:
        """Add ``seconds`` to the last measurement's cost and to the run's time."""
        self.measured_s += seconds
        self.total_s += seconds

    def state_dict(self) -> dict[str, float]:
        """Return what has been spent so far."""
        return {name: getattr(self, name) for name in _SAVED}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from :meth:`state_dict`."""
        for name in _SAVED:
            setattr(self, name, state[name])

    def _wait(self, step: int) -> int:
        """Return the steps after which one more measurement fits."""
        spent_s = self.measured_s + self.cost_s
        owed = (self._time_for(spent_s) - self.total_s - self.cost_s) / self.plain_s
        # The debt of the early steps is paid back, but no stretch without a measurement is longer than the run so far.
        return max(1, min(math.ceil(owed), step))

    def _time_for(self, spent_s: float) -> float:
        """Return the seconds a run must have lasted for ``spent_s`` of them to be within its allowance."""
        share = OWN_TIME * self.max_overhead
        share_s = spent_s / share
        if spent_s > GRACE_S:
            return share_s
        full = math.log1p(GRACE_S / share / FIRST_S)
        return min(share_s, FIRST_S * math.expm1(full * spent_s / GRACE_S))
