"""A policy for each parameter group, each of which sees its own layers alone.

The knobs of the contract belong to parameter groups. Layers that need knobs of their own get groups of their own in
the optimizer; with one layer a group, these are per-layer knobs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lipadvisor.policies.chain import merge
from lipadvisor.policies.contract import Decision, Observation, Policy, hold

__all__ = ["PerGroup", "PerGroupState", "per_group"]


@dataclass(frozen=True, slots=True)
class PerGroupState:
    """States of the members, in order."""

    members: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class PerGroup:
    """See :func:`per_group`."""

    members: tuple[tuple[int, Policy[Any]], ...]

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("per_group(policies=...) must name at least one group, got none.")
        for group, _ in self.members:
            if not isinstance(group, int) or isinstance(group, bool) or group < 0:
                raise ValueError(f"per_group(policies=...) must be keyed by group numbers >= 0, got {group!r}.")

    @property
    def name(self) -> str:
        """``per_group(number: inner, ...)``."""
        return f"per_group({', '.join(f'{group}: {policy.name}' for group, policy in self.members)})"

    def init(self) -> PerGroupState:
        """Return the members' first states."""
        return PerGroupState(tuple(policy.init() for _, policy in self.members))

    def decide(self, observation: Observation, state: PerGroupState) -> tuple[Decision, PerGroupState]:
        """Return the members' decisions, each for its group; a phase has come when it has come for all."""
        merged, states = hold(observation, self.name, "no_group"), []
        ended = started = True
        for (group, policy), memory in zip(self.members, state.members, strict=True):
            part, memory = policy.decide(_of_group(observation, group), memory)
            states.append(memory)
            ended, started = ended and part.warmup_ended, started and part.cooldown_started
            reason = f"{group}:{part.reason}"[:60]
            part = replace(part, policy=self.name, reason=reason)
            merged = part if len(states) == 1 else merge(merged, part)
        merged = replace(merged, reason=merged.reason[:199], warmup_ended=ended, cooldown_started=started)
        return merged, PerGroupState(tuple(states))


def per_group(policies: Mapping[int, Policy[Any]]) -> PerGroup:
    """Return the policy that asks ``policies[g]`` for the knobs of parameter group ``g``, shown its layers alone.

    Groups that are not named are left as they are. A rollback, which is of the whole network, happens when any asks.

    Raises:
        ValueError: no group is named, or something else than a group.
    """
    return PerGroup(tuple(policies.items()))


def _of_group(observation: Observation, group: int) -> Observation:
    layers = tuple(layer for layer in observation.layers if layer.group == group)
    return replace(observation, knobs=tuple(k for k in observation.knobs if k.group == group), layers=layers)
