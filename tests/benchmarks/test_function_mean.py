"""The candidate that averages two estimates of the step."""

from __future__ import annotations

import math

import pytest

from lipadvisor.experiments.benchmarks.drive import drive
from lipadvisor.experiments.benchmarks.function_mean import FunctionMean, FunctionStep
from lipadvisor.experiments.benchmarks.lists import TASKS
from lipadvisor.experiments.benchmarks.measure import WiderObservation
from lipadvisor.policies import Decision, Knobs, Layer, Lipschitz, laws

NETWORK = Layer("*", "network", (), -1, 1.0, 0.0, 0.0, 0.0)


def refined(rate: float, lr: float, part: FunctionStep, total: int = 400) -> float | None:
    seen = WiderObservation(7, total, 0.0, "sgd", 0.9, (), NETWORK, (), function_rate=rate)
    decision, _ = part.refine(seen, Decision(7, "x", "x", (Knobs(0, lr),)), part.init())
    return decision.knobs_for(0).lr


@pytest.mark.parametrize("rate", [0.02, 3.0, 500.0])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_rate_is_the_weighted_geometric_mean_of_the_two(rate: float, weight: float) -> None:
    part = FunctionStep(change=0.2, weight=weight)
    assert refined(rate, 0.05, part) == pytest.approx(0.05 ** (1.0 - weight) * (0.2 / rate) ** weight)
    assert refined(rate, 0.05, part, 1600) == pytest.approx(0.05 ** (1.0 - weight) * (0.1 / rate) ** weight)


@pytest.mark.parametrize("rate", [0.0, math.nan, math.inf, -1.0])
def test_without_a_measurement_the_rate_stays(rate: float) -> None:
    assert refined(rate, 0.05, FunctionStep()) is None


def test_it_obeys_the_laws_and_forgives_a_wrong_step() -> None:
    laws.check(FunctionMean())
    task = TASKS["wine"]

    def loss(policy: object) -> float:
        return sum(drive(task, [policy] * 3, range(3), decide_every=5, function_every=5).test)  # type: ignore[list-item]

    wrong = Lipschitz().scaled(1.0 / 32)
    assert loss(FunctionMean(wrong)) < 0.8 * loss(wrong)
