"""The memory of the average: a share of a run whose length is known, through chains and wrappers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lipadvisor.policies import (
    Averaging,
    Constant,
    Knobs,
    Layer,
    Lipschitz,
    Observation,
    Overfitting,
    chain,
    clamp,
    laws,
    pin,
    replay,
    shadow,
)

LAYER = Layer("a", "linear", (64, 64), 0, 1.0, 0.0, 0.1, 0.0, update_ratio=1.0)
NETWORK = Layer("*", "network", (), -1, 1.0, 0.0, 0.1, 0.0)


def run(total: int | None, steps: int = 12) -> list[Observation]:
    return [
        Observation(step, total, 0.0, "adamw", 0.9, (Knobs(0, 0.03, 0.0),), NETWORK, (LAYER,), measured_step=step - 1)
        for step in range(steps)
    ]


@pytest.mark.parametrize(("total", "steps"), [(12, 1.0), (14, 1.0), (3, 1.0), (None, None)])
def test_the_memory_is_a_share_of_the_run_and_a_step_at_least(total: int | None, steps: float | None) -> None:
    for policy in (chain(Constant(), Averaging()), Lipschitz(), clamp(chain(Constant(), Averaging())),
                   pin(Lipschitz(), lr=0.1)):  # fmt: skip
        asked = [decision.averaging for decision in replay(policy, run(total))]
        assert asked == [steps if step >= 0.75 * (total or math.inf) else None for step in range(12)]


@pytest.mark.parametrize(("total", "steps"), [(1000, 50.0), (300, 15.0), (5, 1.0)])
def test_it_is_asked_for_in_the_last_quarter(total: int, steps: float) -> None:
    first = math.ceil(0.75 * total)
    asked = [decision.averaging for decision in replay(chain(Constant(), Averaging()), run(total, total + 3))]
    assert asked == [None] * first + [steps] * (total + 3 - first)


def test_it_can_be_switched_off() -> None:
    for policy in (chain(Constant(), Averaging(0.0)), Lipschitz(averaging=0.0)):
        decisions = replay(policy, run(10))
        assert {decision.averaging for decision in decisions} == {None}
        assert not any("averaging" in decision.reason for decision in decisions)


def test_the_reason_tells_the_end_alone() -> None:
    reasons = [decision.reason for decision in replay(chain(Constant(), Averaging()), run(10))]
    assert [reason.endswith("averaging:end") for reason in reasons] == [step == 10 for step in range(12)]


def test_where_the_run_ends_with_its_best_weights_the_average_is_not_told() -> None:
    last = replace(run(10, 11)[-1], loss=0.1, validation_loss=1.0, validation_step=10)
    seen = [replace(last, step=k, loss=0.1, validation_loss=0.1, validation_step=k) for k in (2, 4)]
    made = replay(chain(Constant(), Overfitting(), Averaging()), [*run(10, 2), *seen, last])[-1]
    assert made.rewind
    assert made.reason.endswith("overfitting:rewind")


def test_the_later_part_of_a_chain_wins_and_a_shadow_asks_for_nothing() -> None:
    both = chain(Constant(), Averaging(0.2), Averaging(0.1))
    assert [decision.averaging for decision in replay(both, run(10))] == [2.0] * 5 + [1.0] * 7
    first = chain(chain(Constant(), Averaging(0.2)), Constant())
    assert {decision.averaging for decision in replay(first, run(100))} == {20.0}
    assert {decision.averaging for decision in replay(shadow(both), run(100))} == {None}


def test_the_laws_hold_and_know_the_memory() -> None:
    laws.check(chain(Constant(), Averaging()), seeds=range(2))

    class Wrong(Constant):
        def decide(self, observation, state):  # type: ignore[no-untyped-def]
            from dataclasses import replace

            decision, state = Constant.decide(self, observation, state)
            return replace(decision, averaging=-1.0), state

    with pytest.raises(laws.LawBrokenError, match="decisions_are_in_range"):
        laws.check(Wrong(), seeds=range(1))
