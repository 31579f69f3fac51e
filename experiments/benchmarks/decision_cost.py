"""What one decision costs, in process time: the observation is there, the policy is asked."""

from __future__ import annotations

import math
import time
from typing import Any

from lipadvisor.policies import POLICIES, Knobs, Layer, Observation, Policy, Status, named_policy

__all__ = ["cost_table", "decision_cost_us", "run_of"]

_STEPS = 300  # of the run that each repetition goes through
_REPEATS = 12


def run_of(layers: int, steps: int = _STEPS) -> tuple[Observation, ...]:
    """Return a run of observations of a network of ``layers`` layers, measured at every step."""
    parts = tuple(
        Layer(f"layer.{i}", "linear", (64, 64), 0, 1.0, 0.1 * i, 0.1, -0.5, 0.01, 0.02, 0.01, 0.01, -0.01,
              1.0 + 0.01 * i, Status.OK, 0.7 + 0.01 * i, 1.0 + 0.01 * i)
        for i in range(layers)
    )  # fmt: skip
    network = Layer(
        "*", "network", (), -1, float(layers), 5.0, 0.1, 0.0, 4.0 * layers, 0.1, 0.0, 0.2, -0.1, 2.0, Status.OK
    )
    return tuple(
        Observation(
            step, 3 * steps, 0.01 * step, "adamw", 0.9, (Knobs(0, 1e-2, 0.1),), network, parts, (),
            0.1 + 2.0 * math.exp(-step / steps), None, None, max(step - 1, 0), 0.02,
        )
        for step in range(steps)
    )  # fmt: skip


def decision_cost_us(policy: Policy[Any], layers: int = 50, repeats: int = _REPEATS) -> float:
    """Return the process time of a decision, us: the mean over a run, the best of ``repeats``."""
    observations = run_of(layers)
    best = math.inf
    for _ in range(repeats):
        _, state = policy.decide(observations[0], policy.init())
        begun = time.process_time()
        for observation in observations[1:]:
            _, state = policy.decide(observation, state)
        best = min(best, (time.process_time() - begun) / (len(observations) - 1))
    return 1e6 * best


def cost_table(layers: int = 50) -> str:
    """Return a Markdown table: every named policy, with the cost of its decision."""
    lines = ["| policy | us a decision |", "|---|---|"]
    for name in sorted(POLICIES):
        try:
            policy = named_policy(name)
        except (TypeError, ValueError):  # has no defaults: it is not run by its name alone
            policy = named_policy(name, lr=1e-3)
        lines.append(f"| {name} | {decision_cost_us(policy, layers):.1f} |")
    return "\n".join(lines) + "\n"
