"""What people and callers may do to a policy at work: freeze, veto, pin, cool down; and what each group may have."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import pytest

from lipadvisor.policies import (
    Constant,
    Cosine,
    Decision,
    Knobs,
    Lipschitz,
    LipschitzBudget,
    OrderBox,
    Orders,
    Status,
    attended,
    chain,
    freeze,
    guard,
    laws,
    per_group,
    veto,
)

FIRST = laws.random_observations(0, steps=1)[0]  # two groups


def seen(step, **changes):
    return replace(FIRST, step=step, total_steps=40, **changes)


def refuse_large(observation, decision):
    return any(k.lr is not None and k.lr > 0.5 for k in decision.knobs)


def raise_always(observation, decision):
    raise RuntimeError("no opinion")


SUPERVISED = [
    freeze(Lipschitz(), start=5, stop=20),
    veto(guard(Lipschitz()), refuse_large),
    veto(Cosine(), raise_always),
    attended(Lipschitz(), OrderBox()),
    attended(Lipschitz(), OrderBox(Orders(lr=0.01, weight_decay=1e6))),
    attended(Cosine(), OrderBox(Orders(cooldown=10))),
    attended(Cosine(), OrderBox(Orders(veto=True))),
    per_group({0: Lipschitz(), 1: Cosine()}),
    guard(Lipschitz(), regrow_steps=3),
]


@pytest.mark.parametrize("policy", SUPERVISED, ids=lambda policy: policy.name)
def test_it_obeys_the_laws(policy):
    laws.check(policy, seeds=range(2), steps=25)


def test_nothing_moves_inside_the_window_and_the_policy_goes_on_watching():
    free, frozen, state, memory = Cosine(lr=1.0), freeze(Cosine(lr=1.0), start=10, stop=15), None, None
    state, memory = free.init(), frozen.init()
    for step in range(20):
        wanted, state = free.decide(seen(step), state)
        decision, memory = frozen.decide(seen(step), memory)
        inside = 10 <= step < 15
        assert decision.knobs == (() if inside else wanted.knobs)
        assert (decision.reason == "hold:freeze") == inside
        assert decision.cooldown_started == wanted.cooldown_started


def test_a_lost_run_does_not_wait_for_the_window():
    policy = freeze(guard(Constant()), stop=100)
    decision, _ = policy.decide(seen(3, loss=math.nan), policy.init())
    assert decision.rollback


@dataclass(frozen=True)
class Rewinding:
    """Goes back at step 3, and on in smaller steps."""

    name: str = "rewinding"

    def init(self):
        return ()

    def decide(self, observation, state):
        step = observation.step
        knobs = (Knobs(0, lr=0.1 if step >= 3 else 1.0),)
        return Decision(step, self.name, "overfitting" if step == 3 else "constant", knobs, rewind=step == 3), state


def test_weights_that_validated_best_come_back_inside_the_window_too():
    policy = freeze(Rewinding(), start=2)  # to the end: what does not go back now never does
    state, said = policy.init(), []
    for step in range(6):
        decision, state = policy.decide(seen(step), state)
        said.append((decision.rewind, tuple(k.lr for k in decision.knobs)))
    assert said == [(False, (1.0,)), (False, (1.0,)), (False, ()), (True, (0.1,)), (False, ()), (False, ())]
    decision, _ = guard(policy).decide(seen(3), guard(policy).init())
    assert decision.rewind  # and wrappers hand it on


def test_a_window_ends_after_it_begins():
    with pytest.raises(ValueError, match=r"freeze\(stop=\.\.\.\) must be a finite number > 5, got 5"):
        freeze(Constant(), start=5, stop=5)


def test_a_veto_refuses_and_an_error_in_it_refuses_too():
    policy = veto(Cosine(lr=1.0), refuse_large)
    decisions = [policy.decide(seen(step), policy.init())[0] for step in range(40)]
    assert [d.reason == "hold:veto" for d in decisions] == [not d.knobs for d in decisions]
    assert not decisions[0].knobs
    assert decisions[-1].knobs
    broken = veto(Cosine(), raise_always)
    assert broken.decide(seen(1), broken.init())[0].reason == "hold:veto:error"


def test_orders_in_a_file_are_obeyed_from_the_next_decision_on(tmp_path):
    path = tmp_path / "orders.json"
    policy = attended(Constant(lr=0.3, weight_decay=0.1), path)
    state = policy.init()

    def step(number, text=None):
        nonlocal state
        if text is not None:
            path.write_text(text)
        decision, state = policy.decide(seen(number), state)
        return decision

    assert step(0).knobs == (Knobs(0, 0.3, 0.1), Knobs(1, 0.3, 0.1))
    pinned = step(1, '{"lr": 0.02}')
    assert pinned.knobs == (Knobs(0, 0.02, 0.1), Knobs(1, 0.02, 0.1))
    assert (pinned.source, pinned.reason) == ("pinned", "constant:stable+pin")
    assert step(2, '{"veto": true}').reason == "hold:veto"
    unreadable = step(3, '{"lr": "fast"')
    assert (unreadable.knobs, unreadable.reason) == ((), "hold:veto+orders:unreadable")  # the old orders stay
    assert step(4, '{"lr": -1.0 }').reason == "hold:veto+orders:unreadable"
    assert step(5, "{}").knobs[0].lr == 0.3
    path.unlink()
    assert step(6).source == "local"


def test_a_cooldown_that_is_ordered_anneals_and_goes_on_when_the_order_is_gone():
    box = OrderBox()
    policy, state = attended(Constant(lr=0.4), box), None
    state = policy.init()
    lrs = []
    for step in range(30):
        if step == 10:
            box.orders = Orders(cooldown=10)
        if step == 14:
            box.orders = Orders()
        decision, state = policy.decide(seen(step, knobs=(Knobs(0, 0.4), Knobs(1, 0.4))), state)
        lrs.append(decision.knobs[0].lr)
        assert decision.cooldown_started == (step >= 10)
    assert lrs[:10] == [0.4] * 10
    assert lrs[15] == pytest.approx(0.2, rel=0.01)
    assert lrs[20] == lrs[29] == pytest.approx(0.4e-3)
    assert sorted(lrs, reverse=True) == lrs


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"lr": 0}', r"Orders\(lr=\.\.\.\) must be a finite number > 0, got 0"),
        ('{"cooldown": 2.5}', r"Orders\(cooldown=\.\.\.\) must be a whole number of steps >= 1, got 2.5"),
        ('{"speed": 1}', "Orders have no 'speed'"),
        ("[]", "must be a JSON object"),
    ],
)
def test_bad_orders_say_what_is_wrong(text, told):
    with pytest.raises(ValueError, match=told):
        Orders.parse(text)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"lr": 1' + "0" * 400 + "}", '{"lr": 1e400}', '{"lr": NaN}'])
def test_no_file_of_orders_ends_the_steering(tmp_path, text):
    path = tmp_path / "orders.json"
    path.write_text(text)
    policy = attended(Constant(lr=0.3), path)
    decision, _ = policy.decide(seen(1), policy.init())
    assert decision.reason == "constant:stable+orders:unreadable"
    assert decision.knobs[0].lr == 0.3


def test_a_rate_pinned_higher_leaves_the_decay_per_step_as_it_was_decided():
    policy = attended(Constant(lr=1e-5, weight_decay=100.0), OrderBox(Orders(lr=0.01)))
    decision, _ = policy.decide(seen(1), policy.init())
    assert decision.knobs[0].lr == 0.01
    assert decision.knobs[0].weight_decay == pytest.approx(0.1)


def test_a_policy_under_orders_resumes(tmp_path):
    from lipadvisor.policies import as_json, restore_state

    policy = attended(Lipschitz(), OrderBox(Orders(cooldown=20)))
    run = laws.random_observations(5, steps=30)
    state = policy.init()
    for observation in run[:12]:
        _, state = policy.decide(observation, state)
    again = restore_state(policy, json.loads(json.dumps(as_json(state))))
    assert again == state


def test_each_group_has_its_own_policy_and_sees_its_own_layers():
    policy = per_group({0: Constant(lr=0.1), 1: Lipschitz()})
    run = laws.random_observations(2, steps=20, layers=4)
    state, alone = policy.init(), Lipschitz().init()
    for observation in run:
        decision, state = policy.decide(observation, state)
        layers = tuple(x for x in observation.layers if x.group == 1)
        sums = {
            name: sum(x.composition_weight * getattr(x, name) for x in layers)
            for name in ("log_norm", "drift", "noise_curvature", "finite_step", "decay")
        }
        spread = math.sqrt(sum((x.composition_weight * x.diffusion) ** 2 for x in layers))
        own = replace(
            observation,
            layers=layers,
            knobs=tuple(k for k in observation.knobs if k.group == 1),
            network=replace(observation.network, diffusion=spread, update_ratio=9.0, **sums),
            bands=(),
        )
        wanted, alone = Lipschitz().decide(own, alone)
        assert decision.knobs_for(0).lr == 0.1
        assert decision.knobs_for(1) == wanted.knobs_for(1)
    with pytest.raises(ValueError, match="at least one group"):
        per_group({})


def test_a_budget_for_each_layer_is_held_against_its_own_growth():
    """Ten layers that grow alike, each in a group of its own: the same cut as for all ten in one."""
    grown, all_in_one = [], replace(FIRST, total_steps=100)
    for step in range(1, 60):
        layer = replace(
            FIRST.layers[0],
            kind="linear",
            composition_weight=1.0,
            log_gain=0.5,
            log_norm=0.01 * step,
            drift=0.3,
            status=Status.OK,
        )
        layers = tuple(replace(layer, name=f"layer{i}", group=i) for i in range(10))
        network = replace(FIRST.network, log_norm=0.1 * step, drift=3.0, diffusion=0.0, status=Status.OK)
        knobs = tuple(Knobs(i, 0.03, 0.0) for i in range(10))
        grown.append(
            replace(all_in_one, step=step, measured_step=step - 1, layers=layers, network=network, knobs=knobs)
        )
    together, alone = chain(Constant(lr=0.03), LipschitzBudget(budget=0.2, loss_room=0.0)), None
    alone = per_group(dict.fromkeys(range(10), together))
    one, each = together.init(), alone.init()
    for observation in grown:
        wanted, one = together.decide(observation, one)
        found, each = alone.decide(observation, each)
        assert [k.lr for k in found.knobs] == pytest.approx([k.lr for k in wanted.knobs])
    assert wanted.knobs[0].lr < 0.03


def test_a_group_that_the_optimizer_lacks_is_told():
    policy = per_group({0: Constant(lr=0.1), 7: Constant(lr=0.2)})
    decision, _ = policy.decide(seen(3), policy.init())
    assert decision.reason == "0:constant:stable+7:hold:no_such_group"
    assert decision.knobs == (Knobs(0, 0.1, 0.0),)
    assert decision.warmup_ended


def test_the_guard_grows_back_and_is_slower_each_time():
    policy = guard(Constant(lr=0.9), regrow_steps=10)
    state = policy.init()
    rates = {}
    for step in range(1, 80):
        loss = math.nan if step in (5, 20) else 1.0
        decision, state = policy.decide(seen(step, loss=loss), state)
        rates[step] = decision.knobs[0].lr
    assert rates[4] == 0.9
    assert rates[5] == rates[14] == pytest.approx(0.3)
    assert rates[15] == pytest.approx(0.9)
    assert rates[20] == rates[39] == pytest.approx(0.3)
    assert rates[40] == pytest.approx(0.9)
    never = guard(Constant(lr=0.9))
    state = never.init()
    _, state = never.decide(seen(5, loss=math.nan), state)
    assert never.decide(seen(5000, loss=1.0), state)[0].knobs[0].lr == pytest.approx(0.3)
