"""The weight decay of a run: its total, what a long run adds, and a run whose length is unknown."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lipadvisor.policies import Constant, Knobs, Layer, Observation, TotalDecay, chain, replay

LAYER = Layer("a", "linear", (64, 64), 0, 1.0, 0.0, 0.1, 0.0)
NETWORK = Layer("*", "network", (), -1, 1.0, 0.0, 0.1, 0.0)


def observed(step: int, total: int | None) -> Observation:
    return Observation(step, total, 0.0, "adamw", 0.9, (Knobs(0, 0.03, 0.0),), NETWORK, (LAYER,))


def shrinkage(policy: TotalDecay, steps: int, total: int | None) -> list[float]:
    """Return ``lr * weight_decay`` of each step, nats."""
    return decays(policy, [observed(step, total) for step in range(steps)])


def decays(policy: TotalDecay, observations: list[Observation]) -> list[float]:
    knobs = [decision.knobs[0] for decision in replay(chain(Constant(lr=0.03), policy), observations)]
    return [k.lr * k.weight_decay for k in knobs]


@pytest.mark.parametrize("steps", [100, 300, 1000, 4000])
@pytest.mark.parametrize(("total", "per_step"), [(0.6, 0.002), (0.075, 0.002), (0.6, 0.0002)])
def test_the_total_is_the_geometric_mean_of_a_fixed_one_and_a_fixed_decay_per_step(
    steps: int, total: float, per_step: float
) -> None:
    nats = sum(shrinkage(TotalDecay(total, per_step), steps, steps))
    assert nats == pytest.approx(math.sqrt(total * per_step * steps), rel=0.03)


def test_without_a_horizon_the_decay_is_that_of_the_assumed_one() -> None:
    for nats in shrinkage(TotalDecay(unknown_steps=4000), 3, None):
        assert nats == pytest.approx(math.sqrt(0.6 * 0.002 * 4000) / 4000)


@pytest.mark.parametrize("power", [0.0, 0.25, 1.0])
def test_without_a_gap_the_decay_is_smaller_by_a_power_of_what_is_left(power: float) -> None:
    policy = TotalDecay(left_power=power)
    falling = [1.0, 0.5, 0.1, 0.2, 0.01]
    training = [loss for loss in (1.0, *falling) for _ in range(100)]
    left = [1.0, 0.5, 0.1, 0.1, 0.01]  # the lowest counts
    assert factors(policy, training, falling) == pytest.approx([share**power for share in left])
    with pytest.raises(ValueError, match=r"TotalDecay\(left_power=\.\.\.\)"):
        TotalDecay(left_power=power + 1.01)


def test_with_a_gap_what_is_left_does_not_count() -> None:
    assert factors(TotalDecay(), [1e-3] * 500, [1.0, 0.5, 0.1, 0.05]) == pytest.approx([1.0] * 4)


def validated(losses: list[float], validations: list[float], every: int = 10) -> list[Observation]:
    """Return a run of an unknown horizon that reports a validation loss every ``every`` steps from the first such."""
    run = []
    for step, loss in enumerate(losses):
        seen = replace(observed(step, None), loss=loss)
        if step >= every:
            seen = replace(seen, validation_loss=validations[step // every - 1], validation_step=step // every * every)
        run.append(seen)
    return run


def factors(policy: TotalDecay, losses: list[float], validations: list[float], every: int = 100) -> list[float]:
    """Return the factor on the decay after each validation."""
    found = decays(policy, validated(losses, validations, every))
    return [x / found[0] for x in found[every::every]]


def test_each_validation_that_is_not_the_lowest_makes_the_decay_larger_and_each_that_is_takes_one_back() -> None:
    standing = [0.5] * 800
    assert factors(TotalDecay(), standing, [1.0] * 7) == pytest.approx([1.0, 3.0, 9.0, 16.0, 16.0, 16.0, 16.0])
    there_and_back = [1.0, 1.0, 1.2, 0.999, 1.1, 0.998, 0.997]
    expected = [1.0, 3.0, 9.0, 3.0, 9.0, 3.0, 1.0]
    assert factors(TotalDecay(), standing, there_and_back) == pytest.approx(expected, rel=2e-3)
    falling = [1.0 - 0.01 * k for k in range(7)]
    assert factors(TotalDecay(), standing, falling) == pytest.approx([1.0] * 7)


def test_only_what_lies_above_the_training_loss_counts() -> None:
    assert factors(TotalDecay(), [1.0] * 400, [1.2] * 3) == pytest.approx([1.0] * 3)
    assert factors(TotalDecay(), [1.0] * 400, [1.3] * 3) == pytest.approx([1.0, 3.0, 9.0])
    assert factors(TotalDecay(gap=1.4), [1.0] * 400, [1.3] * 3) == pytest.approx([1.0] * 3)
    falling = [1.0] * 300 + [0.1] * 200  # smoothed over two: sqrt(1.1 x 11) = 3.5 above
    assert factors(TotalDecay(gap=3.2), falling, [1.1] * 4) == pytest.approx([1.0, 1.0, 1.0, 3.0])
    assert factors(TotalDecay(gap=3.6), falling, [1.1] * 4) == pytest.approx([1.0, 1.0, 1.0, 1.0])


def test_what_stands_still_counts_by_what_is_left_of_the_first() -> None:
    found = factors(TotalDecay(), [0.01] * 500, [1.0, 0.5, 0.6, 0.7])
    assert found == pytest.approx([1.0, 1.0, 3.0**0.5, 3.0])


@pytest.mark.parametrize("start", [0.5, 1.0, 4.0, 16.0])
def test_the_training_loss_at_the_start_counts_as_the_first_where_validation_begins_late(start: float) -> None:
    begun = [start] * 60 + [0.01] * 440  # step 100: the first validation finds most of it learnt
    share = 1.0 / max(start, 1.0)
    found = factors(TotalDecay(left_power=0.0), begun, [1.0, 0.5, 0.6, 0.7])
    assert found == pytest.approx([1.0, 1.0, 3.0 ** (0.5 * share), 3.0**share])
    silent = [math.nan, 0.0, *begun[2:]]  # what says nothing is not counted
    assert factors(TotalDecay(left_power=0.0), silent, [1.0, 0.5, 0.6, 0.7]) == pytest.approx(found)


@pytest.mark.parametrize("every", [10, 25, 50])
def test_where_validation_begins_early_the_first_one_is_the_first(every: int) -> None:
    standing = [1.0, 0.5, 0.6, 0.7, 0.8]
    found = [factors(TotalDecay(), [loss] * (5 * every + 1), standing, every)[3] for loss in (0.01, 0.3)]
    assert found[0] == pytest.approx(found[1])
    late = factors(TotalDecay(late_step=5), [16.0] * 6 + [0.01] * (5 * every - 5), standing, every)[3]
    assert 1.0 < late < found[0]


def test_of_more_than_twenty_validations_each_counts_by_its_share() -> None:
    found = factors(TotalDecay(), [0.5] * 210, [1.0] * 20, every=10)  # a tenth of a twentieth of 2,000
    assert found[:11] == pytest.approx([3.0 ** (0.1 * k) for k in range(11)])


def test_the_last_layer_shrinks_with_each_validation_above_training() -> None:
    first, head, beside = (
        replace(LAYER, name="first"),
        replace(LAYER, name="head"),
        replace(LAYER, composition_weight=0.0),
    )
    frozen = replace(LAYER, name="frozen", group=-1)
    run = [
        replace(one, layers=(first, head, beside, frozen), total_steps=400)
        for one in validated([0.5] * 401, [1.0, 1.0, 0.5, 0.9], 100)
    ]
    scales = {d.step: d.weight_scale for d in replay(chain(Constant(lr=0.03), TotalDecay()), run) if d.weight_scale}
    assert scales == {200: (("head", pytest.approx(math.exp(-0.1))),), 300: (("head", pytest.approx(math.exp(-0.05))),)}
    assert not any(d.weight_scale for d in replay(chain(Constant(lr=0.03), TotalDecay(head=0.0)), run))
    assert not any(d.weight_scale for d in replay(chain(Constant(lr=0.03), TotalDecay(gap=2.5)), run))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0])
def test_losses_that_say_nothing_leave_the_decay_as_it_is(bad: float) -> None:
    assert factors(TotalDecay(), [0.5] * 500, [1.0, 1.0, bad, bad])[1:] == pytest.approx([3.0] * 3)
    assert factors(TotalDecay(), [bad] * 400, [1.2, 1.2, 1.2]) == pytest.approx([1.0] * 3)


def test_it_can_be_blind_to_validation() -> None:
    for policy in (TotalDecay(growth=1.0), TotalDecay(most_factor=1.0)):
        assert factors(policy, [0.5] * 400, [5.0] * 3) == pytest.approx([1.0] * 3)


def test_of_losses_that_can_be_below_zero_no_ratio_counts() -> None:
    sinking = [0.5] * 250 + [-0.1] * 10 + [0.5] * 140
    assert factors(TotalDecay(), sinking, [5.0, 5.0, 5.0]) == pytest.approx([1.0, 3.0, 1.0])
    assert factors(TotalDecay(), [0.5] * 500, [5.0, 5.0, -0.1, 5.0]) == pytest.approx([1.0, 3.0, 1.0, 1.0])
