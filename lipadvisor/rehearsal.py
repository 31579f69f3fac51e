"""A what-if that is tried: some replicas take the first steps of a plan, and all is put back.

What the next ten steps do depends on where in the stiff directions the weights happen to stand, which no history of
norms tells (``docs/science.md``, section 6). A few replicas that take these steps, on batches of their own, do.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipadvisor.advisor import Advisor
from lipadvisor.forecast import Forecast, rehearsed
from lipadvisor.probe import TrackedLayer
from lipadvisor.probe.untouched import untouched
from lipadvisor.spectra import cold_start, start_vectors
from lipadvisor.terms import Array

__all__ = ["Rehearsal", "rehearse"]

_RANK = 8  # vectors of a norm's subspace iteration
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
    advisor: Advisor,
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
        advisor: of the training.
        train_step: takes one training step as the loop does, on a batch of its own: gradients from zero, backward,
            clipping if there is any, ``optimizer.step()``; without ``advisor.step``. Returns the loss.
        horizon: steps ahead, at least ``steps``.
        plan: future ``lr`` and ``weight_decay``, numbers or arrays of length ``horizon``, for every parameter group;
            what is left out goes on as it is. Where the advisor owns the knobs decay is decoupled and its own.
        steps: of each replica. Ten make the next ten steps known; a destabilising plan may take fifty to show.
        replicas: their mean counts: four halve the noise of one.

    Raises:
        TypeError: ``advisor`` is none.
        ValueError: an argument is out of range, ``train_step`` returns no number, takes no optimizer step or calls
            ``advisor.step``, or the training runs in several processes.
        RuntimeError: the advisor has not measured yet, is closed, or has given the knobs back after errors.
    """
    if not isinstance(advisor, Advisor):
        raise TypeError(f"rehearse(advisor=...) must be an Advisor, got {type(advisor).__name__}.")
    for name, value in (("steps", steps), ("replicas", replicas)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"rehearse({name}=...) must be an integer >= 1, got {value!r}.")
    if not callable(train_step):
        raise ValueError(f"rehearse(train_step=...) must be a function that takes a training step, got {train_step!r}.")
    if isinstance(horizon, int) and horizon < steps:
        raise ValueError(f"rehearse(horizon=...) must be at least steps = {steps}, got {horizon!r}.")
    probe, line = advisor._probe, advisor._line
    if probe.ranks.size > 1:
        raise ValueError(f"rehearse() needs a training in one process, got one in {probe.ranks.size}.")
    if advisor._closed or advisor._gave_up:
        raise RuntimeError("rehearse() was called after the advisor was closed, or had given the knobs back.")
    advisor.forecast(horizon, plan)  # names what is wrong with the plan before anything is tried
    if line.prediction is None or line.prediction.measurements == 0:
        raise RuntimeError("rehearse() was called before the first measured step.")
    forecaster = line.prediction.forecaster
    made = forecaster.forecast(horizon, line.full_plan(plan or {}), max(line.step, forecaster.step))
    with probe.aside():
        level_S, change_RS, loss_RT = _tried(advisor, train_step, horizon, plan or {}, (replicas, steps))
    lost = _verdict(change_RS, loss_RT, forecaster.loss_level.first)
    sound_RS = change_RS[np.isfinite(change_RS).all(axis=1)]
    mean_S = level_S + (sound_RS.mean(axis=0) if len(sound_RS) else np.full(len(level_S), np.nan))
    levels = dict(zip((*forecaster.names, "*"), mean_S.tolist(), strict=True))
    return Rehearsal(rehearsed(made, levels, steps, lost), change_RS, loss_RT)


def _tried(
    advisor: Advisor, train_step: Callable[[], Any], horizon: int, plan: Mapping[str, Any], shape: tuple[int, int]
) -> tuple[Array, Array, Array]:
    """Return the levels, the replicas' changes and their losses; ``shape`` is ``(R, T)``."""
    probe, optimizer, model = advisor._probe, advisor._applier.optimizer, advisor._inspector.model
    shapes = probe._capture.input_shapes
    composition_L = np.array([layer.composition for layer in probe.layers])

    def levels() -> Array:
        level_L = np.array([_log_norm(layer, shapes.get(i)) for i, layer in enumerate(probe.layers)])
        return np.append(level_L, composition_L @ np.where(composition_L > 0.0, level_L, 0.0))

    start_S = levels()
    change_RS, loss_RT = np.empty((shape[0], len(start_S))), np.empty(shape)
    skipped, taken = advisor.skipped_steps, list[bool]()
    with untouched(model), _put_back(model, optimizer) as begin, _knobs(advisor, plan, horizon, taken) as at:
        for replica in range(shape[0]):
            begin()
            for step in range(shape[1]):
                at(step)
                loss_RT[replica, step] = _loss_of(train_step())
                if advisor.skipped_steps > skipped:
                    advisor.skipped_steps = skipped
                    raise ValueError("rehearse(train_step=...) must not call advisor.step, and it did.")
            if not taken:
                raise ValueError("rehearse(train_step=...) must call optimizer.step(), and it took no step.")
            change_RS[replica] = levels() - start_S
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


def _log_norm(layer: TrackedLayer, input_shape: tuple[int, ...] | None) -> float:
    """Return ln of the operator norm of a layer's weight, nats; nan where there is none."""
    operator = layer.operator(input_shape)
    kernel = layer.value().double()
    if operator is None or not bool(kernel.isfinite().all()):
        return math.nan
    generator = torch.Generator().manual_seed(0)
    block = cold_start(operator, kernel, start_vectors(operator, _RANK, kernel, generator), 1e-9)
    norm = float(block.s_R[0])
    return math.log(norm) if norm > 0.0 else math.nan


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


@contextmanager
def _knobs(
    advisor: Advisor, plan: Mapping[str, Any], horizon: int, taken: list[bool]
) -> Iterator[Callable[[int], None]]:
    """Keep the advisor's hands off the optimizer, and yield what sets the planned knobs of a step.

    Optimizer steps are noted in ``taken``.

    In takeover the planned decay shrinks the matrices as the advisor's own does; else it is the optimizer's.
    """
    optimizer, owned = advisor._applier.optimizer, advisor.mode == "takeover"
    lr_by_group, decay_by_group = advisor._applier.in_force()
    planned = {knob: np.broadcast_to(np.asarray(value, dtype=np.float64), horizon) for knob, value in plan.items()}
    factors: dict[int, float] = {}

    def at(step: int) -> None:
        for index, group in enumerate(optimizer.param_groups):
            decay = float(planned["weight_decay"][step]) if "weight_decay" in planned else decay_by_group[index]
            lr = float(planned["lr"][step]) if "lr" in planned else lr_by_group[index]
            if "lr" in planned or owned:
                _write(group, "lr", lr)
            if owned:
                factors[index] = 1.0 - lr * decay
            elif "weight_decay" in planned:
                _write(group, "weight_decay", decay)

    def before(*_: Any) -> None:
        taken[:] = [True]
        with torch.no_grad():
            for index, factor in factors.items():
                params = optimizer.param_groups[index]["params"]
                if factor != 1.0 and (matrices := [p for p in params if p.ndim >= 2 and p.grad is not None]):
                    torch._foreach_mul_(matrices, factor)

    hooks: tuple[dict[int, Any], ...] = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    kept = [dict(registered) for registered in hooks]
    own = (advisor._before_update, advisor._after_update)
    stand_ins = (before, lambda *_: None)
    try:
        for registered, hook, stand_in in zip(hooks, own, stand_ins, strict=True):
            for key, given in registered.items():
                if given == hook:
                    registered[key] = stand_in
        yield at
    finally:
        for registered, given in zip(hooks, kept, strict=True):
            registered.update(given)


def _write(group: dict[str, Any], knob: str, value: float) -> None:
    if isinstance(group.get(knob), Tensor):
        group[knob].fill_(value)
    else:
        group[knob] = value
