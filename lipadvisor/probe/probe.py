"""The probe: reads, at the steps it chooses, how an optimizer's update moves the norms of a model's layers.

How the parts combine::

    find_layers --> Pack (operator, warm-started blocks of like layers)      Budget: which steps
    arm(step) --> Capture (hooks) --> before_update --> [optimizer] --> after_update --> collect(step) --> Terms
                                       Pack.begin                      Pack.follow, respond, NoiseMeter

Measured quantities and their units are those of :class:`lipadvisor.terms.Terms`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import or_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lipadvisor.policies import Status
from lipadvisor.probe.arguments import check_arguments, check_noise_arguments, globs
from lipadvisor.probe.capture import Capture
from lipadvisor.probe.carried import CarriedSteps
from lipadvisor.probe.changes import Changes
from lipadvisor.probe.compiled import EagerStep, bare, is_compiled
from lipadvisor.probe.following import following
from lipadvisor.probe.input_sizes import input_sizes
from lipadvisor.probe.kinds import Options
from lipadvisor.probe.layers import find_layers
from lipadvisor.probe.light import LightSteps
from lipadvisor.probe.meter import NoiseMeter
from lipadvisor.probe.noise_report import NoiseReport
from lipadvisor.probe.pack import Pack
from lipadvisor.probe.packing import make_packs, rows_of_layers, saved_packs, state_of_packs
from lipadvisor.probe.ranks import ranks_of
from lipadvisor.probe.record import Measured, in_order, read, terms
from lipadvisor.probe.schedule import Budget
from lipadvisor.probe.strides import Strides
from lipadvisor.probe.together import follow, looked_at, move, noise_columns
from lipadvisor.terms import Terms

__all__ = ["Probe"]

NOISY = ("noise", "full")  # levels at which noise is measured


class Probe:
    """Measures a model while it trains, without changing anything it computes."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        level: str = "full",
        max_overhead: float = 0.03,
        interval: int | None = None,
        include: str | Iterable[str] = ("*",),
        exclude: str | Iterable[str] = (),
        seed: int = 0,
        example_input: Any = None,
        independent_samples: bool | None = None,
        population: int | DataLoader[Any] | None = None,
        conv_view: str = "operator",
        gains: bool = False,
        parameters: bool = False,
        renew_every: int = 1,
    ) -> None:
        """Find the layers to measure.

        Args:
            model: any module with layers of a known kind (``probe.skipped`` lists what is left out).
            optimizer: holds the weights of the model.
            level: "norms" (spectrum), "drift" (and the update's effect), "noise" (and the covariance of the
                gradient noise), or "full" (and its curvature).
            max_overhead: share of the run's time that measuring may take, in (0, 1]; ignored with ``interval``.
            interval: measure every that many steps, >= 1; None follows ``max_overhead``.
            include: globs over module names, one of which must match.
            exclude: globs over module names, none of which may match.
            seed: of the probe's own generator.
            example_input: one batch, to learn the convolutions' input sizes before the first training step; passed to
                the model without gradients and in eval mode (a tuple as positional arguments).
            independent_samples: whether each sample's gradient is its own; None finds out (BatchNorm in training mode
                couples them). Where it is not, the noise is measured from the differences of successive steps.
            population: rows N that the batches of M are drawn from without replacement, >= 1, or the loader that does
                it: the noise is 1 - M/N times that of independent draws. None for independent draws.
            conv_view: what a convolution's kernel is measured as: "operator", the true one on its real input size, or
                "matrix", the kernel reshaped to (out, in x taps): another quantity, with kinds named "..._matrix".
            gains: measure the gains of normalisation layers too, beside the network's sum.
            parameters: measure matrices that a custom module holds itself, beside the network's sum.
            renew_every: measured steps from one renewal of the tracked vectors to the next, >= 1; only the top pair is
                followed in between, or at "full" matrices are not solved with, see docs/measurement.md.

        Raises:
            ValueError: an argument is out of range, the optimizer does not hold the model's parameters, or the model
                has no supported layer.
        """
        check_arguments(level, max_overhead, interval, renew_every)
        self._population = check_noise_arguments(independent_samples, population)
        self.level = level
        self._model, self.ranks = bare(model), ranks_of(model)
        chosen = globs("include", include), globs("exclude", exclude), Options(conv_view, gains, parameters)
        self.layers, self.skipped = find_layers(self._model, optimizer, *chosen)
        self._eager, self._blind, self._watched = EagerStep(), False, False
        self._compiled, self._wrapped = is_compiled(model), self._model is not model
        self._optimizer = optimizer
        self._changes = Changes.since(self._model, optimizer, self.layers)
        self._generator = torch.Generator().manual_seed(seed)
        self._packs = make_packs(self.layers, self._generator)
        self._place_L = rows_of_layers(self._packs)
        self._capture = Capture(self.layers, keep=level in NOISY, root=model)
        self.following = following(self._model, model, self.layers, self._capture, self.ranks)
        self._budget = Budget(max_overhead, interval)
        self._updates = 0  # optimizer steps seen
        self._strides = Strides(optimizer, [float("inf")] * len(self.layers), [1.0] * len(self.layers))
        self._meter = NoiseMeter(
            self._model, optimizer, self._packs, self._capture, self._generator, independent_samples, self._strides
        )
        self._light = LightSteps(renew_every) if renew_every > 1 and level != "full" else None
        self._carried = CarriedSteps(renew_every if level == "full" else 1)
        self._armed: int | None = None
        self._armed_at = self._spent_s = self._tail_s = 0.0  # tail: what accounting for the last idle step took
        self._values_LC: Tensor | None = None
        self._unsettled: tuple[bool, ...] = ()
        if example_input is not None:
            self.trace(*(example_input if isinstance(example_input, tuple) else (example_input,)))

    @property
    def overhead(self) -> float:
        """Share of the run's time spent on measuring so far, in [0, 1]."""
        return self._budget.overhead

    @property
    def noise(self) -> NoiseReport:
        """How the gradient noise was measured last, and what its checks said so far."""
        return self._meter.judge.report

    def spectrum(self) -> Terms:
        """Return the norms of the weights as they are now; everything that needs a step is nan."""
        for pack in self._packs:
            pack.new = None
        if self.ranks.size == 1:
            self.following.adopt(self._packs)
        unsettled = self._begin()
        with torch.no_grad():
            values_LC = in_order([pack.spectrum(pack.old) for pack in self._packs], self._place_L)
        readings = read(values_LC, None, ranks=self.ranks)
        knobs = tuple((float(self._optimizer.param_groups[layer.group]["lr"]), 0.0) for layer in self.layers)
        self._strides.note_spectrum(self._packs, *(readings.columns[name] for name in ("s_1", "s_2", "s_last")))
        self._keep(readings.columns["s_1"])
        measured = Measured(self._updates, "norms", knobs, 0, unsettled, 0.0, 0.0, 1, sizes=self.following.sizes())
        return terms(readings, self.layers, self._optimizer, self._updates, measured)

    def arm(self, step: int) -> bool:
        """Say whether optimizer step number ``step`` (0-based) is to be measured, and put the hooks in if so."""
        self._armed_at = time.perf_counter()
        self._spent_s = 0.0
        self._values_LC = None
        self._armed = step if self._budget.due(step) else None
        if self._armed is None:
            return False
        self._capture.spent_s = 0.0
        unsettled, noisy = any(pack.operator is None for pack in self._packs), self.level in NOISY
        if unsettled and self._blind:
            self._eager.begin()
        self._meter.judge.curved = self.level == "full"
        self._capture.keep = noisy and self._meter.look_around()
        self._watched = (unsettled and not self.following.knows) or (self._capture.keep and not self._compiled)
        if noisy:
            self._meter.prepare()
        root = (noisy or unsettled) and (not self._compiled or self._wrapped)
        self._capture.attach(self._watched, root, sizes=not self._compiled)
        if self._capture.keep and self._watched and self.ranks.size == 1 and self._meter.unprepared:
            self._capture.at_first = self._begin_early
        self.following.begin()
        self._spent_s += time.perf_counter() - self._armed_at
        return True

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do in the step under way: it is not measured, and no pair of steps is open."""
        return self._armed is None and not self._meter.pending

    def pass_over(self, step: int, since: float) -> bool:
        """Account for the idle step number ``step``, instead of the four calls below; arm the next, say if it is idle.

        The caller's own work since ``since`` (of ``time.perf_counter``) is counted as cost.
        """
        self._updates += 1
        now = time.perf_counter()
        self._budget.pass_over(step, now - self._armed_at, now - since + self._tail_s)
        self._armed_at = now
        idle = not self._budget.due(step + 1) or not self.arm(step + 1)
        self._tail_s = time.perf_counter() - now
        return idle

    def before_update(self) -> None:
        """Read the weights before the optimizer acts: gradients are there, hooks have fired."""
        started = time.perf_counter()
        with looked_at(self._packs if self._armed is not None or self._meter.pending else ()):
            if self.level in NOISY:
                self._meter.before_update(measured=self._armed is not None)
            if self._armed is not None:
                self._read_weights()
        self._spent_s += time.perf_counter() - started

    def after_update(self, lr_by_group: Mapping[int, float], weight_decay_by_group: Mapping[int, float]) -> None:
        """Read what the optimizer did.

        Args:
            lr_by_group: learning rate in force in this step, for each parameter group.
            weight_decay_by_group: decoupled weight decay in force, per unit of tau: ``W *= 1 - lr * weight_decay``.
        """
        self._updates += 1
        started = time.perf_counter()
        if self._armed is not None or self._meter.pending:
            self._strides.note_knobs(self.layers, lr_by_group, weight_decay_by_group)
            with torch.no_grad():
                self._measure() if self._armed is not None else self._meter.follow()
        self._spent_s += time.perf_counter() - started

    def collect(self, step: int) -> Terms | None:
        """Return what step number ``step`` gave, in one device synchronisation; None if it was not measured."""
        started = time.perf_counter()
        values_LC = self._values_LC if self._armed == step else None
        readings = None if values_LC is None else read(values_LC, self._meter.noise_LL, self._meter.samples, self.ranks)
        doubts: tuple[Status | None, ...] = ()
        if readings is not None and self.level in NOISY:
            readings, doubts = self._meter.judge.settle(readings)
        self._capture.detach()
        self._capture.clear()
        now = time.perf_counter()
        measure_s = self._spent_s + self._capture.spent_s
        measure_s += now - started if self._armed is not None else 0.0
        step_s = now - self._armed_at
        if readings is not None:
            beside_s = step_s - measure_s
            measure_s += min(self._budget.unseen_s(beside_s), measure_s, beside_s)
        wait = self._budget.spend(step, step_s, measure_s, readings is not None)
        self._armed, self._values_LC, self._capture.spent_s = None, None, 0.0
        if readings is None:
            return None
        self._budget.next_step, wait = self.following.agreed(self._budget.next_step, wait)
        self._note(readings.columns)
        sizes, started = self.following.sizes(), self.following.look(self._packs)
        if started:
            self._meter.regroup(self._packs)
        seen = self._strides.knobs, readings.samples, self._unsettled
        measured = Measured(step, self.level, *seen, measure_s, step_s, max(wait, 1), doubts, self._population, sizes)
        return terms(readings, self.layers, self._optimizer, self._updates, measured)

    def trace(self, *arguments: Any, **keywords: Any) -> None:
        """Learn the convolutions' input sizes from a batch, as ``example_input`` does: ``model(*arguments)``."""
        if self._capture.sized and any(pack.operator is None for pack in self._packs):
            self.following.told(input_sizes(self._model, self.layers, arguments, keywords), arguments, keywords)

    def urge(self, step: int) -> None:
        """Ask for a measurement of step number ``step``, out of turn: something has happened."""
        self._budget.urge(step, always=self.ranks.size > 1)

    def charge(self, seconds: float) -> None:
        """Count ``seconds`` that the caller spent on acting on a measurement as part of its cost."""
        self._budget.charge(seconds)

    def missed(self) -> None:
        """Count an optimizer step around which nothing was called."""
        self._updates += 1

    def leave_out(self, seconds: float) -> None:
        """Leave the last ``seconds`` out of the step under way: the loop did something else."""
        self._armed_at += seconds

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let the model be run for other ends: nothing is captured, and the time is measuring's, not the step's."""
        begun = time.perf_counter()
        with self._capture.paused():
            yield
        spent_s = time.perf_counter() - begun
        self.leave_out(spent_s)
        self.charge(spent_s)

    def close(self) -> None:
        """Take the hooks out and forget what was captured."""
        self._eager.end()
        self.following.end()
        self._capture.detach()
        self._capture.clear()
        self._armed, self._values_LC = None, None

    def _begin(self, early: bool = False) -> tuple[bool, ...]:
        """Bring every block up to the present weights; return which layers have no operator yet."""
        if self.following.retyped():
            self._regroup(make_packs(self.layers, self._generator))
        unsettled = [False] * len(self.layers)
        parts = tuple(part for pack in self._packs for part in pack.parted(self._capture.input_shapes))
        if len(parts) > len(self._packs):
            self._regroup(parts)
        with torch.no_grad():
            for pack in self._packs:
                if known := pack.settle(self._capture.input_shapes.get(pack.indices[0])):
                    pack.known = self._strides.tells(pack)
                    pack.begin(4, early)
                for index in pack.indices:
                    unsettled[index] = not known
        return tuple(unsettled)

    def _begin_early(self) -> None:
        """Begin in the backward pass of the first step, so that what the layers saw need not wait for its end."""
        with torch.no_grad():
            self.following.adopt(self._packs)
            self._begin(early=True)
            self._meter.prepare()

    def _read_weights(self) -> None:
        self._capture.detach()
        self._capture.finish()
        self._eager.end()
        self.following.end()
        self.following.adopt(self._packs)
        self._unsettled = self._begin()
        self._blind = any(self._unsettled)
        self._unsettled = tuple(map(or_, self._unsettled, self.following.marked(self._changes.look())))
        if self._updates and self._watched and not self._capture.fired and EagerStep.possible():
            self._compiled = True  # outside of the model

    def _regroup(self, packs: tuple[Pack, ...]) -> None:
        self._packs, self._place_L = packs, rows_of_layers(packs)
        self._meter.regroup(packs)

    def _measure(self) -> None:
        """Fill the values of this step, and the covariance of its noise."""
        step, full = (self._packs, self._strides), self.level == "full"
        noises = self._meter.sum_up() if self.level in NOISY else [None] * len(self._packs)
        came = follow(*step) if self.level == "norms" else move(*step, full, self._light, self._carried)
        tables = [[pack.spectrum(pack.old), pack.spectrum(pack.new)] for pack in self._packs]
        if self.level != "norms":
            for table, one in zip(tables, came, strict=True):
                table.append(table[0].new_full((len(table[0]), 6), float("nan")) if one is None else one.columns_l6)
        if self.level in NOISY:
            sums_of_packs = self._meter.measure(noises, came, self._carried)
            forms_of_packs = noise_columns(self._packs, came, noises, self._carried)
            for table, form_l1, sums in zip(tables, forms_of_packs, sums_of_packs, strict=True):
                table += [form_l1, sums]
        self._values_LC = in_order([torch.cat(table, dim=1) for table in tables], self._place_L)

    def _note(self, columns: Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]) -> None:
        """Carry what was read to the next measurement; layers that are not sound keep their last good vectors."""
        self._strides.note_spectrum(self._packs, columns["s_1_after"], columns["s_2_after"], columns["s_last_after"])
        self._keep(columns["s_1_after"] * np.isfinite(columns["sum_squares"]))
        if self.level != "norms":
            self._strides.note_ratios(self._packs, columns["update_ratio"])

    def _keep(self, s_L: np.ndarray[Any, np.dtype[np.float64]]) -> None:
        sound_L = np.isfinite(s_L) & (s_L > 0)
        for pack in self._packs:
            pack.keep([bool(sound_L[index]) for index in pack.indices])

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to measure the same: tensors, numbers and strings only."""
        return {
            "names": [layer.name for layer in self.layers],
            **state_of_packs(self._packs),
            "input_shapes": {index: list(shape) for index, shape in self._capture.input_shapes.items()},
            **self._strides.state_dict(),
            "updates": self._updates,
            "generator": self._generator.get_state(),
            "noise": self._meter.state_dict(),
            "following": self.following.state_dict(),
            "carried": self._carried.state_dict(self._packs),
            "budget": self._budget.state_dict(),
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` if ``state`` is of other layers."""
        names = [layer.name for layer in self.layers]
        if (given := list(state.get("names", ()))) != names:
            raise ValueError(f"load_state_dict(state) must be of the layers {names}, got {given}.")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`. Load the model's own state first.

        Raises:
            ValueError: the state is of other layers.
        """
        self.check_state(state)
        self._capture.input_shapes = {int(i): tuple(shape) for i, shape in state["input_shapes"].items()}
        self._regroup(saved_packs(self.layers, state, self._capture.input_shapes, self._generator))
        self._strides.load_state_dict(state)
        self._updates = int(state["updates"])
        self._generator.set_state(state["generator"].cpu())
        self._budget.load_state_dict(state["budget"])
        if noise := state.get("noise"):
            self._meter.load_state_dict(noise)
        self.following.load_state_dict(state.get("following", {}))
        self._carried.load_state_dict(self._packs, state.get("carried", ()))
