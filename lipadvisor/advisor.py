"""The public front of the line from weights to optimizer: what a user's own training loop calls."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import torch

from lipadvisor.announce import log_what_is_owned
from lipadvisor.apply import Applier, Mode
from lipadvisor.arguments import as_loss, check_arguments, check_inspection, check_plan, open_store
from lipadvisor.fail_open import FailOpen, Patience
from lipadvisor.forecast import Alarm, Forecast
from lipadvisor.inspection import QUANTITIES, Inspection, Inspector
from lipadvisor.line import Line
from lipadvisor.plain_chain import is_plain_chain
from lipadvisor.policies import Decision, Policy, named_policy
from lipadvisor.probe import NoiseReport, Probe
from lipadvisor.probe.compiled import bare
from lipadvisor.probe.kinds.parametrized import constrained_parameters
from lipadvisor.probe.layers import Targets
from lipadvisor.snapshot import SMALL_MODEL, Snapshot
from lipadvisor.stage import AdvisedStage
from lipadvisor.training_hooks import TrainingHooks
from lipadvisor.trajectory import Recorder, Sink, Trajectory

__all__ = ["Advisor"]

_log = logging.getLogger("lipadvisor")


class Advisor:
    """Watches a model's Lipschitz bound while it trains, predicts it, and steers the optimizer's knobs.

    Nothing happens before the model's first forward pass in training mode: then the initial spectrum is measured and,
    in takeover mode, the policy may rescale the initialization. From then on each ``step`` closes one optimizer step.

    Args:
        model: the network that trains; it is not modified. ``docs/measurement.md`` lists the kinds of layers measured.
        optimizer: holds the model's parameters. SGD, momentum, Adam, AdamW; others through their realised update.
        total_steps: optimizer steps the training will take, >= 1; ``None`` where that is not known. After the last one
            the default puts the average of its weights in their place: validate, test and save after ``step``.
        policy: a policy, or the name of one (``lipadvisor policies`` lists them).
        mode: ``"takeover"`` owns learning rate and weight decay (what the optimizer was given does not matter);
            ``"cap"`` never exceeds the user's learning rate; ``"shadow"`` decides and records, and touches nothing.
        max_overhead: share of the training time that measuring may take, in (0, 1]; half a second in all is
            granted in any case, so that short runs of tiny models can be steered too.
        interval: steps between measurements; ``None`` adapts it to ``max_overhead``.
        seed: of the advisor's own generator; no global random state is touched.
        include: globs of layer names to measure.
        exclude: globs of layer names to leave out.
        conv_view: ``"operator"`` measures a convolution as the true one on its real input size, ``"matrix"`` its
            kernel reshaped to (out, in x taps), as kinds named ``"..._matrix"``.
        gains: measure the gains of normalisation layers too, beside the network's sum.
        parameters: measure matrices that a custom module holds itself, beside the network's sum.
        independent_samples: whether each sample's gradient is its own; ``None`` finds out (BatchNorm in training mode
            couples them: the noise is then measured from successive steps).
        population: rows that batches are drawn from without replacement, or the training ``DataLoader``; else ``None``.
        out: directory to store the trajectory in while training goes on; read it back with ``lipadvisor.load_run``.
        sink: receives the trajectory's rows in batches, instead of ``out``.
        record_limit: rows of each table kept in memory; ``None`` keeps all.
        snapshot_every: steps between copies for rollbacks; ``"auto"``: 100, ``None`` above 5 million parameters.
            ``None`` keeps no average of the weights either.
        on_error: ``"warn"`` never lets an error of the advisor's own stop the training: it is logged, counted in
            ``errors``; after five such steps, no decision in between, the user has the knobs back. ``"raise"`` raises.

    Raises:
        TypeError: the model, the optimizer or the policy is none.
        ValueError: an argument is out of range, no layer can be measured, or the optimizer lacks the model's weights.
        OSError: ``out`` cannot be made or written.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        total_steps: int | None = None,
        *,
        policy: Policy[Any] | str = "lipschitz",
        mode: Mode = "takeover",
        max_overhead: float = 0.03,
        interval: int | None = None,
        seed: int = 0,
        include: str | Sequence[str] = ("*",),
        exclude: str | Sequence[str] = (),
        conv_view: Literal["operator", "matrix"] = "operator",
        gains: bool = False,
        parameters: bool = False,
        independent_samples: bool | None = None,
        population: int | torch.utils.data.DataLoader[Any] | None = None,
        out: str | os.PathLike[str] | None = None,
        sink: Sink | None = None,
        record_limit: int | None = None,
        snapshot_every: int | Literal["auto"] | None = "auto",
        on_error: Literal["warn", "raise"] = "warn",
    ) -> None:
        policy = named_policy(policy) if isinstance(policy, str) else policy
        check_arguments(
            model, optimizer, policy, total_steps, mode, max_overhead, seed, snapshot_every, on_error, out, sink,
            record_limit,
        )  # fmt: skip
        self.policy: Policy[Any] = policy
        self.mode, self.total_steps = mode, total_steps
        self._errors = FailOpen(raises=on_error == "raise")
        self._inspector = Inspector(model, optimizer, seed, raises=on_error == "raise")
        self._inspected_at: dict[str, int] = {}
        self.skipped_steps = 0
        self._probe = Probe(
            model,
            optimizer,
            max_overhead=max_overhead,
            interval=interval,
            include=include,
            exclude=exclude,
            conv_view=conv_view,
            gains=gains,
            parameters=parameters,
            seed=seed,
            independent_samples=independent_samples,
            population=population,
        )
        self._applier = Applier(optimizer, Targets(self._probe.layers), mode, constrained_parameters(model))
        if snapshot_every == "auto":
            snapshot_every = 100 if sum(p.numel() for p in model.parameters()) <= SMALL_MODEL else None
        snapshot = Snapshot(model, optimizer, snapshot_every if mode == "takeover" else None)
        self._store = None if out is None else open_store(out)
        self._recorder = Recorder(sink=sink if self._store is None else self._store.sink("run"), limit=record_limit)
        chain = is_plain_chain(bare(model))
        self._line = Line(policy, mode, total_steps, self._probe, self._applier, snapshot, self._recorder, chain)
        self._closed, self._patience = False, Patience()
        self._stage = AdvisedStage(model, self._probe, self._applier, self._line)
        self._hooks = TrainingHooks(model, self._line, self._applier, self._errors, self._stage)
        self._applier.begin()
        log_what_is_owned(self.policy.name, mode, self._probe)

    # -- what the user calls -----------------------------------------------------------------------------------------

    def step(self, loss: torch.Tensor | float | None = None) -> Decision | None:
        """Close one optimizer step: measure, forecast, decide, apply and record.

        Args:
            loss: the step's training loss, a number or a scalar tensor. On an accelerator it is read one step late,
                so that the device is never waited for.

        Returns:
            The decision in force for the next step, made now or, where this step was not measured, a few steps ago (a
            200th of the run at most); ``None`` if the optimizer took no step since the last call (a gradient scaler
            skipped it), or if an error of the advisor's own was caught.
        """
        begun = time.perf_counter()
        hooks = self._hooks
        if hooks.updated and self._line.calm:
            try:
                held = self._line.close_calm(loss, begun)
            except Exception:
                self._errors.caught()
                hooks.updated = self._line.calm = False
                return None
            if held is not None:
                hooks.updated = False
                return held
        if self._closed:
            raise RuntimeError("Advisor.step() was called after close().")
        if self._stage.understudy is not None:
            raise ValueError("rehearse(train_step=...) must not call advisor.step, and it did.")
        if hooks.released:
            hooks.updated = False
            return None
        if not hooks.updated:
            self.skipped_steps += 1
            self._errors.guard(self._line.rearm)
            return None
        hooks.updated = False
        decision = self._errors.guard(self._line.close_step, self._probe.ranks.mean(loss), begun)
        if self._patience.tried(self._errors.count):
            self._give_up_after_errors()
        return decision

    def _give_up_after_errors(self) -> None:
        if self._patience.ends(self._errors.count, self._line.decisions):
            self._hooks.released = True
            self._applier.release()

    def forecast(self, horizon: int, plan: Mapping[str, Any] | None = None) -> Forecast:
        """Forecast the log-norms of the layers and of the network.

        Args:
            horizon: steps ahead, >= 1.
            plan: future ``lr`` and ``weight_decay``, each a number or an array of length ``horizon``, for every layer.
                What is not named goes on as it is: the learning rate; of a decay that is the policy's own what it takes
                off a weight per step, ``lr * weight_decay``, as it is coupled to the policy's own rate; of the user's
                decay its coefficient.

        Returns:
            A forecast with ``network`` and ``layers[name]``: arrays ``mean, std, lower, upper`` of length ``horizon``
            (nats; entry j is j + 1 steps ahead of the present step; 90 % band), and a ``status``.

        Raises:
            TypeError: the plan is no mapping.
            ValueError: the horizon or an entry of the plan is out of range.
        """
        return self._stage.forecast(horizon, check_plan(horizon, plan))

    def stage(self) -> AdvisedStage:
        """Return the training as something that tries its future sees it: what :func:`lipadvisor.rehearse` uses.

        Raises:
            RuntimeError: the advisor is closed, or has given the knobs back after errors.
        """
        if self._closed or self._hooks.released:
            raise RuntimeError("Advisor.stage() was called after the advisor was closed, or had given the knobs back.")
        return self._stage

    def inspect(
        self,
        loss_fn: Callable[..., torch.Tensor],
        batch: Any = None,
        every: int | None = None,
        quantities: Sequence[str] = QUANTITIES,
    ) -> Inspection | None:
        """Measure what single steps do not show: curvature and noise of the loss, and the network's local slope.

        Call it anywhere in the loop. The model is afterwards what it was; what is found goes into the trajectory's
        frame ``inspections``, and its cost is counted with that of measuring.

        Args:
            loss_fn: returns the loss with its graph, a scalar; called with ``batch``, or with nothing.
            batch: samples first; a tuple goes in by position, a mapping by keyword. The model itself is called with
                its first part, or with the mapping. Without it noise scale and local slope are not measured.
            every: steps from one measurement of these quantities to the next, >= 1; calls in between cost nothing. A
                measurement of all takes 15 to 35 training steps' time. None: now.
            quantities: some of ``lipadvisor.inspection.QUANTITIES``.

        Returns:
            Values by name: ``sharpness``, ``preconditioned_sharpness`` (Adam), ``expansion``, ``noise_scale``,
            ``local_log_norm``; see :class:`~lipadvisor.inspection.Reading`. ``None`` where it is not due.

        Raises:
            ValueError: ``loss_fn`` cannot be called, ``every`` is out of range, or a quantity is unknown.
        """
        check_inspection(loss_fn, every, quantities)
        key = " ".join(quantities)
        if every is not None and self._line.step < self._inspected_at.get(key, -every) + every:
            return None
        with self._probe.aside():
            found = self._inspector.measure(self._line.step, loss_fn, batch, self._applier.in_force(), quantities)
        self._inspected_at[key] = self._line.step
        self._recorder.add_inspection(found.step, [dataclasses.astuple(reading) for reading in found.readings])
        return found

    def report_validation(self, loss: float) -> None:
        """Tell the policy a validation loss, measured on the weights as they are now.

        The weights with the lowest are kept where ``snapshot_every`` is. The default goes back to them on overfitting,
        and where the loss reported after the last step is clearly above the lowest: report twenty times a run, and
        at its end, before the model is used. It compares them with the training losses: report the same function, a
        mean as there; a sum or a percentage looks like overfitting. Of several ranks each must report one: their mean
        counts.
        """
        mean = self._probe.ranks.mean(as_loss(loss))
        assert mean is not None
        if not (self._closed or self._hooks.released):
            self._errors.guard(self._line.report_validation, float(mean))

    @property
    def trajectory(self) -> Trajectory:
        """The frames ``observations``, ``forecasts``, ``decisions`` and ``inspections`` recorded so far."""
        return self._recorder.frames()

    @property
    def overhead(self) -> float:
        """Share of the run's time spent on measuring, predicting, deciding and recording so far."""
        return self._probe.overhead

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """Early warnings of divergence, the last thousand in this process; of those in a row the first."""
        return tuple(self._line.danger.alarms)

    @property
    def measurements(self) -> int:
        """Steps measured so far."""
        prediction = self._line.prediction
        return 0 if prediction is None else prediction.measurements

    @property
    def errors(self) -> int:
        """The advisor's own errors so far, caught so that the training goes on."""
        return self._errors.count + self._inspector.errors

    @property
    def steps(self) -> int:
        """Optimizer steps taken under this advisor."""
        return self._line.step

    @property
    def unclosed_steps(self) -> int:
        """Optimizer steps that came without :meth:`step` after the one before."""
        return self._hooks.unclosed_steps

    @property
    def noise(self) -> NoiseReport:
        """How the gradient noise was measured last, and what its checks said so far."""
        return self._probe.noise

    @property
    def input_sizes(self) -> dict[str, tuple[int, ...]]:
        """(channels, ...) of the maps that the norm of each convolution is for, by the layer's name."""
        return self._probe.following.sizes()

    @property
    def skipped_layers(self) -> tuple[tuple[str, str], ...]:
        """Layers that are not measured: name and reason."""
        return tuple((one.name, one.reason) for one in self._probe.skipped)

    def close(self) -> None:
        """Take every hook out, put the user's own weight decay back, and write what is still in memory."""
        if self._closed:
            return
        self._closed, self._line.calm = True, False
        try:
            self._hooks.remove()
            self._probe.close()
            self._applier.close()
            self._line.close()
        finally:  # whatever happens, what was recorded is written
            self._recorder.close()
            if self._store is not None:
                self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs to go on as the uninterrupted one would have: plain values and tensors.

        Take it together with the model's, the optimizer's and the loader's state; ``torch.load(weights_only=True)``
        reads it back. Of several processes each has its own.
        """
        return {
            "version": 1,
            **self._line.state_dict(),
            "inspector": self._inspector.state_dict(),
            "inspected_at": dict(self._inspected_at),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`. Load the model's and the optimizer's state first.

        Raises:
            TypeError: the state is no mapping.
            ValueError: the state is of another policy or of other layers, or of a version that this one cannot read.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"Advisor.load_state_dict(state) must be what state_dict() returned, got {state!r}.")
        if state.get("version") != 1:
            raise ValueError(f"Advisor.load_state_dict: version must be 1, got {state.get('version')!r}.")
        if state["policy"] != self.policy.name:
            raise ValueError(f"Advisor.load_state_dict: policy must be {self.policy.name!r}, got {state['policy']!r}.")
        self._probe.check_state(state.get("probe", {}))
        self._line.load_state_dict(state)
        if "inspector" in state:  # not in checkpoints of earlier versions
            self._inspector.load_state_dict(state["inspector"])
            self._inspected_at = dict(state["inspected_at"])
