"""The laws every policy obeys, as plain functions to run on a policy of one's own.

    from lipadvisor.policies import laws
    laws.check(MyPolicy(lr=0.1))        raises laws.LawBrokenError, which names the law and shows the decision

Each law takes a policy and a sequence of observations, in order, and folds the one over the other.
:func:`random_observations` makes such sequences, good ones and bad ones, from a seed.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lipadvisor.policies.contract import Decision, Observation, Policy, as_json, from_json, restore_state
from lipadvisor.policies.random_runs import random_observations
from lipadvisor.policies.replay import replay

__all__ = [
    "LAWS",
    "Law",
    "LawBrokenError",
    "check",
    "decisions_are_in_range",
    "decisions_are_json",
    "decisions_give_reasons",
    "is_pure",
    "never_raises",
    "only_known_targets",
    "phases_never_go_back",
    "random_observations",
    "state_is_frozen",
    "state_survives_json",
]

Law = Callable[[Policy[Any], Sequence[Observation]], None]


class LawBrokenError(AssertionError):
    """A policy broke one of the laws; the message says which, and by what."""


def is_pure(policy: Policy[Any], observations: Sequence[Observation]) -> None:
    """The same observations give the same decisions and states, and no argument is changed.

    Chance, call counts and clocks are found out where they show within the time that the runs take.
    """
    before = [as_json(observation) for observation in observations]
    parameters = copy.deepcopy(policy)
    first, second = replay(policy, observations), replay(policy, observations)
    _require(_same(first, second), policy, "is_pure", "two runs over the same observations differ")
    state = policy.init()
    for observation in observations:
        was, memory = repr(state), state
        _, state = policy.decide(observation, memory)
        _require(repr(memory) == was, policy, "is_pure", f"the state that was handed in, {was}, became {memory!r}")
    _require(_same(before, [as_json(o) for o in observations]), policy, "is_pure", "an observation was changed")
    _require(parameters == policy, policy, "is_pure", "the policy's own parameters were changed")


def state_is_frozen(policy: Policy[Any], observations: Sequence[Observation]) -> None:
    """The state is a frozen dataclass of plain values, and so is every state in it."""
    for _, _, state in _fold(policy, observations):
        _require(_is_frozen(state), policy, "state_is_frozen", f"the state is {state!r}")


def state_survives_json(policy: Policy[Any], observations: Sequence[Observation]) -> None:
    """A run resumed from the written state goes on as the uninterrupted one."""
    state = policy.init()
    for observation in observations:
        try:
            restored = restore_state(policy, json.loads(json.dumps(as_json(state))))
        except (TypeError, ValueError) as error:
            raise LawBrokenError(f"{policy.name} broke state_survives_json: {error} in {state!r}.") from error
        _require(_same(restored, state), policy, "state_survives_json", f"{state!r} came back as {restored!r}")
        decision, state = policy.decide(observation, state)
        resumed, _ = policy.decide(observation, restored)
        _require(_same(resumed, decision), policy, "state_survives_json", f"{decision!r} became {resumed!r}")


def never_raises(policy: Policy[Any], observations: Sequence[Observation]) -> None:
    """Data of any kind, missing or not finite, raises nothing; the decision is for the observation's own step."""
    state = policy.init()
    for observation in observations:
        try:
            decision, state = policy.decide(observation, state)
        except Exception as error:
            raise LawBrokenError(f"{policy.name} broke never_raises: {error!r} for {observation!r}.") from error
        _require(isinstance(decision, Decision), policy, "never_raises", f"it answers {decision!r}, not a Decision")
        _require(decision.step == observation.step, policy, "never_raises", f"step {decision.step} in {decision!r}")


def decisions_are_in_range(policy: Policy[Any], observations: Sequence[Observation]) -> None:
    """Rates and memories are finite and above 0, decays finite and at least 0, and no step shrinks a weight away.

    A decay that is decided alone meets the rate in force.
    """
    for observation, decision, _ in _fold(policy, observations):
        told = f"{decision!r} for {observation!r}"
        in_force = {knobs.group: knobs.lr for knobs in observation.knobs}
        for knobs in decision.knobs:
            lr, decay = knobs.lr, knobs.weight_decay
            good_lr = lr is None or (_is_number(lr) and lr > 0.0)
            good_decay = decay is None or (_is_number(decay) and decay >= 0.0)
            _require(good_lr and good_decay, policy, "decisions_are_in_range", told)
            lr = in_force.get(knobs.group) if lr is None else lr
            if lr is not None and math.isfinite(lr) and decay is not None:
                _require(lr * decay < 1.0, policy, "decisions_are_in_range", told)
        memory = decision.averaging
        _require(memory is None or (_is_number(memory) and memory > 0.0), policy, "decisions_are_in_range", told)
        for _, factor in decision.init_scale:
            _require(_is_number(factor) and factor > 0.0, policy, "decisions_are_in_range", told)
        for _, factor in decision.weight_scale:
            _require(_is_number(factor) and 0.0 < factor <= 1.0, policy, "decisions_are_in_range", told)


def only_known_targets(policy: Policy[Any], observations: Sequence[Observation]) -> None:
    """Knobs are for groups that exist, scales for layers that do, each once, ``init_scale`` at step 0."""
    for observation, decision, _ in _fold(policy, observations):
        groups = [knobs.group for knobs in decision.knobs]
        known_groups = {knobs.group for knobs in observation.knobs}
        layers = {layer.name for layer in observation.layers}
        good = set(groups) <= known_groups and len(groups) == len(set(groups))
        for scales in (decision.init_scale, decision.weight_scale):
            scaled = [name for name, _ in scales]
            good = good and set(scaled) <= layers and len(scaled) == len(set(scaled))
        _require(good, policy, "only_known_targets", f"{decision!r} for {observation!r}")
        if observation.step != 0:
            _require(not decision.init_scale, policy, "only_known_targets", f"init_scale after step 0 in {decision!r}")


def decisions_give_reasons(policy: Policy[Any], observations: Sequence[Observation]) -> None:
    """Every decision names its policy and gives a short reason without spaces; what was read is named numbers."""
    for _, decision, _ in _fold(policy, observations):
        reason = decision.reason
        good = bool(reason) and len(reason) < 200 and not any(c.isspace() for c in reason)
        _require(good and decision.policy == policy.name, policy, "decisions_give_reasons", repr(decision))
        for name, value in decision.read:
            named = bool(name) and isinstance(value, float)
            _require(named, policy, "decisions_give_reasons", f"read holds {(name, value)!r}")


def decisions_are_json(policy: Policy[Any], observations: Sequence[Observation]) -> None:
    """Every decision can be written as strict JSON and read back, provided that what it read was finite."""
    for _, decision, _ in _fold(policy, observations):
        written = dataclasses.replace(decision, read=tuple(p for p in decision.read if math.isfinite(p[1])))
        try:
            again = from_json(Decision, json.loads(json.dumps(as_json(written), allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise LawBrokenError(f"{policy.name} broke decisions_are_json: {error} in {decision!r}.") from error
        _require(again == written, policy, "decisions_are_json", f"{written!r} came back as {again!r}")


def phases_never_go_back(policy: Policy[Any], observations: Sequence[Observation]) -> None:
    """``warmup_ended`` and ``cooldown_started`` stay true once they are. For observations of one horizon."""
    ended = started = False
    for _, decision, _ in _fold(policy, observations):
        good = decision.warmup_ended >= ended and decision.cooldown_started >= started
        _require(good, policy, "phases_never_go_back", repr(decision))
        ended, started = decision.warmup_ended, decision.cooldown_started


LAWS: tuple[Law, ...] = (
    never_raises,
    is_pure,
    state_is_frozen,
    state_survives_json,
    decisions_are_in_range,
    only_known_targets,
    decisions_give_reasons,
    decisions_are_json,
    phases_never_go_back,
)


def check(policy: Policy[Any], *, seeds: Iterable[int] = range(4), steps: int = 40) -> None:
    """Run every law on ``policy`` over random runs: horizons known, unknown and overrun, good and bad data.

    Args:
        policy: the policy to test.
        seeds: one set of runs for each.
        steps: observations in a run, >= 1.

    Raises:
        LawBrokenError: the policy broke a law.
        ValueError: ``policy`` is none.
    """
    shape = all(callable(getattr(policy, part, None)) for part in ("init", "decide")) and not isinstance(policy, type)
    if not (shape and isinstance(getattr(policy, "name", None), str)):
        raise ValueError(f"check(policy=...) must be an object with name, init() and decide(), got {policy!r}.")
    for seed in seeds:
        for total_steps in (steps, None, 1):
            for broken in (0.0, 0.3):
                for law in LAWS:  # each its own run, as a policy may spoil what it is shown
                    law(policy, random_observations(seed, steps=steps, total_steps=total_steps, broken=broken))


def _fold(policy: Policy[Any], observations: Sequence[Observation]) -> Iterable[tuple[Observation, Decision, Any]]:
    state = policy.init()
    for observation in observations:
        decision, state = policy.decide(observation, state)
        yield observation, decision, state


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _require(good: bool, policy: Policy[Any], law: str, told: str) -> None:
    if not good:
        raise LawBrokenError(f"{policy.name} broke {law}: {told}.")


def _same(first: Any, second: Any) -> bool:
    """Equality that takes nan as equal to nan: by the exact text of both."""
    return type(first) is type(second) and repr(first) == repr(second)


def _is_frozen(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_frozen(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        frozen = type(value).__dataclass_params__.frozen  # type: ignore[attr-defined]
        return bool(frozen) and all(_is_frozen(getattr(value, f.name)) for f in dataclasses.fields(value))
    return value is None or isinstance(value, (bool, int, float, str))
