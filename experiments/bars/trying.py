"""What ``lipadvisor.rehearse`` says of the plans of a branch point: some rehearsals of each, kept with their losses.

Whether it is right is seen from the replicas that went on to the last horizon (``what_if.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lipadvisor import rehearse
from lipadvisor.dynamics import coefficients
from lipadvisor.experiments.bars.recorded import INTERVAL
from lipadvisor.experiments.reproduce.images import Images
from lipadvisor.experiments.reproduce.norms import input_shapes
from lipadvisor.experiments.reproduce.run_log import RunLog
from lipadvisor.experiments.reproduce.training import Run
from lipadvisor.forecast import Forecast, Forecaster, Standing
from lipadvisor.policies import Status
from lipadvisor.probe import Probe
from lipadvisor.probe.exact_norms import exact_log_norms
from lipadvisor.terms import Array

__all__ = ["REPLICAS", "TRIALS", "Tried", "replayed", "shares", "tried"]

REPLICAS = 4  # of a rehearsal
TRIALS = {10: 4, 50: 2}  # steps of a rehearsal -> how many rehearsals of each plan


def replayed(log: RunLog) -> Forecaster:
    """Return a forecaster that has followed a run, and was told its loss."""
    first = next(log.terms())
    forecaster = Forecaster(first.names, first.composition_L, first.optimizer, first.momentum)
    for terms in log.terms():
        forecaster.update(terms, coefficients(terms), log.recent_loss(terms.step, INTERVAL))
    return forecaster


class _Stage:
    """The stage of a run without an advisor; decay takes its share off the matrices before each step."""

    steered, measured, processes = True, True, 1

    def __init__(self, done: Run, log: RunLog, images: Images, lr: float) -> None:
        self.model, self.optimizer, self._lr = done.model, done.optimizer, lr
        self._forecaster = replayed(log)
        self._layers = Probe(done.model, done.optimizer).layers
        self._shapes = dict(enumerate(input_shapes(done.model, self._layers, images.train_inputs[:2])))

    @property
    def first_loss(self) -> float:
        return self._forecaster.first_loss

    def knobs(self) -> Standing:
        return Standing(np.array([self._lr]), np.zeros(1), np.array([True]))

    def forecast(self, horizon: int, plan: Mapping[str, Any] | None = None) -> Forecast:
        return self._forecaster.forecast(horizon, plan)

    def log_norms(self) -> Array:
        return exact_log_norms(self._layers, self._shapes)

    @contextmanager
    def cleared(self, before_update: Callable[[], None]) -> Iterator[None]:
        handle = self.optimizer.register_step_pre_hook(lambda *_: before_update())
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True, slots=True)
class Tried:
    """One rehearsal of a plan.

    Attributes:
        steps: of it.
        lost: what its own verdict was, in words; empty where it found nothing.
        refused: whether the answer was "unstable", for that or for what the guard says.
    """

    steps: int
    lost: str
    refused: bool


def tried(
    done: Run,
    log: RunLog,
    images: Images,
    lr: float,
    batch_size: int,
    plans: Mapping[str, tuple[float, float]],
    trials: Mapping[int, int] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Rehearse every plan some times, from the end of a run.

    Args:
        done: the run.
        log: of it.
        images: what it trained on.
        lr: its learning rate.
        batch_size: samples of a batch.
        plans: name -> (factor on the learning rate, what decay takes off a weight per step).
        trials: steps of a rehearsal -> how many; ``None``: ``TRIALS``.

    Returns:
        Plan -> rehearsals, as fields of :class:`Tried`, with the replicas' losses before each step.
    """
    stage, generator = _Stage(done, log, images, lr), torch.Generator().manual_seed(len(log.loss_T))

    def step() -> Tensor:
        rows_M = torch.randperm(len(images.train_targets), generator=generator)[:batch_size]
        loss = functional.cross_entropy(done.model(images.train_inputs[rows_M]), images.train_targets[rows_M])
        done.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        done.optimizer.step()
        return loss

    found: dict[str, list[dict[str, Any]]] = {}
    for plan, (factor, shrink) in plans.items():
        knobs = {"lr": lr * factor, "weight_decay": shrink / (lr * factor)}
        found[plan] = []
        for steps, count in (TRIALS if trials is None else trials).items():
            for _ in range(count):
                one = rehearse(stage, step, steps, knobs, steps, REPLICAS)
                lost = [warning for warning in one.forecast.warnings if "rehearsed" in warning]
                refused = one.forecast.status is Status.UNSTABLE
                found[plan].append(
                    {"steps": steps, "lost": " ".join(lost), "refused": refused, "loss_RT": one.loss_RT.tolist()}
                )
    return found


def shares(cases: Sequence[tuple[bool, Sequence[Tried]]]) -> list[dict[str, float]]:
    """Return how often rehearsals call plans lost, by their number of steps.

    Args:
        cases: of each plan at each branch point whether it destabilised the run, and its rehearsals.

    Returns:
        For each number of steps: ``steps``; ``false``, the share of the rehearsals of healthy plans whose own verdict
        was that a replica is lost; ``hit``, the same of destabilising ones; ``refused`` of these, the guard's answer
        counted too; ``healthy`` and ``destabilising``, how many rehearsals there were. ``nan`` where there were none.
    """
    rows = []
    for steps in sorted({one.steps for _, own in cases for one in own}):
        of = {fell: [one for was, own in cases if was == fell for one in own if one.steps == steps] for fell in (0, 1)}
        rows.append(
            {
                "steps": float(steps),
                "false": _share([bool(one.lost) for one in of[0]]),
                "hit": _share([bool(one.lost) for one in of[1]]),
                "refused": _share([one.refused for one in of[1]]),
                "healthy": float(len(of[0])),
                "destabilising": float(len(of[1])),
            }
        )
    return rows


def _share(yes: Sequence[bool]) -> float:
    return float(np.mean(yes)) if yes else float("nan")
