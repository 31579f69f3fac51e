"""Runs policies over a population: one policy and one seed a member, the contract's own objects in between."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lipadvisor.experiments.benchmarks.averages import Averages
from lipadvisor.experiments.benchmarks.measure import Measure
from lipadvisor.experiments.benchmarks.population import Population
from lipadvisor.experiments.benchmarks.task import Task
from lipadvisor.policies import Decision, Knobs, Observation, Policy

__all__ = ["Outcome", "Shock", "drive"]

Shock = Callable[[Population, list[float]], None]  # is given the learning rates in force, and may write them

_SNAPSHOT_EVERY = 50
_ALWAYS = 10  # steps at the start that are all measured
_USER_LR = 1e-3  # what the optimizers were given: policies that own the rate never read it


@dataclass(frozen=True, slots=True)
class Outcome:
    """Losses of each member at the end, and what was seen on the way."""

    train: list[float]
    validation: list[float]
    test: list[float]
    rollbacks: int
    reasons: tuple[dict[str, int], ...] = ()  # of each member: every reason given, with the first step it was given at
    traces: dict[int, list[dict[str, float]]] = field(default_factory=dict)


class _Knobs:
    """The knobs in force of each member, as plain numbers and as tensors."""

    def __init__(self, members: int) -> None:
        self.lr, self.weight_decay = [_USER_LR] * members, [0.0] * members

    def take(self, member: int, decision: Decision) -> None:
        """Take over what the decision sets; what is not a usable number is refused."""
        knobs = decision.knobs_for(0)
        if knobs.lr is not None and math.isfinite(knobs.lr) and knobs.lr > 0.0:
            self.lr[member] = knobs.lr
        decay = knobs.weight_decay
        if decay is not None and math.isfinite(decay) and 0.0 <= decay * self.lr[member] < 1.0:
            self.weight_decay[member] = decay

    def all(self) -> list[Knobs]:
        """Return one record a member."""
        return [Knobs(0, lr, decay) for lr, decay in zip(self.lr, self.weight_decay, strict=True)]


class _Best:
    """The weights and moments of each member at its lowest validation loss."""

    def __init__(self, population: Population) -> None:
        self._population, self._losses = population, [math.inf] * len(population)
        self._parameters, self._moments = population.snapshot()

    def keep(self, losses: Sequence[float]) -> None:
        """Copy the members whose validation loss is the lowest so far."""
        better = [i for i, (new, old) in enumerate(zip(losses, self._losses, strict=True)) if new < old]
        if not better:
            return
        for i in better:
            self._losses[i] = losses[i]
        members = torch.tensor(better)
        parameters, moments = self._population.snapshot()
        for key, value in parameters.items():
            self._parameters[key][members] = value[members]
        for kind, stack in moments.items():
            known = self._moments.setdefault(kind, {key: torch.zeros_like(value) for key, value in stack.items()})
            for key, value in stack.items():
                known[key][members] = value[members]

    def restore(self, members: Tensor) -> None:
        """Set ``members`` back to where they were kept."""
        self._population.restore((self._parameters, self._moments), members)


def drive(
    task: Task,
    policies: Sequence[Policy[Any]],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    perturb: Callable[[Population], None] | None = None,
    decide_every: int = 1,
    function_every: int = 0,
    horizon_known: bool = True,
    validate_every: int = 0,
    shock: Shock | None = None,
    trace: Sequence[int] = (),
    tick: Callable[[int], None] = lambda step: None,
) -> Outcome:
    """Train member ``i`` under ``policies[i]`` from ``seeds[i]``.

    Args:
        task: the task.
        policies: one for each member.
        seeds: one for each member.
        steps: length of the run; the task's own by default.
        perturb: changes the fresh weights, e.g. rescales them.
        decide_every: steps between measurements and decisions; the first ten steps are always measured.
        function_every: see :class:`Measure`.
        validate_every: steps between validation losses that the policies are shown; 0 for never.
        horizon_known: whether the policies are told the length of the run.
        shock: what happens to the run at half its length.
        trace: members whose observations and decisions are kept.
        tick: called after each step.
    """
    population = Population(task, seeds, steps)
    if perturb is not None:
        perturb(population)
    measure = Measure(population, population.steps if horizon_known else None, function_every)
    members = range(len(population))
    knobs, states, tau = _Knobs(len(population)), [policy.init() for policy in policies], [0.0] * len(population)
    traces: dict[int, list[dict[str, float]]] = {member: [] for member in trace}
    kept, rollbacks = population.snapshot(), 0
    best = _Best(population) if validate_every else None
    averages = Averages(population)
    shown: list[tuple[float, int]] = []
    validated = 0
    given = knobs.all()
    observations, fresh = measure.first(given), True
    reasons: tuple[dict[str, int], ...] = tuple({} for _ in members)
    for step in range(population.steps):
        if fresh:
            back, rewound, scaled = [], [], False
            for i in members:
                decision, states[i] = policies[i].decide(observations[i], states[i])
                knobs.take(i, decision)
                averages.take(i, decision)
                for reason in decision.reason.split("+"):
                    reasons[i].setdefault(reason, step)
                scaled = _rescale(population, i, decision) or scaled
                if decision.rollback:
                    back.append(i)
                elif decision.rewind:
                    rewound.append(i)
                if i in traces:
                    traces[i].append({**dict(decision.read), "lr": knobs.lr[i], "loss": observations[i].loss or 0.0,
                                      "Z": observations[i].network.log_norm})  # fmt: skip
            if back:
                population.restore(kept, torch.tensor(back))
                rollbacks += len(back)
            if rewound and best is not None:
                best.restore(torch.tensor(rewound))
            averages.restart(back + rewound)
            if scaled or back or rewound:
                measure.remeasure()
            if scaled and step == 0:  # as with the advisor: the run starts from the rescaled weights
                for i, seen in zip(members, measure.first(given), strict=True):
                    decision, states[i] = policies[i].decide(seen, policies[i].init())
                    knobs.take(i, decision)
        if shock is not None and step == population.steps // 2:
            shock(population, knobs.lr)
        lr = torch.tensor(knobs.lr)
        shrink = lr * torch.tensor(knobs.weight_decay)
        result = population.propose(step)
        for i in members:
            tau[i] += knobs.lr[i]
        if step % _SNAPSHOT_EVERY == 0 and bool(result.losses_B.isfinite().all()):
            kept = population.snapshot()
        fresh = step + 1 < _ALWAYS or (step + 1) % decide_every == 0
        if fresh:
            observations = measure.step(step, result, lr, shrink, tau, knobs.all())
            if validate_every and (step + 1) // validate_every > validated:
                validated = (step + 1) // validate_every
                shown = [(loss, step + 1) for loss in population.evaluate("validation").tolist()]
                if best is not None:
                    best.keep([loss for loss, _ in shown])
            if shown:
                observations = [
                    replace(seen, validation_loss=loss, validation_step=at)
                    for seen, (loss, at) in zip(observations, shown, strict=True)
                ]
        else:
            measure.skip(result, lr, shrink)
        averages.follow(step + 1)
        tick(step)
    averages.end()
    if best is not None:
        _last_word(population, policies, states, observations, best)
    return Outcome(
        population.evaluate("train").tolist(),
        population.evaluate("validation").tolist(),
        population.evaluate("test").tolist(),
        rollbacks,
        reasons,
        traces,
    )


def _last_word(
    population: Population, policies: Sequence[Policy[Any]], states: Sequence[Any], observations: Sequence[Observation],
    best: _Best,
) -> None:  # fmt: skip
    """Show the final weights' validation loss and obey a policy that goes back to better ones, as the advisor does."""
    losses = population.evaluate("validation").tolist()
    best.keep(losses)
    back = []
    for i, (policy, state, seen, loss) in enumerate(zip(policies, states, observations, losses, strict=True)):
        end = replace(seen, step=population.steps, validation_loss=loss, validation_step=population.steps)
        if policy.decide(end, state)[0].rewind:
            back.append(i)
    if back:
        best.restore(torch.tensor(back))


def _rescale(population: Population, member: int, decision: Decision) -> bool:
    """Obey ``init_scale`` (at step 0) and ``weight_scale``; return whether a weight changed."""
    scales = (decision.init_scale if decision.step == 0 else ()) + decision.weight_scale
    with torch.no_grad():
        for name, factor in scales:
            weight: Tensor = population.parameters[f"{name}.weight"]
            weight[member] *= factor
    return bool(scales)
