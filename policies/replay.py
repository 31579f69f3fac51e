"""What a policy would have decided over a recorded run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lipadvisor.policies.contract import Decision, Observation, Policy

__all__ = ["replay"]


def replay(policy: Policy[Any], observations: Iterable[Observation]) -> tuple[Decision, ...]:
    """Fold ``policy`` over ``observations``, in order, and return its decision for each.

    The observations stay what they were in the recorded run: a decision that differs from the recorded one would have
    changed those that follow. Only the first difference is certain.
    """
    state = policy.init()
    decisions = []
    for observation in observations:
        decision, state = policy.decide(observation, state)
        decisions.append(decision)
    return tuple(decisions)
