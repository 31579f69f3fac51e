"""The weight decay of a run: its total, what a long run adds, and a run whose length is unknown."""

from __future__ import annotations

import pytest

from lipadvisor.policies import Constant, Knobs, Layer, Observation, TotalDecay, chain, replay

LAYER = Layer("a", "linear", (64, 64), 0, 1.0, 0.0, 0.1, 0.0)
NETWORK = Layer("*", "network", (), -1, 1.0, 0.0, 0.1, 0.0)


def shrinkage(policy: TotalDecay, steps: int, total: int | None) -> list[float]:
    """Return ``lr * weight_decay`` of each step, nats."""
    observations = [
        Observation(step, total, 0.0, "adamw", 0.9, (Knobs(0, 0.03, 0.0),), NETWORK, (LAYER,)) for step in range(steps)
    ]
    knobs = [decision.knobs[0] for decision in replay(chain(Constant(lr=0.03), policy), observations)]
    return [k.lr * k.weight_decay for k in knobs]


@pytest.mark.parametrize(("steps", "nats"), [(100, 0.2), (300, 0.6), (1000, 0.6), (4000, 1.2)])
def test_short_runs_decay_less_and_long_ones_by_the_square_root_more(steps: int, nats: float) -> None:
    assert sum(shrinkage(TotalDecay(), steps, steps)) == pytest.approx(nats, rel=0.03)


def test_without_a_horizon_the_decay_is_that_of_the_assumed_one() -> None:
    for nats in shrinkage(TotalDecay(unknown_steps=4000), 3, None):
        assert nats == pytest.approx(0.6 * 2.0 / 4000)
