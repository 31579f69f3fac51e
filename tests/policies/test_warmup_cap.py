"""Under plain gradient steps the rate does not rise above the warmup's before the training loss has fallen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import pytest

from lipadvisor.policies import Knobs, Layer, Observation, SpectralRate, as_json, from_json, replay
from lipadvisor.policies.warmup_cap import LEARNT, WINDOW, WarmupCap

STEPS = 400
NETWORK = Layer("*", "network", (), -1, 1.0, 0.0, 0.1, 0.0)


def rates(
    optimizer: str, losses: Sequence[float | None], ratio: Callable[[int], float], rate: SpectralRate | None = None
) -> list[float]:
    """Return the learning rates of a run of ``STEPS`` that is told ``losses``."""
    run = [
        Observation(
            t, STEPS, 0.0, optimizer, 0.9, (Knobs(0, 0.01, 0.0),), NETWORK,
            (Layer("a", "linear", (64, 64), 0, 1.0, 0.0, 0.1, 0.0, update_ratio=ratio(t)),),
            loss=loss, measured_step=max(t - 1, 0),
        )
        for t, loss in enumerate(losses)
    ]  # fmt: skip
    return [lr for decision in replay(rate or SpectralRate(), run) if (lr := decision.knobs[0].lr) is not None]


def vanishing(t: int) -> float:
    return 5.0 * math.exp(-t / 30.0)


def reached(free: list[float]) -> int:
    """Return the first step at which the rate was not held down by the warmup."""
    return next(t for t in range(1, STEPS) if free[t] < 3.999 * free[t - 1])


@pytest.mark.parametrize("fall", [1.0, 0.75])
def test_the_rate_does_not_rise_before_anything_has_been_learnt(fall: float) -> None:
    losses = [2.0 * fall ** (t / STEPS) + 0.1 * (-1) ** t for t in range(STEPS)]
    free, held = rates("adamw", losses, vanishing), rates("sgd", losses, vanishing)
    end = reached(free) + WINDOW
    assert held[:end] == free[:end]
    assert held[end:] == pytest.approx([max(free[:end])] * (STEPS - end))
    assert max(free) > 2.0 * max(held)


@pytest.mark.parametrize("fall", [0.6, 0.2])
def test_it_rises_for_good_once_the_loss_has_come_down(fall: float) -> None:
    losses = [2.0] * 100 + [2.0 * fall] * 150 + [3.0] * 150
    held = rates("sgd", losses, vanishing)
    freed = next(t for t in range(50, STEPS) if held[t] > held[t - 1])
    smooth = 2.0 * (fall + (1.0 - fall) * math.exp(-(freed - 99) / 20.0))
    assert freed > 100
    assert smooth == pytest.approx(2.0 * LEARNT, rel=0.04)
    assert all(lr > max(held[:freed]) for lr in held[freed + 1 :])


@pytest.mark.parametrize("rise", [1.15, 1.05])
def test_a_warmup_that_has_not_got_anywhere_limits_nothing(rise: float) -> None:
    slow = SpectralRate(rise=rise, smoothing=0.0)
    held = rates("sgd", [2.0] * STEPS, lambda t: 5.0, slow)
    assert held == rates("adamw", [2.0] * STEPS, lambda t: 5.0, slow)
    assert held[-1] == pytest.approx(slow.relative_step / 5.0)
    assert held[2 * WINDOW] < 0.1 * held[-1]  # far below, long after the first steps


@pytest.mark.parametrize("loss", [None, math.nan, math.inf, -1.0, 0.0])
def test_a_loss_that_says_nothing_is_not_listened_to(loss: float | None) -> None:
    held = rates("sgd", [2.0] * 100 + [loss] * 10 + [2.0] * 290, vanishing)
    assert held == rates("sgd", [2.0] * STEPS, vanishing)
    assert rates("sgd", [loss] * STEPS, vanishing) == rates("adamw", [2.0] * STEPS, vanishing)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "muon", "unknown"])
def test_other_optimizers_are_as_before(optimizer: str) -> None:
    free = rates(optimizer, [2.0] * STEPS, vanishing)
    assert free == rates("adamw", [1.0 - t / 500 for t in range(STEPS)], vanishing)
    assert max(free) > 2.0 * max(free[: reached(free) + WINDOW])


def test_the_memory_is_json() -> None:
    cap = WarmupCap(7, -3.0, 2.0, 1.5, 40, True)
    assert from_json(WarmupCap, json.loads(json.dumps(as_json(cap)))) == cap
    assert WarmupCap().limit(10_000) is None
    assert cap.limit(10_000) is None
