"""The cost of a decision is measured on decisions that do something."""

from __future__ import annotations

import time

from lipadvisor.experiments.benchmarks.decision_cost import decision_cost_us, run_of
from lipadvisor.policies import Lipschitz, replay


def test_the_run_that_is_timed_makes_the_default_work():
    decisions = replay(Lipschitz(), run_of(50))
    assert len(decisions) == 300
    assert len({d.knobs[0].lr for d in decisions}) > 250
    assert any("budget" in d.reason for d in decisions)
    assert all(d.knobs[0].weight_decay is not None for d in decisions[1:])


def _machine_us() -> float:
    """Return the cost of a fixed piece of plain Python, us: what a busy or slow machine is compared with."""
    best = 1e9
    for _ in range(12):
        begun = time.process_time()
        for _ in range(300):
            sorted([float(i % 7) for i in range(200)])
        best = min(best, (time.process_time() - begun) / 300)
    return 1e6 * best


def test_a_decision_for_fifty_layers_stays_cheap_and_layers_cost_little():
    """Relative to plain Python: wall-clock bounds fail on a busy machine. The default costs 4 such pieces at most."""
    machine = _machine_us()
    assert decision_cost_us(Lipschitz(), 50, repeats=6) < 8.0 * machine
    assert decision_cost_us(Lipschitz(), 100, repeats=6) < 2.0 * decision_cost_us(Lipschitz(), 50, repeats=6)
