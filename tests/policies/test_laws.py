"""Every policy and every combinator obeys the laws; a policy that breaks one is found out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest

from lipadvisor.policies import (
    POLICIES,
    Annealing,
    Constant,
    Cosine,
    Decision,
    DepthScaledInitialization,
    Initialization,
    Knobs,
    LeadTimeGuard,
    Lipschitz,
    LipschitzBudget,
    MedianRate,
    Observation,
    PlannedInitialization,
    Plateau,
    ShockNotice,
    SpectralRate,
    Status,
    TotalDecay,
    WarmupEnd,
    chain,
    clamp,
    cooldown,
    every,
    guard,
    hold_when,
    laws,
    named_policy,
    pin,
    rate_limit,
    shadow,
)

EVERY_POLICY = [
    *(named_policy(name) for name in POLICIES),
    Constant(warmup_fraction=0.2),
    Plateau(patience=2, warmup_fraction=0.1),
    Initialization(),
    DepthScaledInitialization((("layer0", 4), ("elsewhere", 2))),
    PlannedInitialization((("layer1", 0.5), ("elsewhere", 2.0))),
    SpectralRate(),
    MedianRate(),
    chain(MedianRate(), WarmupEnd()),
    chain(SpectralRate(), Annealing(start_fraction=0.5)),
    chain(SpectralRate(), LipschitzBudget(budget=1e-3)),
    chain(Constant(), TotalDecay(), WarmupEnd()),
    chain(SpectralRate(), LeadTimeGuard(interval=20, excess=1e-2)),
    chain(Constant(), ShockNotice(many=3)),
    chain(Cosine(), Initialization(), Annealing(least_steps=1, patience=0.0), name="mixed"),
    clamp(Lipschitz(), lr=(1e-4, 1e-2), weight_decay=(0.0, 1.0)),
    rate_limit(Lipschitz(), rise=1.1, fall=1.1),
    every(Lipschitz(), 5),
    hold_when(Lipschitz(), Status.NON_FINITE, Status.NOT_MEASURED),
    cooldown(Lipschitz(), 7),
    shadow(Lipschitz()),
    pin(Lipschitz(), lr=1e-3),
    pin(shadow(Cosine()), weight_decay=0.1),
    pin(Lipschitz(), weight_decay=1e6),
    pin(shadow(Cosine()), weight_decay=1e6),
    clamp(Lipschitz(), weight_decay=(1e4, 1e6)),
    guard(Cosine()),
    every(guard(clamp(chain(Cosine(), TotalDecay()), lr=(1e-5, 1.0))), 3),
]


@pytest.mark.parametrize("policy", EVERY_POLICY, ids=lambda policy: policy.name)
def test_every_policy_obeys_the_laws(policy):
    laws.check(policy, seeds=range(2), steps=25)


@pytest.mark.parametrize("policy", EVERY_POLICY, ids=lambda policy: policy.name)
def test_every_policy_bears_a_network_without_layers_or_groups(policy):
    observations = laws.random_observations(3, steps=15, layers=0)
    bare = tuple(replace(o, knobs=()) for o in observations)
    for law in laws.LAWS:
        law(policy, observations)
        law(policy, bare)


@dataclass(frozen=True)
class NoState:
    pass


@dataclass
class Mutable:
    count: int = 0


@dataclass(frozen=True)
class Rogue:
    """Breaks the law named by ``crime``, and no other."""

    crime: str
    name: str = "rogue"

    def init(self) -> Any:
        return Mutable() if self.crime == "state_is_frozen" else NoState()

    def decide(self, observation: Observation, state: Any) -> tuple[Decision, Any]:
        step, group = observation.step, observation.knobs[0].group
        decision = Decision(step, self.name, "steady", (Knobs(group, 0.1),))
        match self.crime:
            case "never_raises":
                decision = replace(decision, step=step + 1)
            case "is_pure":
                CALLS.append(1)
                decision = replace(decision, knobs=(Knobs(group, 0.1 * len(CALLS)),))
            case "decisions_are_in_range":
                decision = replace(decision, knobs=(Knobs(group, -0.1),))
            case "only_known_targets":
                decision = replace(decision, knobs=(Knobs(99, 0.1),))
            case "decisions_give_reasons":
                decision = replace(decision, reason="")
            case "decisions_are_json":
                decision = replace(decision, source=object())
            case "phases_never_go_back":
                decision = replace(decision, warmup_ended=step % 2 == 0)
        return decision, state


CALLS: list[int] = []


@pytest.mark.parametrize(
    "law", [law for law in laws.LAWS if law is not laws.state_survives_json], ids=lambda law: law.__name__
)
def test_a_broken_law_is_found_out(law):
    observations = laws.random_observations(0, steps=20, longest_gap=3)
    with pytest.raises(laws.LawBrokenError, match=law.__name__):
        law(Rogue(law.__name__), observations)
    law(Rogue("none"), observations)


def test_a_state_that_forgets_is_found_out():
    @dataclass(frozen=True)
    class Memory:
        seen: object = None

    @dataclass(frozen=True)
    class Forgetful:
        name: str = "forgetful"

        def init(self) -> Memory:
            return Memory()

        def decide(self, observation: Observation, state: Memory) -> tuple[Decision, Memory]:
            return Decision(observation.step, self.name, "steady"), Memory((1, 2))

    with pytest.raises((laws.LawBrokenError, ValueError)):
        laws.state_survives_json(Forgetful(), laws.random_observations(0, steps=3))


@dataclass(frozen=True)
class Count:
    n: int = 0


@dataclass(frozen=True)
class Answers:
    """Answers what ``made`` of the steady decision, the observation and the state gives."""

    made: Any
    name: str = "answers"

    def init(self) -> Count:
        return Count()

    def decide(self, observation: Observation, state: Count) -> Any:
        steady = tuple(Knobs(k.group, 0.1) for k in observation.knobs)
        return self.made(Decision(observation.step, self.name, "steady", steady), observation, state)


def spoil_the_observation(decision, observation, state):
    object.__setattr__(observation, "loss", 0.5)
    return decision, state


def spoil_the_state(decision, observation, state):
    object.__setattr__(state, "n", state.n + 1)
    return replace(decision, knobs=tuple(Knobs(k.group, 0.1 / state.n) for k in decision.knobs)), state


def shrink_twice(decision, observation, state):
    return replace(decision, weight_scale=tuple((x.name, 0.9) for x in observation.layers[:1] * 2)), state


def log_of_the_loss(decision, observation, state):
    loss = observation.loss
    math.log(1.0 if loss is None or not math.isfinite(loss) else loss)
    return decision, state


@pytest.mark.parametrize(
    ("made", "law"),
    [
        (spoil_the_observation, "is_pure"),
        (spoil_the_state, "is_pure"),
        (lambda d, o, s: (None, s), "never_raises"),
        (lambda d, o, s: d, "never_raises"),
        (log_of_the_loss, "never_raises"),
        (lambda d, o, s: (d, Count(math.nan)), "state_survives_json"),  # type: ignore[arg-type]
        (lambda d, o, s: (replace(d, knobs=(Knobs(0, "0.1"),)), s), "decisions_are_in_range"),  # type: ignore[arg-type]
        (lambda d, o, s: (replace(d, knobs=(Knobs(0, True),)), s), "decisions_are_in_range"),
        (lambda d, o, s: (replace(d, knobs=(Knobs(0, None, 1e9),)), s), "decisions_are_in_range"),
        (shrink_twice, "only_known_targets"),
        (lambda d, o, s: (replace(d, policy="another"), s), "decisions_give_reasons"),
        (lambda d, o, s: (replace(d, knobs=list(d.knobs)), s), "decisions_are_json"),  # type: ignore[arg-type]
    ],
)
def test_what_a_careless_policy_does_breaks_a_law_by_name(made, law):
    with pytest.raises(laws.LawBrokenError, match=law):
        laws.check(Answers(made), steps=25)
    laws.check(Answers(lambda d, o, s: (d, Count(s.n + 1))), seeds=(0,), steps=25)


@pytest.mark.parametrize("policy", ["lipschitz", None, Lipschitz, object()])
def test_the_laws_are_for_policies(policy):
    with pytest.raises(
        ValueError, match=r"check\(policy=\.\.\.\) must be an object with name, init\(\) and decide\(\)"
    ):
        laws.check(policy)


def test_random_observations_repeat_and_break():
    assert laws.random_observations(1) == laws.random_observations(1)
    assert laws.random_observations(1) != laws.random_observations(2)
    broken = laws.random_observations(1, steps=200, broken=1.0)
    assert any(not math.isfinite(layer.log_norm) for o in broken for layer in o.layers)
    assert any(o.loss is not None and not math.isfinite(o.loss) for o in broken)
    with pytest.raises(ValueError, match=r"random_observations\(broken=\.\.\.\) must be in \[0, 1\], got 2"):
        laws.random_observations(0, broken=2)
