"""A what-if that is tried: some replicas take the first steps of a plan, and all is put back.

What the next ten steps do depends on where in the stiff directions the weights happen to stand, which no history of
norms tells (``docs/science.md``, section 6). A few replicas that take these steps, on batches of their own, do.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipadvisor.advisor import Advisor
from lipadvisor.apply import shrink
from lipadvisor.arguments import check_plan
from lipadvisor.forecast import Forecast, rehearsed, spread
from lipadvisor.probe.untouched import untouched
from lipadvisor.stage import Stage
from lipadvisor.terms import Array

__all__ = ["Rehearsal", "rehearse"]

_FEWEST = 2  # replicas: one has no spread, by which alone a loss that rose is told from a batch that was hard
_END = 5  # the last fifth of a replica's losses says how it ended


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What ``R`` replicas did in ``T`` steps of a plan.

    Attributes:
        forecast: under the plan, from the replicas' mean on; ``unstable`` where one of them was lost.
        change_RS: of each log-norm over the steps, nats: the layers, then the network; nan where it is not finite.
        loss_RT: before each step, as ``train_step`` returned it.
    """

    forecast: Forecast
    change_RS: Array
    loss_RT: Array


def rehearse(
    advisor: Advisor | Stage,
    train_step: Callable[[], Any],
    horizon: int,
    plan: Mapping[str, Any] | None = None,
    steps: int = 10,
    replicas: int = 4,
) -> Rehearsal:
    """Forecast under a plan whose first steps are tried: ``replicas * steps`` training steps, and nothing stays.

    Call it between two steps of the loop, after ``advisor.step``. Weights, buffers, gradients, optimizer, its knobs
    and all global generators are afterwards what they were, bit by bit. What else ``train_step`` moves stays moved:
    a loader, a learning-rate schedule, a gradient scaler. Weights and optimizer state take twice their memory.

    Args:
        advisor: of the training, or any :class:`~lipadvisor.stage.Stage` of one.
        train_step: takes one training step as the loop does, on a batch of its own: gradients from zero, backward,
            clipping if there is any, ``optimizer.step()``; without ``advisor.step``. Returns the loss.
        horizon: steps ahead, at least ``steps``.
        plan: future ``lr`` and ``weight_decay``, numbers or arrays of length ``horizon``, for every parameter group;
            what is left out goes on as in ``Advisor.forecast``. Where the policy owns the decay it is decoupled, on
            the matrices; else it is the optimizer's own.
        steps: of each replica. Ten make the next ten steps known; a destabilising plan may take fifty to show, and a
            loss that has leapt after ten may yet come down: then one plan in twelve that is sound is called unstable.
        replicas: at least 2; their mean counts: four halve the noise of one.

    Raises:
        TypeError: ``advisor`` is none.
        ValueError: an argument is out of range, ``train_step`` returns no number, takes no optimizer step or calls
            ``advisor.step``, or the training runs in several processes.
        RuntimeError: the advisor has not measured yet, is closed, or has given the knobs back after errors.
    """
    for name, value, least in (("steps", steps, 1), ("replicas", replicas, _FEWEST)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"rehearse({name}=...) must be an integer >= {least}, got {value!r}.")
    if not callable(train_step):
        raise ValueError(f"rehearse(train_step=...) must be a function that takes a training step, got {train_step!r}.")
    if isinstance(horizon, int) and horizon < steps:
        raise ValueError(f"rehearse(horizon=...) must be at least steps = {steps}, got {horizon!r}.")
    stage = _stage_of(advisor)
    made = stage.forecast(horizon, check_plan(horizon, plan))  # names what is wrong before anything is tried
    if not stage.measured:
        raise RuntimeError("rehearse() was called before the first measured step.")
    level_S, change_RS, loss_RT = _tried(stage, train_step, horizon, plan or {}, (replicas, steps))
    lost = _verdict(change_RS, loss_RT, stage.first_loss)
    sound_RS = change_RS[np.isfinite(change_RS).all(axis=1)]
    mean_S = level_S + (sound_RS.mean(axis=0) if len(sound_RS) else np.full(len(level_S), np.nan))
    levels = dict(zip((*made.layers, "*"), mean_S.tolist(), strict=True))
    return Rehearsal(rehearsed(made, levels, steps, lost), change_RS, loss_RT)


def _stage_of(advisor: Any) -> Stage:
    stage = advisor.stage() if isinstance(advisor, Advisor) else advisor
    if not isinstance(stage, Stage):
        raise TypeError(f"rehearse(advisor=...) must be an Advisor, got {type(advisor).__name__}.")
    if stage.processes > 1:
        raise ValueError(f"rehearse(advisor=...) must be of a training in one process, got one in {stage.processes}.")
    return stage


def _tried(
    stage: Stage, train_step: Callable[[], Any], horizon: int, plan: Mapping[str, Any], shape: tuple[int, int]
) -> tuple[Array, Array, Array]:
    """Return the levels, the replicas' changes and their losses; ``shape`` is ``(R, T)``."""
    knobs = _PlannedKnobs(stage, plan, horizon)
    loss_RT = np.empty(shape)
    with stage.cleared(knobs.before_update):
        start_S = stage.log_norms()
        change_RS = np.empty((shape[0], len(start_S)))
        with untouched(stage.model), _put_back(stage.model, stage.optimizer) as begin:
            for replica in range(shape[0]):
                begin()
                for step in range(shape[1]):
                    knobs.write(step)
                    loss_RT[replica, step] = _loss_of(train_step())
                if not knobs.updates:
                    raise ValueError("rehearse(train_step=...) must call optimizer.step(), and it took no step.")
                change_RS[replica] = stage.log_norms() - start_S
    return start_S, change_RS, loss_RT


def _loss_of(returned: Any) -> float:
    if isinstance(returned, Tensor) and returned.numel() == 1:
        return float(returned.detach())
    if isinstance(returned, (int, float, np.number)):
        return float(returned)
    raise ValueError(f"rehearse(train_step=...) must return the loss, a number, got {type(returned).__name__}.")


def _verdict(change_RS: Array, loss_RT: Array, first: float) -> str | None:
    """Return why a plan is not to be followed: a replica is not finite, or ends no better than the run began.

    Where the run stands about there still, an end within what batches differ by says nothing: it must then be above all
    of the replicas' losses before their first steps, by as much as these differ.
    """
    broken = int((~np.isfinite(change_RS).all(axis=1) | ~np.isfinite(loss_RT).all(axis=1)).sum())
    if broken:
        return f"{broken} of {len(loss_RT)} replicas are no longer finite"
    last = max(1, loss_RT.shape[1] // _END)
    before_R = loss_RT[:, 0]  # of the same weights, on batches of their own
    limit = max(first, 2.0 * float(before_R.max()) - float(before_R.min()))
    lost = int((loss_RT[:, -last:].mean(axis=1) >= limit).sum()) if first > 0.0 else 0
    return f"{lost} of {len(loss_RT)} replicas end no better than the run began" if lost else None


@contextmanager
def _put_back(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Callable[[], None]]:
    """Yield what puts a replica at the start; put everything back in the end."""
    own = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = list({id(p): p for p in (*model.parameters(), *own)}.values())
    values, gradients = [p.detach().clone() for p in parameters], [p.grad for p in parameters]
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(b, b.clone()) for b in model.buffers()]  # of the stand-ins
    groups = [
        {key: copy.deepcopy(v) for key, v in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    state = optimizer.state

    def restore() -> None:
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)
            for buffer, value in buffers:
                buffer.copy_(value)
        for group, kept in zip(optimizer.param_groups, groups, strict=True):
            for key, value in kept.items():
                if isinstance(group[key], Tensor):
                    group[key].copy_(value)  # a learning rate that a graph was captured with
                else:
                    group[key] = copy.deepcopy(value)
        for module, training in modes:
            module.training = training

    def begin() -> None:
        restore()
        for parameter in parameters:
            parameter.grad = None
        optimizer.state = defaultdict(dict, {p: copy.deepcopy(kept) for p, kept in state.items()})

    try:
        yield begin
    finally:
        restore()
        optimizer.state = state
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient


class _PlannedKnobs:
    """The knobs of a plan, step by step; a decay that is the policy's own shrinks the matrices, as the policy's does.

    Args:
        stage: of the training.
        plan: future ``lr`` and ``weight_decay``.
        horizon: steps that it is for.

    Attributes:
        updates: optimizer steps taken.
    """

    def __init__(self, stage: Stage, plan: Mapping[str, Any], horizon: int) -> None:
        self._groups, standing = stage.optimizer.param_groups, stage.knobs()
        self._lr_hG, self._shrink_hG = spread(plan, horizon, standing)
        self._own_G = standing.per_step_G
        self._spared: frozenset[int] = getattr(
            stage, "spared", frozenset()
        )  # parameters that no decay of the policy's acts on
        self._writes_lr, self._plans_decay = stage.steered or "lr" in plan, "weight_decay" in plan
        self._decay_h = np.broadcast_to(np.asarray(plan.get("weight_decay", 0.0), dtype=np.float64), horizon)
        self._step = self.updates = 0

    def write(self, step: int) -> None:
        """Write the knobs of step number ``step`` of the plan."""
        self._step = step
        for index, group in enumerate(self._groups):
            if self._writes_lr:
                _write(group, "lr", float(self._lr_hG[step, index]))
            if self._plans_decay and not self._own_G[index]:
                _write(group, "weight_decay", float(self._decay_h[step]))

    def before_update(self) -> None:
        """Let the decay act, between gradient and update."""
        self.updates += 1
        for index, group in enumerate(self._groups):
            if self._own_G[index]:
                shrink(group["params"], 1.0 - float(self._shrink_hG[self._step, index]), self._spared)


def _write(group: dict[str, Any], knob: str, value: float) -> None:
    if isinstance(group.get(knob), Tensor):
        group[knob].fill_(value)
    else:
        group[knob] = value
