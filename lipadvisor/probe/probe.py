"""The probe: reads, at the steps it chooses, how an optimizer's update moves the norms of a model's layers.

How the parts combine::

    find_layers --> Pack (operator, warm-started blocks of like layers)      Budget: which steps
    arm(step) --> Capture (hooks) --> before_update --> [optimizer] --> after_update --> collect(step) --> Terms
                                       Pack.begin                      Pack.follow, respond, batch_noise

Measured quantities and their units are those of :class:`lipadvisor.terms.Terms`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipadvisor.probe import optimizers
from lipadvisor.probe.capture import Capture
from lipadvisor.probe.layers import Skipped, TrackedLayer, find_layers
from lipadvisor.probe.noise import LINEAR_SIGNS, Batch, NoiseImages, batch_noise, own_batch, sample_count
from lipadvisor.probe.pack import Pack, bound_row, make_packs
from lipadvisor.probe.record import Measured, noise_covariance, read, terms
from lipadvisor.probe.response import Pace, respond
from lipadvisor.probe.schedule import Budget
from lipadvisor.terms import Terms

__all__ = ["Probe"]

LEVELS = ("norms", "drift", "full")
SMALL_STEP = 1e-4  # relative update below which the difference of float32 weights has lost its last digits


class Probe:
    """Measures a model while it trains, without changing anything it computes."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        level: str = "full",
        max_overhead: float = 0.03,
        interval: int | None = None,
        include: Iterable[str] = ("*",),
        exclude: Iterable[str] = (),
        seed: int = 0,
        example_input: Any = None,
    ) -> None:
        """Find the layers to measure.

        Args:
            model: any module with ``nn.Linear`` or ``nn.Conv2d`` layers (``probe.skipped`` lists what is left out).
            optimizer: holds the weights of the model.
            level: "norms" (spectrum), "drift" (and the update's effect), or "full" (and gradient noise).
            max_overhead: share of the run's time that measuring may take, in (0, 1]; ignored with ``interval``.
            interval: measure every that many steps, >= 1; None follows ``max_overhead``.
            include: globs over module names, one of which must match.
            exclude: globs over module names, none of which may match.
            seed: of the probe's own generator.
            example_input: one batch, to learn the convolutions' input sizes before the first training step; passed to
                the model without gradients and in eval mode (a tuple as positional arguments).

        Raises:
            ValueError: an argument is out of range, the optimizer does not hold the model's parameters, or the model
                has no supported layer.
        """
        if level not in LEVELS:
            raise ValueError(f"Probe(level=...) must be one of {LEVELS}, got {level!r}.")
        if not 0.0 < max_overhead <= 1.0:
            raise ValueError(f"Probe(max_overhead=...) must be in (0, 1], got {max_overhead!r}.")
        if interval is not None and (isinstance(interval, bool) or not isinstance(interval, int) or interval < 1):
            raise ValueError(f"Probe(interval=...) must be an integer >= 1 or None, got {interval!r}.")
        self.level = level
        self.layers: tuple[TrackedLayer, ...]
        self.skipped: tuple[Skipped, ...]
        self.layers, self.skipped = find_layers(model, optimizer, tuple(include), tuple(exclude))
        self._model = model
        self._optimizer = optimizer
        self._generator = torch.Generator().manual_seed(seed)
        self._packs = make_packs(self.layers, self._generator)
        order = [index for pack in self._packs for index in pack.indices]
        self._place_L = [order.index(index) for index in range(len(order))]  # rows of the packs in the layers' order
        self._capture = Capture(self.layers, keep=level == "full")
        self._budget = Budget(max_overhead, interval)
        self._updates = 0  # optimizer steps seen
        self._ratio_L = [float("inf")] * len(self.layers)  # last relative update per unit of lr
        self._width_L = [1.0] * len(self.layers)  # 1 - s_R / s_1: relative width of the tracked block
        self._armed: int | None = None
        self._armed_at = 0.0
        self._spent_s = 0.0
        self._values_LC: Tensor | None = None
        self._noise_LL: Tensor | None = None
        self._knobs: tuple[tuple[float, float], ...] = ()
        self._samples = 0
        self._unsettled: tuple[bool, ...] = ()
        if example_input is not None:
            self._trace(model, example_input if isinstance(example_input, tuple) else (example_input,), {})

    @property
    def overhead(self) -> float:
        """Share of the run's time spent on measuring so far, in [0, 1]."""
        return self._budget.overhead

    def spectrum(self) -> Terms:
        """Return the norms of the weights as they are now; everything that needs a step is nan."""
        for pack in self._packs:
            pack.new = None
        unsettled = self._begin()
        with torch.no_grad():
            values_LC = self._in_order([self._row(pack, before=True) for pack in self._packs])
        readings = read(values_LC, None)
        knobs = tuple((float(self._optimizer.param_groups[layer.group]["lr"]), 0.0) for layer in self.layers)
        self._keep(readings.columns["s_1"])
        self._note_width(readings.columns["s_1"], readings.columns["s_last"])
        measured = Measured(self._updates, "norms", knobs, 0, unsettled, 0.0, 0.0, 1)
        return terms(readings, self.layers, self._optimizer, self._updates, measured)

    def arm(self, step: int) -> bool:
        """Say whether optimizer step number ``step`` (0-based) is to be measured, and put the hooks in if so."""
        self._armed_at = time.perf_counter()
        self._spent_s = 0.0
        self._values_LC, self._noise_LL, self._samples = None, None, 0
        self._armed = step if self._budget.due(step) else None
        if self._armed is None:
            return False
        self._capture.spent_s = 0.0
        if self.level == "full" or any(pack.operator is None for pack in self._packs):
            self._capture.attach()
        else:
            self._capture.clear()
        self._spent_s += time.perf_counter() - self._armed_at
        return True

    def before_update(self) -> None:
        """Read the weights before the optimizer acts: gradients are there, hooks have fired."""
        if self._armed is None:
            return
        started = time.perf_counter()
        self._capture.detach()
        self._unsettled = self._begin()
        self._spent_s += time.perf_counter() - started

    def after_update(self, lr_by_group: Mapping[int, float], weight_decay_by_group: Mapping[int, float]) -> None:
        """Read what the optimizer did.

        Args:
            lr_by_group: learning rate in force in this step, for each parameter group.
            weight_decay_by_group: decoupled weight decay in force, per unit of tau: ``W *= 1 - lr * weight_decay``.
        """
        self._updates += 1
        if self._armed is None:
            return
        started = time.perf_counter()
        self._knobs = tuple(
            (float(lr_by_group.get(layer.group, 0.0)), float(weight_decay_by_group.get(layer.group, 0.0)))
            for layer in self.layers
        )
        with torch.no_grad():
            self._measure()
        self._spent_s += time.perf_counter() - started

    def collect(self, step: int) -> Terms | None:
        """Return what step number ``step`` gave, in one device synchronisation; None if it was not measured."""
        started = time.perf_counter()
        values_LC = self._values_LC if self._armed == step else None
        readings = None if values_LC is None else read(values_LC, self._noise_LL)
        self._capture.detach()
        self._capture.clear()
        now = time.perf_counter()
        measure_s = self._spent_s + self._capture.spent_s + now - started if self._armed is not None else 0.0
        step_s = now - self._armed_at
        wait = self._budget.spend(step, step_s, measure_s, readings is not None)
        self._armed, self._values_LC = None, None
        self._capture.spent_s = 0.0
        if readings is None:
            return None
        self._note(readings.columns)
        measured = Measured(
            step, self.level, self._knobs, self._samples, self._unsettled, measure_s, step_s, max(wait, 1)
        )
        return terms(readings, self.layers, self._optimizer, self._updates, measured)

    def trace(self, *arguments: Any, **keywords: Any) -> None:
        """Learn the convolutions' input sizes from a batch, as ``example_input`` does: ``model(*arguments)``."""
        if any(pack.operator is None for pack in self._packs):
            self._trace(self._model, arguments, keywords)

    def charge(self, seconds: float) -> None:
        """Count ``seconds`` that the caller spent on acting on a measurement as part of its cost."""
        self._budget.charge(seconds)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let the model be run for other ends: nothing is captured, and the time is measuring's, not the step's."""
        begun = time.perf_counter()
        with self._capture.paused():
            yield
        spent_s = time.perf_counter() - begun
        self._armed_at += spent_s
        self.charge(spent_s)

    def close(self) -> None:
        """Take the hooks out and forget what was captured."""
        self._capture.detach()
        self._capture.clear()
        self._armed, self._values_LC = None, None

    # --- what happens inside -------------------------------------------------------------------------------------

    def _trace(self, model: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        """Learn the input sizes from a forward pass that leaves modes, buffers and generators as they are."""
        modes = [(module, module.training) for module in model.modules()]
        sizes = Capture(self.layers, keep=False)
        devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
        try:
            sizes.attach()
            model.eval()
            with torch.no_grad(), torch.random.fork_rng(devices=devices):
                model(*arguments, **keywords)
        finally:
            sizes.detach()
            for module, training in modes:
                module.training = training
        self._capture.input_shapes.update(sizes.input_shapes)

    def _begin(self) -> tuple[bool, ...]:
        """Bring every block up to the present weights; return which layers have no operator yet."""
        unsettled = [False] * len(self.layers)
        with torch.no_grad():
            for pack in self._packs:
                if pack.settle(self._capture.input_shapes.get(pack.indices[0])):
                    pack.begin(4)
                else:
                    unsettled[pack.indices[0]] = True
        return tuple(unsettled)

    def _measure(self) -> None:
        """Fill the values of this step, and the covariance of its noise."""
        for pack in self._packs:
            if pack.old is not None:
                pack.follow(self._degree(pack))
        tables = [[self._row(pack, before=True), self._row(pack, before=False)] for pack in self._packs]
        if self.level != "norms":
            noises, scalars = self._noises() if self.level == "full" else ([None] * len(self._packs), [])
            for pack, table, noise in zip(self._packs, tables, noises, strict=True):
                if pack.old is None:
                    table.append(table[0].new_full((len(pack.layers), 5), float("nan")))
                else:
                    direction = self._direction(pack)
                    table.append(respond(pack, direction, self._length(pack), self._pace(pack), noise))
            if self._samples:
                self._noise_LL = noise_covariance(scalars, self._samples)
        self._values_LC = self._in_order([torch.cat(table, dim=1) for table in tables])

    def _row(self, pack: Pack, before: bool) -> Tensor:
        """Return the spectrum of a pack's weights before or after the step (l, 5)."""
        state = pack.old if before else pack.new
        return bound_row(pack.layers[0].weight.detach()) if state is None else state.row_lC

    def _in_order(self, tables: Sequence[Tensor]) -> Tensor:
        """Return the packs' rows as one table in the layers' order."""
        if len(tables) == 1:
            return tables[0]
        place_L = torch.tensor(self._place_L).to(tables[0].device, non_blocking=True)
        return torch.cat([table.to(tables[0]) for table in tables])[place_L]

    def _noises(self) -> tuple[list[NoiseImages | None], list[Tensor | None]]:
        """Return what the batch's noise does to each pack, and the per-sample scalars of each layer."""
        batches: list[Batch | None] = []
        for index in range(len(self.layers)):
            batches.append(self._capture.batch(index))
        self._samples = min((sample_count(batch) for batch in batches if batch is not None), default=0)
        noises: list[NoiseImages | None] = [None] * len(self._packs)
        scalars: list[Tensor | None] = [None] * len(self.layers)
        if not self._samples:
            return noises, scalars
        signs_KB = torch.randint(0, 2, (LINEAR_SIGNS, self._samples), generator=self._generator) * 2.0 - 1.0
        for number, pack in enumerate(self._packs):
            if pack.old is None:
                continue
            own = [own_batch(pack, place, batches[index], self._samples) for place, index in enumerate(pack.indices)]
            signs_KB = signs_KB.to(pack.old.kernel, non_blocking=True)
            noise = batch_noise(pack, own, optimizers.preconditioner(self._optimizer, pack), signs_KB)
            noises[number] = noise
            for index, scalar_B in zip(pack.indices, noise.scalars, strict=True):
                scalars[index] = scalar_B
        return noises, scalars

    def _direction(self, pack: Pack) -> Tensor:
        """Return U: from the weights, or from the optimizer's state where the step is lost in rounding."""
        assert pack.old is not None
        assert pack.new is not None
        knobs = [self._knobs[index] for index in pack.indices]
        inverse = self._factor(pack, [1.0 / lr if lr > 0 else 0.0 for lr, _ in knobs])
        kept = self._factor(pack, [1.0 - lr * weight_decay for lr, weight_decay in knobs])
        moved = pack.new.kernel - pack.old.kernel if kept == 1.0 else pack.new.kernel - pack.old.kernel * kept
        direction = moved * inverse
        for place, (index, (lr, _)) in enumerate(zip(pack.indices, knobs, strict=True)):
            ratio = self._ratio_L[index]
            if lr * (1.0 if math.isinf(ratio) else ratio) < SMALL_STEP:
                layer = pack.layers[place]
                known = optimizers.known_direction(self._optimizer, layer.weight, layer.group)
                if known is not None:
                    pack.put(direction, place, known)
        return direction

    def _length(self, pack: Pack) -> float | Tensor:
        """Return how far along U the weights go, decay apart: W' = (1 - lr wd) (W + lr U / (1 - lr wd))."""
        knobs = [self._knobs[index] for index in pack.indices]
        return self._factor(pack, [lr / (1.0 - lr * weight_decay) for lr, weight_decay in knobs])

    def _factor(self, pack: Pack, values: list[float]) -> float | Tensor:
        """Return numbers of a pack's layers as what multiplies its kernels: one number if they are the same."""
        if len(set(values)) == 1:
            return values[0]
        assert pack.old is not None
        kernel = pack.old.kernel
        return torch.tensor(values, dtype=kernel.dtype).to(kernel.device, non_blocking=True).reshape(-1, 1, 1)

    def _relative(self, pack: Pack) -> float:
        """Return the largest relative step of a pack's layers, judged by the last update's size."""
        steps = (self._knobs[index][0] * self._ratio_L[index] for index in pack.indices)
        return max(step if math.isfinite(step) else 0.05 for step in steps)

    def _degree(self, pack: Pack) -> int:
        """Return the degree of the refresh's filter: small steps need little."""
        return 2 if self._relative(pack) < 0.03 else 4

    def _pace(self, pack: Pack) -> Pace:
        """Return how to cut up the step: each stretch must be short for the width of the tracked block."""
        width = min(self._width_L[index] for index in pack.indices)
        lr = max(self._knobs[index][0] for index in pack.indices)
        return Pace(lr, min(max(0.4 * width, 0.01), 0.08), self._relative(pack))

    def _note(self, columns: Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]) -> None:
        """Carry what was read to the next measurement; layers that are not sound keep their last good vectors."""
        self._keep(columns["s_1_after"] * np.isfinite(columns["sum_squares"]))
        self._note_width(columns["s_1_after"], columns["s_last_after"])
        if self.level == "norms":
            return
        for pack in self._packs:
            bad = [index for index in pack.indices if not np.isfinite(columns["update_ratio"][index])]
            for index in pack.indices:
                if index not in bad:
                    self._ratio_L[index] = float(columns["update_ratio"][index])
            if bad and pack.update_KN is not None:
                pack.update_KN = torch.ones_like(pack.update_KN)

    def _keep(self, s_L: np.ndarray[Any, np.dtype[np.float64]]) -> None:
        sound_L = np.isfinite(s_L) & (s_L > 0)
        for pack in self._packs:
            pack.keep([bool(sound_L[index]) for index in pack.indices])

    def _note_width(self, s_L: np.ndarray[Any, Any], last_L: np.ndarray[Any, Any]) -> None:
        for pack in self._packs:
            complete = pack.old is not None and pack.old.block.complete
            for index in pack.indices:
                if s_L[index] > 0 and np.isfinite(last_L[index]):
                    self._width_L[index] = 1.0 if complete else float(1.0 - last_L[index] / s_L[index])

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to measure the same: tensors, numbers and strings only."""
        return {
            "names": [layer.name for layer in self.layers],
            "vectors": [None if pack.start_RN is None else pack.start_RN.clone() for pack in self._packs],
            "update_vectors": [None if pack.update_KN is None else pack.update_KN.clone() for pack in self._packs],
            "blocks": [pack.standing() for pack in self._packs],
            "input_shapes": {index: list(shape) for index, shape in self._capture.input_shapes.items()},
            "ratios": list(self._ratio_L),
            "widths": list(self._width_L),
            "updates": self._updates,
            "generator": self._generator.get_state(),
            "budget": self._budget.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`. Load the model's own state first.

        Raises:
            ValueError: the state is of other layers.
        """
        names = [layer.name for layer in self.layers]
        if list(state["names"]) != names:
            raise ValueError(f"Probe.load_state_dict(state) must be of the layers {names}, got {list(state['names'])}.")
        self._capture.input_shapes = {int(i): tuple(shape) for i, shape in state["input_shapes"].items()}
        for number, pack in enumerate(self._packs):
            pack.operator = pack.make_operator(self._capture.input_shapes.get(pack.indices[0]))
            like = pack.kernel()
            start, update = state["vectors"][number], state["update_vectors"][number]
            pack.start_RN = None if start is None else start.to(like, copy=True)
            pack.update_KN = None if update is None else update.to(like, copy=True)
            pack.stand(state["blocks"][number])
        self._ratio_L = [float(r) for r in state["ratios"]]
        self._width_L = [float(w) for w in state["widths"]]
        self._updates = int(state["updates"])
        self._generator.set_state(state["generator"].cpu())
        self._budget.load_state_dict(state["budget"])
