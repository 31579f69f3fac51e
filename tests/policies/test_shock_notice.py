"""The notice of a jump of the loss: it comes after a jump, once, and not for noise, trends or bad data."""

from __future__ import annotations

import math
import random

import pytest

from lipadvisor.policies import Constant, Knobs, Layer, Observation, ShockNotice, chain, replay


def told_at(losses, **parameters):
    network = Layer("*", "network", (), -1, 1.0, 0.0, 0.1, 0.0)
    knobs = (Knobs(0, 0.1, 0.0),)
    run = [Observation(step, None, 0.0, "sgd", 0.9, knobs, network, (), loss=loss) for step, loss in enumerate(losses)]
    decisions = replay(chain(Constant(lr=0.1), ShockNotice(**parameters)), run)
    assert {d.knobs[0].lr for d in decisions} == {0.1}
    return [d.step for d in decisions if "shock:loss" in d.reason]


def noisy(count, spread, seed, level=lambda step: 1.0):
    draw = random.Random(seed)
    return [level(step) * math.exp(spread * draw.gauss(0.0, 1.0)) for step in range(count)]


@pytest.mark.parametrize("seed", range(10))
def test_a_jump_is_told_once_and_soon(seed):
    steps = told_at(noisy(400, 0.3, seed, lambda step: 0.1 if step < 200 else 0.8))
    assert len(steps) == 1
    assert 200 <= steps[0] <= 205


def test_neither_noise_nor_a_fall_nor_a_plateau_is_a_shock():
    alarms = [told_at(noisy(2000, spread, seed)) for spread in (0.05, 0.5, 1.5) for seed in range(5)]
    assert sum(map(len, alarms)) <= 3  # in 30,000 observations
    assert told_at(noisy(500, 0.1, 0, lambda step: 0.99**step)) == []
    assert told_at([2.0] * 300) == []


def test_a_small_rise_is_below_the_bar_and_the_bar_can_be_set():
    losses = [1.0] * 100 + [1.3] * 100
    assert told_at(losses) == []
    assert told_at(losses, jump=1.1) == [101]


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -1.0, 0.0])
def test_bad_losses_are_passed_over(bad):
    losses = [1.0, bad] * 100 + [5.0, bad] * 20
    (step,) = told_at(losses)
    assert 200 <= step <= 206


def test_the_jump_is_read_out():
    run = [1.0] * 50 + [4.0] * 3
    observations = [
        Observation(s, None, 0.0, "sgd", 0.9, (), Layer("*", "network", (), -1, 1.0, 0.0, 0.1, 0.0), (), loss=x)
        for s, x in enumerate(run)
    ]
    decisions = replay(chain(Constant(lr=0.1), ShockNotice()), observations)
    read = next(dict(d.read) for d in decisions if "shock:loss" in d.reason)
    assert 1.5 < read["loss_jump"] <= 4.0


@pytest.mark.parametrize(
    ("argument", "value"), [("jump", 1.0), ("deviations", -1.0), ("few", 0), ("many", 0), ("jump", math.inf)]
)
def test_impossible_arguments_are_named(argument, value):
    with pytest.raises(ValueError, match=rf"ShockNotice\({argument}=\.\.\.\) must"):
        ShockNotice(**{argument: value})
