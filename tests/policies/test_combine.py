"""Each combinator does what it says to what it wraps, and no more."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest

from lipadvisor.policies import (
    Constant,
    Cosine,
    Decision,
    Knobs,
    Linear,
    Lipschitz,
    ShockNotice,
    Status,
    attended,
    chain,
    clamp,
    cooldown,
    every,
    freeze,
    guard,
    hold_when,
    laws,
    per_group,
    pin,
    portfolio,
    rate_limit,
    replay,
    shadow,
)
from lipadvisor.policies.schedules import NoState

FIRST = laws.random_observations(0, steps=1)[0]


def run(policy, steps, **changes):
    return replay(policy, [replace(FIRST, step=step, total_steps=40, **changes) for step in steps])


@dataclass(frozen=True)
class Scripted:
    """Gives the learning rates it was told, by step."""

    rates: tuple[float, ...]
    name: str = "scripted"

    def init(self):
        return NoState()

    def decide(self, observation, state):
        knobs = (Knobs(0, self.rates[observation.step], 0.5),)
        return Decision(observation.step, self.name, "scripted", knobs), state


def test_chain_merges_fields_reasons_and_phases():
    @dataclass(frozen=True)
    class Halve:
        name: str = "halve"

        def init(self):
            return NoState()

        def refine(self, observation, decision, state):
            knobs = tuple(Knobs(k.group, k.lr / 2.0) for k in decision.knobs)
            return Decision(observation.step, self.name, "half", knobs, cooldown_started=True), state

    (decision,) = run(chain(Constant(lr=0.4, weight_decay=0.1), Halve(), Halve()), [0])
    assert decision.knobs == (Knobs(0, 0.1, 0.1), Knobs(1, 0.1, 0.1))
    assert decision.reason == "constant:stable+half+half"
    assert decision.policy == "constant>halve>halve"
    assert decision.warmup_ended
    assert decision.cooldown_started


def test_chain_must_begin_with_one_that_decides():
    with pytest.raises(ValueError, match="at least one policy"):
        chain()
    with pytest.raises(ValueError, match="policies or refiners"):
        chain(Constant(), "cosine")


def test_clamp_keeps_the_range_and_leaves_the_rest_alone():
    free = run(Linear(lr=1.0), range(40))
    tied = run(clamp(Linear(lr=1.0), lr=(0.25, 0.75)), range(40))
    for a, b in zip(free, tied, strict=True):
        assert b.knobs[0].lr == min(max(a.knobs[0].lr, 0.25), 0.75)
        assert b.reason == a.reason + ("" if b.knobs == a.knobs else "+clamp")
    with pytest.raises(ValueError, match=r"clamp\(lr=\.\.\.\) must be \(low, high\)"):
        clamp(Linear(), lr=(1.0, 0.1))


def test_a_raised_rate_does_not_raise_the_decay_per_step():
    (decision,) = run(clamp(Constant(lr=1e-4, weight_decay=100.0), lr=(1e-2, 1.0)), [0])
    assert decision.knobs[0].lr * decision.knobs[0].weight_decay == pytest.approx(1e-2)


def test_rate_limit_counts_steps_not_calls():
    policy = rate_limit(Scripted((1e-3, 1.0, 1.0, 1.0, 1.0, 1.0, 1e-9)), rise=2.0)
    assert [d.knobs[0].lr for d in run(policy, range(7))] == pytest.approx([1e-3 * 2**k for k in range(6)] + [1e-9])
    assert [d.knobs[0].lr for d in run(policy, [0, 4])] == pytest.approx([1e-3, 16e-3])
    falling = rate_limit(Scripted((1.0, 1e-9, 1e-9)), fall=10.0)
    assert [d.knobs[0].lr for d in run(falling, range(3))] == pytest.approx([1.0, 0.1, 0.01])


def test_every_asks_no_oftener():
    decisions = run(every(Linear(), 10), range(40))
    asked = [d.step for d in decisions if not d.reason.startswith("hold:")]
    assert asked == [0, 10, 20, 30]
    assert all(d.reason == "hold:every" and d.warmup_ended for d in decisions if d.step not in asked)


def test_hold_when_holds_and_the_inner_state_stands_still():
    policy = hold_when(Lipschitz(), Status.UNSTABLE)
    state = policy.init()
    decision, state = policy.decide(replace(FIRST, step=0), state)
    held, after = policy.decide(replace(FIRST, step=1, status=Status.UNSTABLE), state)
    assert decision.knobs
    assert held.knobs == ()
    assert held.reason == "hold:unstable"
    assert after == state
    with pytest.raises(ValueError, match="at least one status"):
        hold_when(Lipschitz())


def test_cooldown_spaces_changes():
    decisions = run(cooldown(Linear(lr=1.0), 7), range(40))
    changed = [d.step for d in decisions if d.knobs]
    assert changed == [0, 7, 14, 21, 28, 35]
    assert {d.reason for d in decisions if not d.knobs} == {"hold:cooldown"}
    assert all(d.knobs for d in run(cooldown(Constant(), 7), range(10)))  # no change: nothing to hold back


def test_a_rollback_does_not_wait_for_the_cooldown():
    policy = cooldown(guard(Linear(lr=1.0)), 100)
    state = policy.init()
    for step in range(3):
        _, state = policy.decide(replace(FIRST, step=step, total_steps=40), state)
    decision, _ = policy.decide(replace(FIRST, step=3, total_steps=40, loss=math.nan), state)
    assert decision.rollback
    assert decision.knobs


@dataclass(frozen=True)
class GoesBack:
    """A part of a chain that asks for the validated weights at every step."""

    name: str = "goes_back"

    def init(self):
        return NoState()

    def refine(self, observation, decision, state):
        return Decision(observation.step, self.name, "back", rewind=True), state


def test_a_rewind_passes_chains_and_guards_and_does_not_wait_for_the_cooldown():
    back = chain(Linear(lr=1.0), GoesBack(), Scripted((0.1,) * 40))
    decisions = run(cooldown(guard(back), 100), range(5))
    assert all(decision.rewind and decision.knobs for decision in decisions)
    assert not any(decision.rewind for decision in run(shadow(back), range(5)))
    assert not any(decision.rewind for decision in run(chain(Linear(), Scripted((0.1,) * 40)), range(5)))


def test_shadow_only_says():
    for quiet, loud in zip(run(shadow(Cosine()), range(40)), run(Cosine(), range(40)), strict=True):
        assert quiet.knobs == quiet.init_scale == ()
        assert quiet.reason == f"shadow:{loud.reason}"
        assert dict(quiet.read)["lr[1]"] == loud.knobs[1].lr


def test_pin_wins_and_says_so():
    for decision in run(pin(Cosine(weight_decay=0.1), lr=0.5), range(40)):
        assert {k.lr for k in decision.knobs} == {0.5}
        assert decision.source == "pinned"
        assert decision.reason.endswith("+pin")
    (decision,) = run(pin(shadow(Cosine()), weight_decay=0.2), [3])
    assert decision.knobs == (Knobs(0, None, 0.2), Knobs(1, None, 0.2))


def test_guard_rolls_back_and_takes_smaller_steps():
    policy = guard(Constant(lr=0.9, weight_decay=0.1))
    state = policy.init()
    first, state = policy.decide(replace(FIRST, step=0), state)
    broken, state = policy.decide(replace(FIRST, step=1, loss=math.inf), state)
    later, state = policy.decide(replace(FIRST, step=2, loss=1.0), state)
    assert first.knobs[0] == Knobs(0, 0.9, 0.1)
    assert (broken.rollback, broken.reason, broken.knobs[0].lr) == (True, "guard:non_finite", pytest.approx(0.3))
    assert not later.rollback
    assert later.knobs[0].lr == pytest.approx(0.3)
    assert later.knobs[0].weight_decay == pytest.approx(0.3)  # the decay per step stays
    for step in range(3, 40):
        _, state = policy.decide(replace(FIRST, step=step, loss=math.nan), state)
    assert state.scale == 1e-3


def test_names_say_what_is_wrapped():
    wrapped = every(clamp(rate_limit(Cosine()), lr=(0.0, 1.0)), 3)
    assert wrapped.name == "every(3, clamp(rate_limit(cosine)))"
    assert hold_when(Cosine(), Status.NON_FINITE, Status.UNSTABLE).name == "hold_when(non_finite|unstable, cosine)"


@pytest.mark.parametrize("bad", ["lipschitz", None, Constant, ShockNotice()])
def test_a_combinator_is_for_policies(bad):
    makers = (clamp, rate_limit, shadow, pin, freeze, lambda p: every(p, 3), lambda p: cooldown(p, 3))
    more = (lambda p: attended(p, "x"), lambda p: per_group({0: p}), lambda p: portfolio(Constant(), p))
    for make in makers + more:
        with pytest.raises(ValueError, match=r"\(policy=\.\.\.\) must be an object with init\(\) and decide\(\)"):
            make(bad)
