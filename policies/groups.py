"""A policy for each parameter group, each of which sees its own layers alone.

The knobs of the contract belong to parameter groups. Layers that need knobs of their own get groups of their own in
the optimizer; with one layer a group, these are per-layer knobs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lipadvisor.policies.chain import merge
from lipadvisor.policies.checks import require_pairs, told
from lipadvisor.policies.contract import Decision, Layer, Observation, Policy, hold
from lipadvisor.policies.members import member

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
        members = require_pairs("per_group", "policies", self.members)
        if not members:
            raise ValueError("per_group(policies=...) must name at least one group, got none.")
        for group, _ in members:
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
        parts, states, phases = [], [], []
        for (group, policy), memory in zip(self.members, state.members, strict=True):
            own = _of_group(observation, group)
            part = hold(own, self.name, "no_such_group")
            if own.knobs:
                part, memory = policy.decide(own, memory)
                phases.append((part.warmup_ended, part.cooldown_started))
            states.append(memory)
            parts.append(replace(part, policy=self.name, reason=f"{group}:{part.reason}"[:60]))
        ended, started = map(all, zip(*phases, strict=True)) if phases else (False, False)
        merged = functools.reduce(merge, parts)
        merged = replace(merged, reason=merged.reason[:199], warmup_ended=ended, cooldown_started=started)
        return merged, PerGroupState(tuple(states))


def per_group(policies: Mapping[int, Policy[Any]]) -> PerGroup:
    """Return the policy that asks ``policies[g]`` for the knobs of parameter group ``g``, shown its layers alone.

    These layers, with their composition weights, are the network that it sees.

    Groups that are not named are left as they are; one that the optimizer does not have is told in the reason. A
    rollback, which is of the whole network, happens when any asks.

    Raises:
        ValueError: no group is named, or something else than a group.
    """
    if not isinstance(policies, Mapping):
        raise ValueError(f"per_group(policies=...) must be a mapping from groups to policies, got {told(policies)}.")
    return PerGroup(tuple([(group, member("per_group", policy)) for group, policy in policies.items()]))


def _of_group(observation: Observation, group: int) -> Observation:
    """Return what a policy for one group sees: its knobs, its layers, and these as the network.

    The forecast's bands are left out: they are of all groups together.
    """
    layers = tuple(layer for layer in observation.layers if layer.group == group)
    return replace(
        observation,
        knobs=tuple(k for k in observation.knobs if k.group == group),
        layers=layers,
        network=_together(observation.network, layers),
        bands=(),
    )


def _together(network: Layer, layers: tuple[Layer, ...]) -> Layer:
    """Return ``layers`` as a network: sums with the composition weights; their noise is taken as independent.

    A budget, for one, is counted by its own layers' weights: held against the growth of the whole network, each of
    ten groups would have a tenth of the room.
    """
    counted = [layer for layer in layers if layer.composition_weight != 0.0]
    if not counted:
        return network

    def total(values: Iterable[float]) -> float:
        return sum(layer.composition_weight * value for layer, value in zip(counted, values, strict=True))

    return replace(
        network,
        log_norm=total(layer.log_norm for layer in counted),
        drift=total(layer.drift for layer in counted),
        diffusion=math.hypot(*[layer.composition_weight * layer.diffusion for layer in counted]),
        noise_curvature=total(layer.noise_curvature for layer in counted),
        finite_step=total(layer.finite_step for layer in counted),
        decay=total(layer.decay for layer in counted),
        update_ratio=max(layer.update_ratio for layer in counted),
    )
