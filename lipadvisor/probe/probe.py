"""The probe: reads, at the steps it chooses, how an optimizer's update moves the norms of a model's layers.

How the parts combine::

    find_layers --> LayerTracker (operator, warm-started block)      Budget: which steps
    arm(step) --> Capture (hooks) --> before_update --> [optimizer] --> after_update --> collect(step) --> Terms

Measured quantities and their units are those of :class:`lipadvisor.terms.Terms`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipadvisor.probe import optimizers
from lipadvisor.probe.capture import Capture
from lipadvisor.probe.layers import Skipped, TrackedLayer, find_layers
from lipadvisor.probe.noise import NoiseImages, is_exact, layer_noise
from lipadvisor.probe.record import COLUMNS, Readings, noise_covariance, read, statuses
from lipadvisor.probe.schedule import Budget
from lipadvisor.probe.tracker import LayerTracker
from lipadvisor.terms import Terms

__all__ = ["Probe"]

LEVELS = ("norms", "drift", "full")
NEEDED = {
    "norms": ("s_1", "sum_squares"),
    "drift": ("s_1", "sum_squares", "first", "curvature", "change", "update_ratio"),
    "full": ("s_1", "sum_squares", "first", "curvature", "change", "update_ratio", "noise_curvature"),
}
RANK = 6
DEGREE = 4
SIGNS = 2
STRETCH = 0.03  # relative update up to which a step is predicted in one go
MAX_STRETCHES = 16
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
        self._trackers = [LayerTracker(layer, RANK, self._generator) for layer in self.layers]
        self._capture = Capture([layer.module for layer in self.layers], keep=level == "full")
        self._budget = Budget(max_overhead, interval)
        self._updates = 0  # optimizer steps seen
        self._ratio_L = [float("inf")] * len(self.layers)  # last relative update per unit of lr
        self._armed: int | None = None
        self._armed_at = 0.0
        self._spent_s = 0.0
        self._values_LC: Tensor | None = None
        self._noise_LL: Tensor | None = None
        self._knobs: tuple[tuple[float, float], ...] = ()
        self._samples = 0
        if example_input is not None:
            self._trace(model, example_input if isinstance(example_input, tuple) else (example_input,), {})

    @property
    def overhead(self) -> float:
        """Share of the run's time spent on measuring so far, in [0, 1]."""
        return self._budget.overhead

    def spectrum(self) -> Terms:
        """Return the norms of the weights as they are now; everything that needs a step is nan."""
        unsettled = self._refresh(keep_vectors=True)
        with torch.no_grad():
            values_LC = _columns(torch.stack([self._spectrum_row(i) for i in range(len(self.layers))]))
        knobs = tuple((float(self._optimizer.param_groups[layer.group]["lr"]), 0.0) for layer in self.layers)
        return self._terms(read(values_LC, None), self._updates, "norms", knobs, 0, unsettled, 0.0, 0.0, 1)

    def arm(self, step: int) -> bool:
        """Say whether optimizer step number ``step`` (0-based) is to be measured, and put the hooks in if so."""
        self._armed_at = time.perf_counter()
        self._spent_s = 0.0
        self._values_LC, self._noise_LL = None, None
        self._armed = step if self._budget.due(step) else None
        if self._armed is None:
            return False
        self._capture.spent_s = 0.0
        if self.level == "full" or any(tracker.operator is None for tracker in self._trackers):
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
        self._unsettled = self._refresh(keep_vectors=False)
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
        self._keep_vectors(readings)
        return self._terms(
            readings, step, self.level, self._knobs, self._samples, self._unsettled, measure_s, step_s, wait
        )

    def trace(self, *arguments: Any, **keywords: Any) -> None:
        """Learn the convolutions' input sizes from a batch, as ``example_input`` does: ``model(*arguments)``."""
        if any(tracker.operator is None for tracker in self._trackers):
            self._trace(self._model, arguments, keywords)

    def charge(self, seconds: float) -> None:
        """Count ``seconds`` that the caller spent on acting on a measurement as part of its cost."""
        self._budget.charge(seconds)

    def close(self) -> None:
        """Take the hooks out and forget what was captured."""
        self._capture.detach()
        self._capture.clear()
        self._armed, self._values_LC = None, None

    # --- what happens inside -------------------------------------------------------------------------------------

    def _trace(self, model: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        """Learn the input sizes from a forward pass that leaves modes, buffers and generators as they are."""
        modes = [(module, module.training) for module in model.modules()]
        sizes = Capture(self._capture.modules, keep=False)
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

    def _refresh(self, keep_vectors: bool) -> tuple[bool, ...]:
        """Bring every block up to the present weights; return which layers have no operator yet."""
        unsettled = []
        with torch.no_grad():
            for index, tracker in enumerate(self._trackers):
                settled = tracker.settle(self._capture.input_shapes.get(index))
                unsettled.append(not settled)
                if settled:
                    block = tracker.refresh(DEGREE)
                    if keep_vectors:
                        tracker.v_RN = block.v_RN
                        tracker.new, tracker.new_block = tracker.old, block
                        tracker.new_version = tracker.layer.weight._version
        return tuple(unsettled)

    def _spectrum_row(self, index: int) -> Tensor:
        """Return s_1, s_2, the sum of squares and the residual of a layer (4,)."""
        tracker = self._trackers[index]
        block, kernel = tracker.block, tracker.old
        if block is None or kernel is None or tracker.operator is None:
            return _bound_row(tracker.kernel())
        top = block.s_R[0]
        second = block.s_R[1] if len(block.s_R) > 1 else torch.zeros_like(top)
        residual = torch.sub(tracker.operator.apply(kernel, block.v_RN[:1])[0], top * block.u_RM[0]).norm() / top
        return torch.stack([top, second, kernel.square().sum(), residual])

    def _row_after(self, index: int) -> Tensor:
        """Return s_1 and s_2 of a layer after the step (2,)."""
        tracker = self._trackers[index]
        if tracker.block is None or tracker.operator is None:
            return _bound_row(tracker.kernel())[:2]
        s_R = tracker.follow(DEGREE).s_R
        return s_R[:2] if len(s_R) > 1 else torch.cat([s_R, torch.zeros_like(s_R)])

    def _measure(self) -> None:
        """Fill the values of this step, and the covariance of its noise."""
        spectrum_L4 = torch.stack([self._spectrum_row(index) for index in range(len(self.layers))])
        after_L2 = torch.stack([self._row_after(index) for index in range(len(self.layers))])
        if self.level == "norms":
            self._values_LC = _columns(torch.cat([spectrum_L4, after_L2], dim=1))
            return
        scalars: list[Tensor | None] = []
        rows, stretches, owners = [], [], []
        for index, tracker in enumerate(self._trackers):
            if tracker.operator is None or tracker.block is None or tracker.old is None:
                rows.append(spectrum_L4.new_full((4,), float("nan")))
                scalars.append(None)
                continue
            lr, weight_decay = self._knobs[index]
            direction = self._direction(index, lr, weight_decay)
            size = self._update_norm(index, direction)
            noise, absent = self._noise(index, tracker)
            # W' = (1 - lr wd) (W + lr U / (1 - lr wd))
            length = lr / (1.0 - lr * weight_decay)
            response, corners = tracker.predict(direction, length, self._substeps(index, lr), noise)
            scalars.append(None if noise is None else noise.scalars_B / tracker.block.s_R[0])
            noise_q = response.noise_curvature
            if noise_q is None:
                noise_q = torch.full_like(size, absent)
            rows.append(torch.stack([response.first, response.curvature, size, noise_q]))
            stretches += corners
            owners += [index] * len(corners)
        change_L = self._changes(stretches, owners, spectrum_L4)
        first_L, curvature_L, size_L, noise_L = (torch.stack(rows) / spectrum_L4[:, :1]).unbind(1)
        self._values_LC = torch.cat(
            [spectrum_L4, after_L2, torch.stack([first_L, curvature_L, change_L, size_L, noise_L], dim=1)], dim=1
        )
        if self.level == "full":
            self._samples = min((s.shape[0] for s in scalars if s is not None), default=0)
            if self._samples:
                self._noise_LL = noise_covariance(scalars, self._samples)

    def _changes(self, stretches: list[tuple[Tensor, Tensor]], owners: list[int], like: Tensor) -> Tensor:
        """Return the predicted change of ln s_1 (L,), decay included: one batched SVD for all layers."""
        decay = [math.log1p(-lr * weight_decay) for lr, weight_decay in self._knobs]
        change_L = torch.tensor(decay, dtype=like.dtype).to(like.device, non_blocking=True)
        if not stretches:
            return change_L
        side = max(len(corner) for corner, _ in stretches)
        corners = torch.stack([nn.functional.pad(c, (0, side - len(c), 0, side - len(c))) for c, _ in stretches])
        finite = torch.isfinite(corners).all(dim=2).all(dim=1)
        top = torch.linalg.svdvals(torch.nan_to_num(corners, 0.0, 0.0, 0.0))[:, 0]
        logs = torch.where(finite, (top / torch.stack([s for _, s in stretches])).log(), float("nan"))
        return change_L.index_add(0, torch.tensor(owners).to(like.device, non_blocking=True), logs)

    def _update_norm(self, index: int, direction: Tensor) -> Tensor:
        """Return s_1 of the direction; at the first measurement of a layer, converged and known to the host."""
        tracker = self._trackers[index]
        assert tracker.block is not None
        size = tracker.update_norm(direction)
        if math.isinf(self._ratio_L[index]):
            for _ in range(4):
                size = tracker.update_norm(direction)
            self._ratio_L[index] = float(size / tracker.block.s_R[0])
        return size

    def _substeps(self, index: int, lr: float) -> int:
        """Return in how many stretches to follow the step, judged by the last update's size."""
        relative = lr * self._ratio_L[index]
        return min(MAX_STRETCHES, max(1, math.ceil(relative / STRETCH))) if math.isfinite(relative) else 1

    def _direction(self, index: int, lr: float, weight_decay: float) -> Tensor:
        """Return U: from the weights, or from the optimizer's state where the step is lost in rounding."""
        tracker, layer = self._trackers[index], self.layers[index]
        assert tracker.old is not None
        ratio = self._ratio_L[index]
        if lr * (1.0 if math.isinf(ratio) else ratio) < SMALL_STEP:
            known = optimizers.known_direction(self._optimizer, layer.weight, layer.group)
            if known is not None:
                return known.to(tracker.old)
            if lr == 0.0:
                return torch.zeros_like(tracker.old)
        return (tracker.kernel() - tracker.old * (1.0 - lr * weight_decay)) / lr

    def _noise(self, index: int, tracker: LayerTracker) -> tuple[NoiseImages | None, float]:
        """Return what the batch's noise does to the layer; without a batch, what stands in its place."""
        if self.level != "full":
            return None, float("nan")
        assert tracker.block is not None
        assert tracker.operator is not None
        batch = self._capture.batch(index)
        if batch is None:  # no gradient, no noise; a gradient that came another way is not known
            return None, 0.0 if tracker.layer.weight.grad is None else float("nan")
        scale = optimizers.preconditioner(self._optimizer, tracker.layer.weight, tracker.layer.group)
        signs_KB = torch.ones(1, 1)
        if not is_exact(tracker.operator):
            signs_KB = torch.randint(0, 2, (SIGNS, batch[0].shape[0]), generator=self._generator) * 2.0 - 1.0
            signs_KB = signs_KB.to(batch[0], non_blocking=True)
        return layer_noise(tracker.operator, tracker.block, batch, scale, signs_KB), 0.0

    def _keep_vectors(self, readings: Readings) -> None:
        """Carry the vectors of layers that are sound to the next refresh; the others keep their last good ones."""
        finite_L = np.isfinite(readings.columns["s_1"]) & np.isfinite(readings.columns["sum_squares"])
        after_L = np.isfinite(readings.columns["s_1_after"]) & (readings.columns["s_1_after"] > 0) & finite_L
        ratio_L = readings.columns["update_ratio"]
        for index, tracker in enumerate(self._trackers):
            if after_L[index] and tracker.new_block is not None:
                tracker.v_RN = tracker.new_block.v_RN
            else:
                tracker.new = tracker.new_block = None
            if np.isfinite(ratio_L[index]):
                self._ratio_L[index] = float(ratio_L[index])
            elif self.level != "norms" and tracker.update_KN is not None:
                tracker.update_KN = torch.ones_like(tracker.update_KN)

    def _terms(
        self,
        readings: Readings,
        step: int,
        level: str,
        knobs: tuple[tuple[float, float], ...],
        samples: int,
        unsettled: tuple[bool, ...],
        measure_s: float,
        step_s: float,
        wait: int,
    ) -> Terms:
        columns = readings.columns
        s_1, s_2, squares = columns["s_1"], columns["s_2"], columns["sum_squares"]
        stepped = np.isfinite(columns["s_1_after"]).any()
        with np.errstate(all="ignore"):
            log_norm_L = np.log(s_1)
            gap_L = 1.0 - s_2 / s_1
            after_L = np.log(np.where(columns["s_1_after"] > 0, columns["s_1_after"], np.nan))
            gap_after_L = 1.0 - columns["s_2_after"] / columns["s_1_after"]
            sizes = np.array([layer.weight.numel() for layer in self.layers], dtype=np.float64)
            fan_in = np.array([layer.shape[1] for layer in self.layers], dtype=np.float64)
            log_gain_L = 0.5 * np.log(squares / sizes * fan_in)
        counted = [optimizers.seen_steps(self._optimizer, layer.weight) for layer in self.layers[:1]]
        return Terms(
            step=step,
            names=tuple(layer.name for layer in self.layers),
            kinds=tuple(layer.kind for layer in self.layers),
            shapes=tuple(layer.shape for layer in self.layers),
            groups=tuple(layer.group for layer in self.layers),
            lr_L=np.array([lr for lr, _ in knobs], dtype=np.float64),
            weight_decay_L=np.array([wd for _, wd in knobs], dtype=np.float64),
            composition_L=np.ones(len(self.layers)),
            log_norm_L=log_norm_L,
            gap_L=gap_L,
            log_gain_L=log_gain_L,
            first_L=columns["first"],
            curvature_L=columns["curvature"],
            change_L=columns["change"],
            update_ratio_L=columns["update_ratio"],
            noise_LL=readings.noise_LL,
            noise_curvature_L=columns["noise_curvature"],
            network_log_norm=float(log_norm_L.sum()),
            batch_size=samples,
            optimizer=optimizers.optimizer_name(self._optimizer),
            momentum=optimizers.first_moment(self._optimizer),
            optimizer_step=self._updates if counted[0] is None else counted[0],
            status_L=statuses(readings, NEEDED[level], unsettled),
            level=level,
            measure_s=measure_s,
            step_s=step_s,
            frobenius_L=np.sqrt(squares),
            log_norm_after_L=after_L if stepped else np.zeros(0),
            gap_after_L=gap_after_L if stepped else np.zeros(0),
            interval=wait,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to measure the same: tensors, numbers and strings only."""
        budget = self._budget
        return {
            "names": [layer.name for layer in self.layers],
            "vectors": [t.v_RN.clone() if t.v_RN is not None else None for t in self._trackers],
            "blocks": [t.standing() for t in self._trackers],
            "update_vectors": [t.update_KN.clone() if t.update_KN is not None else None for t in self._trackers],
            "input_shapes": {index: list(shape) for index, shape in self._capture.input_shapes.items()},
            "ratios": list(self._ratio_L),
            "updates": self._updates,
            "generator": self._generator.get_state(),
            "budget": {
                name: getattr(budget, name) for name in ("measured_s", "total_s", "plain_s", "cost_s", "next_step")
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            ValueError: the state is of other layers.
        """
        names = [layer.name for layer in self.layers]
        if list(state["names"]) != names:
            raise ValueError(f"Probe.load_state_dict(state) must be of the layers {names}, got {list(state['names'])}.")
        self._capture.input_shapes = {int(i): tuple(shape) for i, shape in state["input_shapes"].items()}
        for index, tracker in enumerate(self._trackers):
            vectors, update = state["vectors"][index], state["update_vectors"][index]
            tracker.operator = tracker.layer.operator(self._capture.input_shapes.get(index))
            tracker.v_RN = None if vectors is None else vectors.to(tracker.kernel(), copy=True)
            tracker.update_KN = None if update is None else update.to(tracker.kernel(), copy=True)
            tracker.stand(state["blocks"][index])
        self._ratio_L = [float(r) for r in state["ratios"]]
        self._updates = int(state["updates"])
        self._generator.set_state(state["generator"].cpu())
        for name, value in state["budget"].items():
            setattr(self._budget, name, value)


def _columns(spectrum_LX: Tensor) -> Tensor:
    """Return the full table of a measurement that ends with the spectrum."""
    rest = spectrum_LX.new_full((len(spectrum_LX), len(COLUMNS) - spectrum_LX.shape[1]), float("nan"))
    return torch.cat([spectrum_LX, rest], dim=1)


def _bound_row(kernel: Tensor) -> Tensor:
    """Return the spectrum of a convolution of unknown input size: sqrt(taps) times that of its matrix, a bound."""
    s_R = torch.linalg.svdvals(torch.nan_to_num(kernel.flatten(1)))
    taps = math.prod(kernel.shape[2:])
    second = s_R[1] if len(s_R) > 1 else torch.zeros_like(s_R[0])
    loose = torch.ones_like(second)
    return torch.stack([s_R[0] * taps**0.5, second * taps**0.5, kernel.square().sum(), loose])
