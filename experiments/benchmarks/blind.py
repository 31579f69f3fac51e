"""A policy that is never shown a validation loss: what the same policy owes to validation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lipadvisor.policies import Decision, Observation, Policy

__all__ = ["Blind"]


@dataclass(frozen=True, slots=True)
class Blind:
    """Hides validation losses from ``policy``."""

    policy: Policy[Any]

    @property
    def name(self) -> str:
        """Short name."""
        return f"blind({self.policy.name})"

    def init(self) -> Any:
        """Return the policy's first state."""
        return self.policy.init()

    def decide(self, observation: Observation, state: Any) -> tuple[Decision, Any]:
        """Return what the policy decides on ``observation`` without its validation."""
        return self.policy.decide(replace(observation, validation_loss=None, validation_step=None), state)
