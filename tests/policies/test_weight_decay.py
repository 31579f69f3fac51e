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


@pytest.mark.parametrize(("steps", "nats"), [(100, 0.2), (300, 0.6), (1000, 0.6), (4000, 1.2)])
def test_short_runs_decay_less_and_long_ones_by_the_square_root_more(steps: int, nats: float) -> None:
    assert sum(shrinkage(TotalDecay(), steps, steps)) == pytest.approx(nats, rel=0.03)


def test_without_a_horizon_the_decay_is_that_of_the_assumed_one() -> None:
    for nats in shrinkage(TotalDecay(unknown_steps=4000), 3, None):
        assert nats == pytest.approx(0.6 * 2.0 / 4000)


def validated(losses: list[float], validations: list[float], every: int = 10) -> list[Observation]:
    """Return a run of an unknown horizon that reports a validation loss every ``every`` steps from the first such."""
    run = []
    for step, loss in enumerate(losses):
        seen = replace(observed(step, None), loss=loss)
        if step >= every:
            seen = replace(seen, validation_loss=validations[step // every - 1], validation_step=step // every * every)
        run.append(seen)
    return run


@pytest.mark.parametrize(("ratio", "factor"), [(0.2, 1.0), (1.6, 1.0), (2.4, 2.25), (3.2, 4.0), (50.0, 4.0)])
def test_the_decay_rises_with_the_square_of_validation_over_training(ratio: float, factor: float) -> None:
    found = decays(TotalDecay(), validated([0.5] * 40, [0.5 * ratio] * 3))
    assert found[:10] == pytest.approx([found[0]] * 10)  # nothing has been reported
    assert found[10:] == pytest.approx([factor * found[0]] * 30)


def test_the_ratio_is_smoothed_over_two_validations() -> None:
    found = decays(TotalDecay(most_factor=100.0), validated([1.0] * 40, [1.6, 6.4, 6.4]))
    assert [x / found[0] for x in found[10::10]] == pytest.approx([1.0, 4.0, 8.0])


def test_a_single_batch_counts_by_its_share() -> None:
    losses = [1.0] * 29 + [1e-3] + [1.0] * 10
    found = decays(TotalDecay(), validated(losses, [1.0, 1.0, 1.0]))
    assert found == pytest.approx([found[0]] * 40)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0])
def test_losses_that_say_nothing_leave_the_decay_as_it_is(bad: float) -> None:
    found = decays(TotalDecay(), validated([0.5] * 40, [1.2, bad, bad]))
    assert found[10:] == pytest.approx([found[10]] * 30)
    assert found[10] == pytest.approx(2.25 * found[0])
    found = decays(TotalDecay(), validated([bad] * 40, [1.2, 1.2, 1.2]))
    assert found == pytest.approx([found[0]] * 40)


def test_it_can_be_blind_to_validation() -> None:
    found = decays(TotalDecay(most_factor=1.0), validated([0.5] * 40, [5.0] * 3))
    assert found == pytest.approx([found[0]] * 40)


def test_of_losses_that_can_be_below_zero_no_ratio_counts() -> None:
    sinking = [0.5] * 20 + [-0.1] * 10 + [0.5] * 10
    found = decays(TotalDecay(), validated(sinking, [5.0, 5.0, 5.0]))
    assert found[10:20] == pytest.approx([4.0 * found[0]] * 10)  # not known yet
    assert found[20:] == pytest.approx([found[0]] * 20)
    found = decays(TotalDecay(), validated([0.5] * 40, [5.0, -0.1, 5.0]))
    assert found[20:] == pytest.approx([found[0]] * 20)
