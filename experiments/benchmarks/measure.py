"""What a policy is shown, for B members at once: the same fields as the probe gives, measured in batches.

Norms and the response ``a(U) = u' U v / s`` come from warm-started power iteration on the true operators. The
finite-step rate is what the realised change of ``ln s`` leaves after drift and decay. The diffusion is estimated from
successive differences of the drift, which needs no per-sample gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipadvisor.experiments.benchmarks.operators import Operator, Pair, find_operators, refresh
from lipadvisor.experiments.benchmarks.population import Population, StepResult
from lipadvisor.experiments.benchmarks.updates import Stack
from lipadvisor.plain_chain import is_plain_chain
from lipadvisor.policies import Knobs, Layer, Observation, Status

__all__ = ["Measure", "WiderObservation"]

_COLD, _WARM = 60, 2  # power iterations at the start, and at each step
_SMOOTHING = 0.9  # of the drift's successive differences
_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class WiderObservation(Observation):
    """An observation with candidates for signals that the contract does not have (yet)."""

    descent: float = 0.0  # -<g, U>: fall of the batch loss per unit of tau, to first order
    function_rate: float = 0.0  # rms change of the centred outputs per unit of tau, over std(y) for regression


class Measure:
    """Follows the top singular triples of a population's weights and of its updates.

    Args:
        population: the members.
        total_steps: horizon that the policies are told; ``None`` for unknown.
        function_every: steps between measurements of the function's change (one more forward each); 0 for never.
    """

    def __init__(self, population: Population, total_steps: int | None, function_every: int = 0) -> None:
        self.population, self.total_steps, self.function_every = population, total_steps, function_every
        self.operators: tuple[Operator, ...] = find_operators(population)
        generator = torch.Generator().manual_seed(1)
        members = len(population)
        self._weights: list[Pair] = []
        self._updates: list[Tensor] = []
        for operator in self.operators:
            start = torch.randn(members, operator.inputs, generator=generator)
            self._weights.append(refresh(operator, population.parameters[operator.key], start, _COLD))
            self._updates.append(torch.randn(members, operator.inputs, generator=generator))
        self._stale = False
        self._drift_before: Tensor | None = None
        self._variance_LB = torch.zeros(len(self.operators), members)
        self._variance_B = torch.zeros(members)
        self._function_B = torch.zeros(members)
        self._function_step = 0
        self._targets_std = float(population.data.train.targets.std()) if population.task.loss_kind == "mse" else 1.0

    def remeasure(self) -> None:
        """Refresh the weights' triples after a change from outside (a rescaled initialization)."""
        self._follow(4 * _WARM)

    def skip(self, result: StepResult, lr_B: Tensor, shrink_B: Tensor) -> None:
        """Move the population by ``result`` without measuring."""
        self.population.move(result.directions, lr_B, shrink_B)
        self._stale = True

    def _follow(self, iterations: int) -> None:
        for index, operator in enumerate(self.operators):
            weight = self.population.parameters[operator.key]
            self._weights[index] = refresh(operator, weight, self._weights[index].v, iterations)
        self._stale = False

    def first(self, knobs_B: Sequence[Knobs]) -> list[Observation]:
        """Return the observations before step 0."""
        norms = torch.stack([pair.s for pair in self._weights]).clamp_min(_TINY).log()
        gains = self._gains()
        table = torch.stack((norms, gains)).double().tolist()
        kind = "chain" if is_plain_chain(self.population.template) else "network"
        return [
            WiderObservation(
                step=0,
                total_steps=self.total_steps,
                tau=0.0,
                optimizer=self.population.update.name,
                momentum=self.population.update.momentum,
                knobs=(knobs_B[b],),
                network=Layer("*", kind, (), -1, 1.0, sum(r[b] for r in table[0]), 0.0, 0.0,
                              status=Status.NOT_MEASURED),
                layers=tuple(
                    Layer(op.name, op.kind, op.shape, 0, 1.0, table[0][k][b], 0.0, table[1][k][b],
                          status=Status.NOT_MEASURED)
                    for k, op in enumerate(self.operators)
                ),
                status=Status.NOT_MEASURED,
            )
            for b in range(len(self.population))
        ]  # fmt: skip

    def step(
        self, number: int, result: StepResult, lr_B: Tensor, shrink_B: Tensor, tau_B: Sequence[float],
        knobs_B: Sequence[Knobs],
    ) -> list[Observation]:  # fmt: skip
        """Move the population by ``result`` and return the observations after step ``number``."""
        if self._stale:
            self._follow(2 * _WARM)
        first_LB, ratio_LB = self._respond(result.directions)
        frobenius_LB, row_LB = self._compare(result.directions)
        before_LB = torch.stack([pair.s for pair in self._weights]).clamp_min(_TINY).log()
        self.population.move(result.directions, lr_B, shrink_B)
        self._follow(_WARM)
        after_LB = torch.stack([pair.s for pair in self._weights]).clamp_min(_TINY).log()
        lr_B = lr_B.clamp_min(_TINY)
        decay_B = torch.log1p(-shrink_B) / lr_B
        finite_LB = (after_LB - before_LB) / lr_B - decay_B - first_LB
        self._learn_noise(first_LB)
        products = [(result.gradients[key] * U).flatten(1).sum(1) for key, U in result.directions.items()]
        descent_B = -torch.stack(products).sum(0)
        if self.function_every and (number < 5 or number - self._function_step >= self.function_every):
            self._function_step = number
            self._measure_function(result, lr_B)
        layers = torch.stack(
            (after_LB, self._gains(), first_LB, (lr_B * self._variance_LB).sqrt(), finite_LB, ratio_LB,
             frobenius_LB, row_LB)
        )  # fmt: skip
        members = torch.stack(
            (after_LB.sum(0), first_LB.sum(0), (lr_B * self._variance_B).sqrt(), finite_LB.sum(0), decay_B,
             result.losses_B, descent_B, self._function_B)
        )  # fmt: skip
        return self._write(number + 1, layers.double().permute(2, 1, 0).tolist(), members.double().T.tolist(),
                           tau_B, knobs_B)  # fmt: skip

    def _write(
        self, step: int, layers_BLF: list[list[list[float]]], members_BF: list[list[float]], tau_B: Sequence[float],
        knobs_B: Sequence[Knobs],
    ) -> list[Observation]:  # fmt: skip
        update = self.population.update
        seen: list[Observation] = []
        for rows, (z, drift, diffusion, finite, decay, loss, descent, function), tau, knobs in zip(
            layers_BLF, members_BF, tau_B, knobs_B, strict=True
        ):
            status = Status.OK if math.isfinite(z) else Status.NON_FINITE
            layers = tuple(
                Layer(op.name, op.kind, op.shape, 0, 1.0, r[0], 0.5, r[1], r[2], r[3], 0.0, r[4], decay, r[5], status,
                      r[6], r[7])
                for op, r in zip(self.operators, rows, strict=True)
            )  # fmt: skip
            largest, whole, row = (max(r[k] for r in rows) for k in (5, 6, 7))
            network = Layer("*", "network", (), -1, 1.0, z, 0.5, 0.0, drift, diffusion, 0.0, finite, decay, largest,
                            status, whole, row)  # fmt: skip
            overall = status if math.isfinite(loss) else Status.NON_FINITE
            seen.append(
                WiderObservation(
                    step, self.total_steps, tau, update.name, update.momentum, (knobs,), network, layers, (), loss,
                    None, None, step - 1, 0.0, overall, descent, function,
                )
            )  # fmt: skip
        return seen

    def _respond(self, directions: Stack) -> tuple[Tensor, Tensor]:
        """Return ``a(U)`` and ``s_1(U) / s_1(W)``, both (L, B)."""
        first, ratio = [], []
        for index, operator in enumerate(self.operators):
            pair, direction = self._weights[index], directions[operator.key]
            s = pair.s.clamp_min(_TINY)
            first.append((pair.u * operator.apply(direction, pair.v)).sum(1) / s)
            moved = refresh(operator, direction, self._updates[index], 2 * _WARM if operator.kind == "linear" else 3)
            self._updates[index] = torch.where(moved.s[:, None] > 0, moved.v, self._updates[index])
            ratio.append(moved.s / s)
        return torch.stack(first), torch.stack(ratio)

    def _compare(self, directions: Stack) -> tuple[Tensor, Tensor]:
        """Return ``|U|_F / |W|_F`` and the largest norm of a row of ``U`` over that of a row of ``W``, both (L, B)."""
        whole, rows = [], []
        for operator in self.operators:
            pair = (directions[operator.key], self.population.parameters[operator.key])
            moved, weight = (torch.linalg.vector_norm(x.flatten(2), dim=2) for x in pair)
            whole.append(moved.norm(dim=1) / weight.norm(dim=1).clamp_min(_TINY))
            rows.append(moved.amax(1) / weight.amax(1).clamp_min(_TINY))
        return torch.stack(whole), torch.stack(rows)

    def _gains(self) -> Tensor:
        """Return ``ln( rms(W) sqrt(fan_in) )``, (L, B)."""
        return torch.stack(
            [
                (self.population.parameters[op.key].flatten(1).pow(2).mean(1) * op.shape[1]).clamp_min(_TINY).log() / 2
                for op in self.operators
            ]
        )

    def _learn_noise(self, first_LB: Tensor) -> None:
        """Half the mean squared successive difference: unbiased whatever the trend."""
        if self._drift_before is not None:
            apart = first_LB - self._drift_before
            self._variance_LB.lerp_(0.5 * apart.square(), 1.0 - _SMOOTHING)
            self._variance_B.lerp_(0.5 * apart.sum(0).square(), 1.0 - _SMOOTHING)
        self._drift_before = first_LB

    def _measure_function(self, result: StepResult, lr_B: Tensor) -> None:
        outputs = self.population.outputs(result.inputs)
        change = outputs - result.outputs
        if self.population.task.loss_kind == "cross_entropy":
            change = change - change.mean(-1, keepdim=True)
        self._function_B = change.flatten(1).square().mean(1).sqrt() / (lr_B * self._targets_std)
