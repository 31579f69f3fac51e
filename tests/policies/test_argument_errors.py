"""Whatever a policy is given that it cannot use, the error names the argument, its rule and the value."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re

import pytest

import lipadvisor.policies
from lipadvisor.policies import (
    Annealing,
    Constant,
    OrderBox,
    Orders,
    SpectralRate,
    Status,
    chain,
    combine,
    freeze,
    named_policy,
    per_group,
)
from lipadvisor.policies.checks import told

BAD = ("x", "1", 10**400, -(10**400), 10**5000, math.nan, -math.inf, {}, 1 + 2j, b"a", object())
REQUIRED = {
    "policy": Constant(),
    "members": (Constant(),),
    "policies": (Constant(), Constant()),
    "rise": 2.0,
    "fall": 2.0,
    "lr": None,
    "weight_decay": None,
    "n": 3,
    "steps": 3,
    "start": 0,
    "stop": 5,
    "trial_steps": 1,
    "drive_steps": 1,
    "last_share": 0.5,
    "smoothing": 1,
    "statuses": (Status.OK,),
    "refuses": print,
    "source": OrderBox(),
    "branches": (),
    "factors": (),
    "rate": SpectralRate(),
    "annealing": Annealing(),
}
# Neither numbers nor tuples of them: objects, texts, records of the contract.
FREE = {"rate", "annealing", "policy", "title", "source", "refuses", "path", "orders", "reason", "name"}
RECORDS = {"Band", "Decision", "Knobs", "Layer", "Observation", "OrderBox", "OrderFile"}
# Another part's argument, by which the error calls it.
OF_A_PART = {"decay_total": "total", "cooldown_start": "start_fraction", "cooldown_end": "final_fraction"}
OF_A_PART |= {"averaging": "memory", "overfitting_rise": "rise"}
OF_A_PART |= {"decay_gap": "gap", "decay_growth": "growth", "decay_most": "most_factor", "head_decay": "head"}
OF_A_PART |= {"decay_per_step": "per_step", "decay_left_power": "left_power"}
OF_A_PART |= {"overfitting_gap": "gap", "low_gain": "low", "high_gain": "high"}


def arguments():
    made = {name: getattr(lipadvisor.policies, name) for name in lipadvisor.policies.__all__ if name not in RECORDS}
    made |= {name: getattr(combine, name) for name in ("Clamp", "RateLimit", "Every", "HoldWhen", "Cooldown", "Pin")}
    for name, kind in made.items():
        if inspect.isclass(kind) and dataclasses.is_dataclass(kind):
            for field in dataclasses.fields(kind):
                if field.init and field.name not in FREE:
                    yield pytest.param(kind, field.name, id=f"{name}-{field.name}")


@pytest.mark.parametrize(("kind", "argument"), [*arguments()])
def test_an_error_names_argument_rule_and_value(kind, argument):
    given = {
        field.name: REQUIRED[field.name]
        for field in dataclasses.fields(kind)
        if field.init and field.default is dataclasses.MISSING
    }
    called = {"members": "policies" if kind is lipadvisor.policies.PerGroup else "members"}
    name = (called | OF_A_PART).get(argument, argument)
    for value in BAD:
        with pytest.raises(ValueError, match=r"must ") as caught:
            kind(**(given | {argument: value}))
        if (argument, kind) != ("members", lipadvisor.policies.Chain):
            assert re.search(rf"\b{name}\b", str(caught.value))
        assert told(value) in str(caught.value)
        assert len(str(caught.value)) < 250


def test_what_is_beyond_a_line_is_cut():
    assert told(10**5000) == "an integer of 16610 bits"
    assert told("x" * 1000).count("x") == 73
    assert told(0.1) == "0.1"


def test_infinity_stands_for_no_limit_where_it_can():
    assert combine.rate_limit(Constant(), fall=math.inf).fall == math.inf
    assert freeze(Constant(), start=3).stop == math.inf


def test_the_command_line_gets_the_same_error():
    with pytest.raises(ValueError, match=r"Cosine\(lr=\.\.\.\) must be a finite number > 0, got 'fast'"):
        named_policy("cosine", lr="fast")


def test_combinators_take_no_single_policy_for_several():
    with pytest.raises(ValueError, match=r"per_group\(policies=\.\.\.\) must be a mapping"):
        per_group((Constant(),))
    with pytest.raises(ValueError, match=r"must begin with a policy"):
        chain(3)
    with pytest.raises(ValueError, match=r"Orders\(cooldown=\.\.\.\) must be a whole number"):
        Orders(cooldown=10**400)
