"""A line of policies: the first proposes, each later one refines what stands so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from lipadvisor.policies.checks import require_tuple
from lipadvisor.policies.contract import Decision, Knobs, Observation, Policy
from lipadvisor.policies.quick_record import quick_record

__all__ = ["NOTHING", "PASS", "Chain", "ChainState", "Refiner", "chain", "merge"]

PASS = "pass"  # reason of a refiner that leaves the decision as it is

# What a refiner returns that adds nothing: the step and the name of a part are not looked at, and making a decision is
# the largest cost in a chain.
NOTHING = Decision(step=-1, policy="", reason=PASS)

State = TypeVar("State")


@runtime_checkable
class Refiner(Protocol[State]):
    """A part of a chain that needs to see what the parts before it decided: a budget, a decay, a cooldown."""

    @property
    def name(self) -> str:
        """Short name."""
        ...

    def init(self) -> State:
        """Return the state before the first observation."""
        ...

    def refine(self, observation: Observation, decision: Decision, state: State) -> tuple[Decision, State]:
        """Return what this part adds to ``decision``, and the next state.

        Knobs that are given replace those of ``decision``; the reason ``"pass"`` stands for nothing to add, and
        ``NOTHING`` for no addition of any kind. Step and name of what is returned are not looked at.
        """
        ...


@quick_record
@dataclass(frozen=True, slots=True)
class ChainState:
    """States of the members, in order."""

    members: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """See :func:`chain`."""

    members: tuple[Any, ...]  # Policy or Refiner
    title: str = ""

    def __post_init__(self) -> None:
        if not require_tuple("chain", "members", self.members):
            raise ValueError("chain(...) must be given at least one policy, got none.")
        if not hasattr(self.members[0], "decide"):
            raise ValueError(f"chain(...) must begin with a policy that decides, got {self.members[0]!r}.")
        for member in self.members:
            if not hasattr(member, "decide") and not hasattr(member, "refine"):
                raise ValueError(f"chain(...) must be given policies or refiners, got {member!r}.")

    @property
    def name(self) -> str:
        """The title, or the members' names joined with ``>``."""
        return self.title or ">".join(member.name for member in self.members)

    def init(self) -> ChainState:
        """Return the members' first states."""
        return ChainState(tuple(member.init() for member in self.members))

    def decide(self, observation: Observation, state: ChainState) -> tuple[Decision, ChainState]:
        """Return the members' merged decision and their next states."""
        name, states = self.name, []
        merged, memory = self.members[0].decide(observation, state.members[0])
        states.append(memory)
        for member, memory in zip(self.members[1:], state.members[1:], strict=True):
            if hasattr(member, "refine"):
                part, memory = member.refine(observation, merged, memory)
            else:
                part, memory = member.decide(observation, memory)
            states.append(memory)
            if part is not NOTHING:
                merged = merge(merged, part, name)
        return _renamed(merged, name), ChainState(tuple(states))


def chain(*members: Policy[Any] | Refiner[Any], name: str = "") -> Chain:
    """Return the policy that asks ``members`` in order; later ones refine the earlier decision.

    Knobs are merged field by field, reasons joined with ``+`` (``pass`` is left out), what was read is collected.

    Args:
        *members: the first a policy; the others policies, or refiners, which see the decision so far.
        name: name of the whole; by default the members' names.

    Raises:
        ValueError: there is no member, or the first one does not decide.
    """
    return Chain(tuple(members), name)


def merge(decision: Decision, part: Decision, name: str | None = None) -> Decision:
    """Return ``decision`` refined by ``part``: what ``part`` sets wins, what it leaves alone stays.

    Args:
        decision: what stands so far.
        part: what is added.
        name: of the policy in whose name the merged decision is made; by default that of ``decision``.
    """
    if part is NOTHING:
        return decision
    if part.reason == PASS:
        reason = decision.reason
    elif decision.reason == PASS:
        reason = part.reason
    else:
        reason = f"{decision.reason}+{part.reason}"
    return Decision(  # built outright: dataclasses.replace costs twice as much, and this runs for every part
        decision.step,
        decision.policy if name is None else name,
        reason,
        _merge_knobs(decision.knobs, part.knobs) if part.knobs else decision.knobs,
        _merge_pairs(decision.init_scale, part.init_scale) if part.init_scale else decision.init_scale,
        _merge_pairs(decision.weight_scale, part.weight_scale) if part.weight_scale else decision.weight_scale,
        decision.warmup_ended or part.warmup_ended,
        decision.cooldown_started or part.cooldown_started,
        decision.rollback or part.rollback,
        decision.read + part.read,
        decision.source,
        decision.rewind or part.rewind,
        decision.averaging if part.averaging is None else part.averaging,
    )


def _renamed(decision: Decision, name: str) -> Decision:
    """Return ``decision`` in the name of the whole."""
    if decision.policy == name:
        return decision
    return Decision(
        decision.step,
        name,
        decision.reason,
        decision.knobs,
        decision.init_scale,
        decision.weight_scale,
        decision.warmup_ended,
        decision.cooldown_started,
        decision.rollback,
        decision.read,
        decision.source,
        decision.rewind,
        decision.averaging,
    )


def _merge_knobs(first: tuple[Knobs, ...], second: tuple[Knobs, ...]) -> tuple[Knobs, ...]:
    if len(first) == len(second) == 1 and first[0].group == second[0].group:  # the usual case
        return (_over(first[0], second[0]),)
    groups = {knobs.group: knobs for knobs in first}
    for knobs in second:
        earlier = groups.get(knobs.group)
        if earlier is not None:
            knobs = _over(earlier, knobs)
        groups[knobs.group] = knobs
    return tuple(groups.values())


def _over(earlier: Knobs, knobs: Knobs) -> Knobs:
    """Return ``knobs``, with what they leave alone from ``earlier``."""
    lr, weight_decay = knobs.lr, knobs.weight_decay
    if lr is not None and (weight_decay is not None or earlier.weight_decay is None):
        return knobs
    return Knobs(
        knobs.group, earlier.lr if lr is None else lr, earlier.weight_decay if weight_decay is None else weight_decay
    )


def _merge_pairs(
    first: tuple[tuple[str, float], ...], second: tuple[tuple[str, float], ...]
) -> tuple[tuple[str, float], ...]:
    return tuple({**dict(first), **dict(second)}.items())
