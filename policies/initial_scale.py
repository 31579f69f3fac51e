"""What the initializations share that set all layers: issue factors before step 0, and be the last word on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from lipadvisor.policies.chain import NOTHING, PASS
from lipadvisor.policies.contract import Decision, Observation
from lipadvisor.policies.schedules import NoState

__all__ = ["Factors", "InitialScale", "named_once"]

Factors = tuple[tuple[str, float], ...]  # (layer, factor of its weight)


@dataclass(frozen=True, slots=True)
class InitialScale(ABC):
    """Base of the initializations that decide for every layer; subclasses give ``factors``.

    It is the last word: layers that an earlier part of a chain would rescale and this one leaves alone stay as they
    are. So ``chain(Lipschitz(), part)`` is the default with its initialization exchanged.
    """

    title: ClassVar[str] = "initial_scale"
    reason: ClassVar[str] = "init"

    @property
    def name(self) -> str:
        """Short name."""
        return self.title

    def init(self) -> NoState:
        """Return the empty state."""
        return NoState()

    @abstractmethod
    def factors_for(self, observation: Observation) -> Factors:
        """Return the factor of each layer to scale. Names that the observation does not have are reported."""

    def decide(self, observation: Observation, state: NoState) -> tuple[Decision, NoState]:
        """Return the factors at step 0; nothing to add later."""
        nothing = Decision(observation.step, self.name, PASS)
        part, state = self.refine(observation, nothing, state)
        return nothing if part is NOTHING else part, state

    def refine(self, observation: Observation, decision: Decision, state: NoState) -> tuple[Decision, NoState]:
        """Return the factors at step 0, and 1 where an earlier part had another; nothing to add later."""
        if observation.step != 0:
            return NOTHING, state
        layers = {layer.name for layer in observation.layers}
        factors = self.factors_for(observation)
        known = {name: factor for name, factor in factors if name in layers}
        absent = [(f"absent[{name}]", factor) for name, factor in factors if name not in layers]
        left = {name: 1.0 for name, _ in decision.init_scale if name not in known}
        reasons = ([self.reason] if known else []) + (["init:absent"] if absent else [])
        return Decision(
            step=observation.step,
            policy=self.name,
            reason="+".join(reasons) or PASS,
            init_scale=(*known.items(), *left.items()),
            read=tuple(absent),
        ), state


def named_once(owner: str, argument: str, names: Iterable[object]) -> None:
    """Raise ``ValueError`` unless ``names`` are texts, each there once."""
    seen: set[object] = set()
    for name in names:
        if not isinstance(name, str) or name in seen:
            raise ValueError(f"{owner}({argument}=...) must name each layer once, by a text, got {name!r}.")
        seen.add(name)
