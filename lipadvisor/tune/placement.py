"""Where a policy decides: in the trial (nothing to wrap), or at the hub with the trial's own copy as the fallback."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Generic, TypeVar

from lipadvisor.policies.contract import Decision, Observation, Policy
from lipadvisor.tune.client import HubClient

__all__ = ["HubPolicy"]

State = TypeVar("State")


class HubPolicy(Generic[State]):
    """Asks the hub for each decision; decides by itself when the answer is late.

    A decision of the hub's has ``source="hub"``, one made here instead has ``source="local:late"``. The state is this
    trial's either way, so that both placements give the same decisions.

    Args:
        policy: What decides, there or here.
        client: The trial's stream to the hub.
        patience_s: How long to wait for an answer, positive.

    Raises:
        ValueError: ``patience_s`` is not positive.
    """

    def __init__(self, policy: Policy[State], client: HubClient, patience_s: float = 0.25) -> None:
        if not patience_s > 0:
            raise ValueError(f"HubPolicy(patience_s=...) must be positive, got {patience_s}.")
        self.policy, self.client, self.patience_s = policy, client, patience_s

    @property
    def name(self) -> str:
        """Name of the policy that decides."""
        return self.policy.name

    def init(self) -> State:
        """Return the policy's state before the first observation."""
        return self.policy.init()

    def decide(self, observation: Observation, state: State) -> tuple[Decision, State]:
        """Return the hub's decision, or the trial's own if that is late."""
        answer: tuple[Decision, Any] | None = self.client.ask(self.policy, observation, state, self.patience_s)
        if answer is not None:
            decision, following = answer
            return replace(decision, source="hub"), following
        decision, following = self.policy.decide(observation, state)
        return replace(decision, source="local:late"), following
