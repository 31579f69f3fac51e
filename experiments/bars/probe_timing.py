"""How the cost of measuring is taken: interleaved steps in process CPU time, set-up, synchronisations."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lipadvisor.experiments.bars.probe_networks import Workload, deep_convolution, deep_linear
from lipadvisor.experiments.bars.probe_rivals import RIVALS, Step, rival_step
from lipadvisor.probe import Probe

__all__ = ["LEVELS", "default_share", "interleaved", "scaling"]

LEVELS = ("drift", "noise", "full")
_WARM = 9  # rounds that are not counted: cold starts, long first steps, first touch of memory
_SYNCS = ("item", "tolist", "cpu", "__float__", "__int__", "__bool__", "__index__", "nonzero")


def interleaved(workload: Workload, rounds: int, rival_rounds: int, seed: int) -> dict[str, Any]:
    """Return what a plain step and each kind of measured step cost, all taken in turn in one run.

    Every kind trains a copy of its own of the same network on the same batches; the order turns with the rounds.

    Args:
        workload: the network.
        rounds: counted ones.
        rival_rounds: of them, how many the other tools take part in, against a plain step of their own network.
        seed: of the network and the batches.
    """
    model = _drawn(workload.model, seed)
    kinds = {"plain": _step(workload, model, None)} | {level: _step(workload, model, level) for level in LEVELS}
    spent = _rounds(workload, kinds, rounds, seed)
    rival_model = model if workload.rival_model is None else _drawn(workload.rival_model, seed)
    rivals: dict[str, Step] = {"plain": _step(workload, rival_model, None)}
    absent = {}
    example = workload.batch(torch.Generator().manual_seed(seed))
    for name in RIVALS:
        step, reason = rival_step(name, rival_model, workload.optimizer, example)
        if step is None:
            absent[name] = reason
        else:
            rivals[name] = step
    rival_spent = _rounds(workload, rivals, rival_rounds, seed) if rival_rounds else {}
    return {"plain_ms": 1e3 * float(np.median(spent["plain"])), **_ratios(spent), **_ratios(rival_spent)} | {
        "absent": absent
    }


def default_share(workload: Workload, seconds: float, seed: int) -> dict[str, float]:
    """Return what default settings cost over a run of ``seconds``: its time over that of steps left alone.

    The run's own unmeasured steps are the plain ones.
    """
    model = _drawn(workload.model, seed)
    optimizer = workload.optimizer(model)
    generator = torch.Generator().manual_seed(seed)
    probe = Probe(model, optimizer)
    probe.trace(workload.batch(generator)[0])
    plain: list[float] = []
    measured: list[float] = []
    begun, number = time.process_time(), 0
    while time.process_time() - begun < seconds:
        x, y = workload.batch(generator)
        start = time.process_time()
        armed = _measured_step(model, optimizer, probe, number, x, y)
        (measured if armed else plain).append(time.process_time() - start)
        number += 1
    if not plain:
        return {"share": float("nan"), "own": probe.overhead, "measured": len(measured), "steps": number}
    extra = sum(measured) - len(measured) * float(np.median(plain))
    alone = sum(plain) + len(measured) * float(np.median(plain))
    return {"share": 1.0 + extra / alone, "own": probe.overhead, "measured": len(measured), "steps": number}


def scaling(layers: int, seed: int, kind: str = "matrices") -> dict[str, float]:
    """Return set-up time, s, and for a measured step its milliseconds and how often it waits for a device.

    Args:
        layers: number of them.
        seed: of weights and batch.
        kind: "matrices", or "convolutions" on maps of 8 x 8.
    """
    convolutions = kind == "convolutions"
    model = _drawn(lambda: (deep_convolution if convolutions else deep_linear)(layers), seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, *((8, 8, 8) if convolutions else (16,)), generator=generator)
    y = torch.randint(0, 10, (8,), generator=generator)
    start = time.process_time()
    probe = Probe(model, optimizer, interval=1, example_input=x)
    probe.spectrum()
    setup_s = time.process_time() - start
    counts, costs = [], []
    for number in range(4):
        with _Syncs() as syncs:
            start = time.process_time()
            _measured_step(model, optimizer, probe, number, x, y)
            costs.append(1e3 * (time.process_time() - start))
        counts.append(syncs.count)
    return {"setup_s": setup_s, "step_ms": float(np.median(costs)), "syncs": float(max(counts[1:]))}


class _Syncs(TorchFunctionMode):
    """Counts the calls that bring a tensor's value to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and go on."""
        self.count += getattr(func, "__name__", "") in _SYNCS
        return func(*args, **(kwargs or {}))


def _drawn(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return what ``make`` makes with torch's generator at ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _step(workload: Workload, model: nn.Module, level: str | None, renew_every: int = 1) -> Step:
    """Return a training step on a copy of ``model``, every one measured at ``level``."""
    own = copy.deepcopy(model)
    optimizer = workload.optimizer(own)
    if level is None:

        def plain(x: Tensor, y: Tensor) -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(own(x), y).backward()
            optimizer.step()

        return plain
    probe = Probe(own, optimizer, level=level, interval=1, renew_every=renew_every)
    number = itertools.count()

    def measured(x: Tensor, y: Tensor) -> None:
        _measured_step(own, optimizer, probe, next(number), x, y)

    return measured


def _measured_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, probe: Probe, number: int, x: Tensor, y: Tensor
) -> bool:
    armed = probe.arm(number)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    probe.before_update()
    optimizer.step()
    group = optimizer.param_groups[0]
    decay = group["weight_decay"] if isinstance(optimizer, torch.optim.AdamW) else 0.0
    probe.after_update({0: group["lr"]}, {0: decay})
    probe.collect(number)
    return armed


def _rounds(
    workload: Workload,
    kinds: dict[str, Step],
    rounds: int,
    seed: int,
    after_warm: Callable[[], None] = lambda: None,
) -> dict[str, np.ndarray[Any, Any]]:
    """Return process CPU seconds of every kind in every counted round; ``after_warm`` is called before the first."""
    generator = torch.Generator().manual_seed(seed)
    spent: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(_WARM + rounds):
        x, y = workload.batch(generator)
        if number == _WARM:
            after_warm()
        names = list(kinds)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.process_time()
            kinds[name](x, y)
            if number >= _WARM:
                spent[name].append(time.process_time() - start)
    return {name: np.array(values) for name, values in spent.items()}


def _ratios(spent: dict[str, np.ndarray[Any, Any]]) -> dict[str, dict[str, float]]:
    """Return for every kind but the plain one: ratio of medians, quartiles of single rounds' ratios, ms more."""
    found = {}
    for name, values in spent.items():
        if name == "plain":
            continue
        plain = spent["plain"]
        lower, upper = np.quantile(values / plain, [0.25, 0.75])
        extra_ms = 1e3 * float(np.median(values) - np.median(plain))
        ratio = float(np.median(values) / np.median(plain))
        found[name] = {"ratio": ratio, "lower": float(lower), "upper": float(upper), "extra_ms": extra_ms}
    return found
