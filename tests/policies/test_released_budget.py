"""Validation losses that are the best so far release more of the Lipschitz budget, the others take it back."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lipadvisor.policies import Decision, Knobs, Layer, LipschitzBudget, Observation

WHOLE = Layer("*", "network", (), -1, 1.0, 0.0, 0.1, 0.0)
PART = Layer("a", "linear", (64, 64), 0, 1.0, 0.0, 0.1, 0.0, update_ratio=1.0)


def room_with(
    losses: list[float], every: int = 2, total: int = 40, training: float | None = None, **constants: float
) -> float:
    """Return the head room at the end of a run that does not grow, with a validation loss every so many steps."""
    policy = LipschitzBudget(healthy_gain=0.1, loss_room=0.0, **constants)
    state, head = policy.init(), math.nan
    for step in range(total):
        count = step // every  # validations so far
        seen = (losses[min(count, len(losses)) - 1], count * every) if count else (None, None)
        observation = Observation(
            step, total, 0.0, "sgd", 0.9, (Knobs(0, 0.1),), WHOLE, (PART,), (), training, *seen, max(step - 1, 0)
        )
        part, state = policy.refine(observation, Decision(step, "x", "x", (Knobs(0, 0.1),)), state)
        head = dict(part.read).get("budget_head", head)
    return head


def test_the_budget_has_more_room_with_each_validation_that_is_the_best_so_far() -> None:
    falling = [1.0 - 0.01 * k for k in range(20)]
    assert room_with(falling) == pytest.approx(0.3 * 4.0)  # 18 in a row, but no more than most_release
    assert room_with(falling, most_release=100.0) == pytest.approx(0.3 * 1.2**18)
    assert room_with([1.0, 0.9, 0.8, *[0.7] * 17], release=1.5) == pytest.approx(0.3)  # what no longer falls takes back
    assert room_with([1.0 + 0.01 * k for k in range(20)]) == pytest.approx(0.3)
    assert room_with([2.0, 1.0] * 4 + [3.0] + [0.9, 0.8, 0.7] + [0.6] * 8, most_release=2.0) == pytest.approx(0.3)
    assert room_with(falling, release=1.0) == pytest.approx(0.3)
    assert room_with([math.nan, math.inf] * 10) == pytest.approx(0.3)


def test_what_is_far_above_the_training_loss_releases_nothing() -> None:
    falling = [1.0 - 0.01 * k for k in range(20)]
    assert room_with(falling, training=0.7) == pytest.approx(0.3 * 4.0)
    assert room_with(falling, training=0.5) == pytest.approx(0.3)
    assert room_with(falling, training=0.5, release_gap=2.5) == pytest.approx(0.3 * 4.0)


def test_more_frequent_validations_release_no_more_room() -> None:
    """Half a look ahead, two steps of forty here, is what one full count takes."""
    falling = [1.0 - 0.01 * k for k in range(40)]
    often, seldom = (room_with(falling, every, most_release=100.0) for every in (1, 2))
    assert math.log(often / 0.3) == pytest.approx(math.log(seldom / 0.3), rel=0.1)


def test_growth_is_not_counted_from_a_layer_that_is_still_at_zero() -> None:
    """Its norm after the first step is that of the step: the reference waits until there is a weight to speak of."""
    policy, started = LipschitzBudget(), replace(PART, log_gain=math.log(0.01))
    state = policy.init()
    heads = []
    for step, part in enumerate((PART, replace(PART, log_gain=-math.inf), started, started)):
        whole = replace(WHOLE, log_norm=-9.0 if step == 1 else -4.0)
        observation = Observation(
            step, 40, 0.0, "sgd", 0.9, (Knobs(0, 0.1),), whole, (part,), measured_step=max(step - 1, 0)
        )
        made, state = policy.refine(observation, Decision(step, "x", "x", (Knobs(0, 0.1),)), state)
        heads.append(dict(made.read).get("budget_head"))
    assert heads[:2] == [None, None]
    assert heads[2] is not None
    assert heads[2] > math.log(1.2 / 0.01)  # it may grow to a healthy layer first


@pytest.mark.parametrize("bad", [{"release": 0.9}, {"release": math.nan}, {"most_release": 101.0}])
def test_a_release_outside_its_range_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"LipschitzBudget\({next(iter(bad))}=\.\.\.\) must be in \[1, 100\]"):
        LipschitzBudget(**bad)
