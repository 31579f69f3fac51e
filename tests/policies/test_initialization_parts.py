"""Initializations that set all layers: what each issues, that it is the last word, and what it reports."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lipadvisor.policies import (
    POLICIES,
    Constant,
    DepthScaledInitialization,
    Initialization,
    Knobs,
    Layer,
    Lipschitz,
    Observation,
    PlannedInitialization,
    Predictive,
    SpectralInitialization,
    chain,
    laws,
    named_policy,
    replay,
)

PARTS = [
    SpectralInitialization(),
    SpectralInitialization(target=3.0),
    DepthScaledInitialization((("layer0", 4), ("layer2", 1), ("elsewhere", 9))),
    PlannedInitialization((("layer1", 2.0), ("layer0", 0.25), ("elsewhere", 3.0))),
    PlannedInitialization(()),
]


def layer(name, log_norm=0.0, log_gain=-0.5, shape=(64, 64)):
    return Layer(name, "linear", shape, 0, 1.0, log_norm, 0.1, log_gain)


def observe(*layers, step=0):
    network = Layer("*", "network", (), -1, 1.0, sum(x.log_norm for x in layers), 0.1, 0.0)
    return Observation(step, 100, 0.0, "adamw", 0.9, (Knobs(0, 0.01, 0.0),), network, layers)


def decided(policy, *layers, step=0):
    return policy.decide(observe(*layers, step=step), policy.init())[0]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: repr(part)[:40])
@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: chain(Lipschitz(), p), lambda p: chain(p, Constant())])
def test_every_part_obeys_the_laws_alone_and_in_a_chain(part, wrap):
    laws.check(wrap(part), seeds=range(2), steps=10)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: repr(part)[:40])
def test_nothing_is_issued_after_step_0(part):
    decision = decided(part, layer("layer0", 2.0), layer("layer1", -3.0), step=1)
    assert (decision.init_scale, decision.reason, decision.read, decision.knobs) == ((), "pass", (), ())


@pytest.mark.parametrize("target", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("shape", [(10, 40), (64, 64), (300, 3)])
def test_the_spectral_condition(shape, target):
    policy = SpectralInitialization(target)
    decision = decided(policy, layer("a", 1.7, shape=shape))
    assert decision.reason == "init:spectral"
    ((name, factor),) = decision.init_scale
    assert name == "a"
    assert factor * math.exp(1.7) == pytest.approx(target * math.sqrt(shape[0] / shape[1]))
    after = layer("a", 1.7 + math.log(factor), shape=shape)
    assert decided(policy, after).init_scale == (), "a condition that holds asks for nothing"


@pytest.mark.parametrize(
    "changes",
    [{"composition_weight": 0.0}, {"log_norm": math.nan}, {"log_norm": math.inf}, {"log_norm": -1e308}, {"shape": ()}],
)
def test_the_spectral_condition_is_for_matrices_of_the_sum_that_were_measured(changes):
    assert decided(SpectralInitialization(), replace(layer("a", 1.0), **changes)).init_scale == ()


def test_branches_shrink_with_the_root_of_their_number():
    decision = decided(DepthScaledInitialization((("a", 16), ("b", 1))), layer("a"), layer("b"), layer("c"))
    assert decision.init_scale == (("a", 0.25),)
    assert decision.reason == "init:depth_scaled"


def test_a_plan_is_issued_as_it_stands_and_what_is_absent_is_reported():
    plan = PlannedInitialization((("a", 3.0), ("nowhere", 0.5)))
    decision = decided(plan, layer("a"), layer("b"))
    assert decision.init_scale == (("a", 3.0),)
    assert decision.reason == "init:planned+init:absent"
    assert decision.read == (("absent[nowhere]", 0.5),)
    lost = decided(plan, layer("c"))
    assert (lost.init_scale, lost.reason) == ((), "init:absent")


def test_a_packed_projection_is_three_layers():
    plan = PlannedInitialization((("x.in_proj", 2.0), ("in_proj", 3.0)))
    names = ("x.q_proj", "x.k_proj", "x.v_proj", "x.out_proj", "q_proj", "k_proj", "v_proj")
    found = dict(decided(plan, *map(layer, names)).init_scale)
    assert found == dict.fromkeys(names[:3], 2.0) | dict.fromkeys(names[4:], 3.0)
    assert decided(plan, layer("x.in_proj")).init_scale == (("x.in_proj", 2.0),), "where it is measured as one"
    assert decided(plan, layer("x.in_proj")).read == (("absent[in_proj]", 3.0),)


@pytest.mark.parametrize("line", [Lipschitz(), Predictive(), chain(Constant(), Initialization())])
def test_the_last_initialization_of_a_chain_stands_for_all_layers(line):
    layers = [layer("a"), layer("b"), layer("head")]  # the line lifts a and b
    assert {name for name, _ in decided(line, *layers).init_scale} == {"a", "b"}
    decision = decided(chain(line, PlannedInitialization((("b", 0.5),))), *layers)
    assert dict(decision.init_scale) == {"a": 1.0, "b": 0.5}
    assert decision.reason.endswith("+init:planned")
    far, *near = replace(layers[0], log_norm=math.log(2.0)), *layers[1:]  # a has a norm that is twice the wanted one
    spectral = decided(chain(line, SpectralInitialization()), far, *near)
    assert dict(spectral.init_scale) == {"a": pytest.approx(0.5), "b": 1.0}


def test_the_rest_of_the_default_stays_as_it_is():
    run = laws.random_observations(5, steps=30)
    changed = replay(chain(Lipschitz(), PlannedInitialization((("layer0", 2.0),))), run)
    for plain, other in zip(replay(Lipschitz(), run), changed, strict=True):
        assert (plain.knobs, plain.read, plain.warmup_ended) == (other.knobs, other.read, other.warmup_ended)


def test_those_without_arguments_have_names():
    assert POLICIES["initialization"] is Initialization
    assert named_policy("spectral_initialization", target=2.0) == SpectralInitialization(2.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpectralInitialization(0.0), r"SpectralInitialization\(target=\.\.\.\) must be .* > 0, got 0.0"),
        (lambda: PlannedInitialization((("a", -1.0),)), r"PlannedInitialization\(factors=\.\.\.\) .* > 0, got -1.0"),
        (lambda: PlannedInitialization((("a", 1.0), ("a", 2.0))), r"factors=\.\.\.\) must name each layer once"),
        (lambda: PlannedInitialization(((3, 1.0),)), r"factors=\.\.\.\) must name each layer once, by a text, got 3"),
        (lambda: DepthScaledInitialization((("a", 0),)), r"\(branches=\.\.\.\) must be an integer >= 1, got 0"),
        (lambda: DepthScaledInitialization((("a", 2), ("a", 2))), r"branches=\.\.\.\) must name each layer once"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
