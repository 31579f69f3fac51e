"""One training under an advisor: measure, predict, observe, decide, apply, record, step by step.

How a step goes::

    prepare_update  -->  [optimizer]  -->  finish_update  -->  close_step
    probe, applier                         applier, probe      probe, prediction, observation, policy, applier, recorder

Steps that are not measured and between two decisions take a short path, as long as nobody else writes the knobs.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from lipadvisor.apply import Applied, Applier, Mode
from lipadvisor.checkpoint import arrays, plain
from lipadvisor.early_warning import EarlyWarning
from lipadvisor.loss import LossReader, LossWatch
from lipadvisor.observe import initial_observation, observation, refreshed
from lipadvisor.policies import Decision, Knobs, Observation, Policy, as_json, from_json, restore_state
from lipadvisor.prediction import HORIZONS, Prediction
from lipadvisor.probe import Probe
from lipadvisor.record import extra_columns, initial_columns, layer_bands
from lipadvisor.snapshot import Snapshot
from lipadvisor.terms import Terms
from lipadvisor.trajectory import Recorder

__all__ = ["Line"]

_log = logging.getLogger("lipadvisor")

DECISIONS = 200  # at least that many in a run; in between, steps that are not measured keep the knobs as they are
LAYER_BANDS_EVERY = 10  # measurements between two records of the layers' forecasts; the network's are always recorded


class Line:
    """The line from weights to optimizer, with what it carries from step to step.

    Args:
        policy: decides.
        mode: of the applier.
        total_steps: of the training, or None.
        probe: measures.
        applier: acts.
        snapshot: what a rollback goes back to.
        recorder: takes the rows.

    Attributes:
        step: optimizer steps taken.
        tau: sum of their learning rates, the mean over the measured layers.
        decisions: made by the policy in this process.
        started: whether the initial spectrum has been measured.
        calm: nothing to measure in the step under way, and the knobs are owned.
        acting_s: seconds taken between gradients and optimizer in the step under way, weight decay left out.
        prediction: what the dynamics made of the measurements; None before the start.
        last: the last observation.
        decision: in force.
        danger: of a divergence, with its alarms.
        state: the policy's.
        validation: step and loss of the last validation reported.
    """

    def __init__(
        self,
        policy: Policy[Any],
        mode: Mode,
        total_steps: int | None,
        probe: Probe,
        applier: Applier,
        snapshot: Snapshot,
        recorder: Recorder,
        chain: bool = False,
    ) -> None:
        self._policy, self._mode, self._total_steps, self._chain = policy, mode, total_steps, chain
        self._probe, self._applier, self._snapshot, self._recorder = probe, applier, snapshot, recorder
        self._loss, self._watch = LossReader(), LossWatch()
        self._stride = 1 if total_steps is None else max(1, total_steps // DECISIONS)
        self._lr_in_step = self.acting_s = 0.0
        self._in_step: tuple[dict[int, float], dict[int, float]] = ({}, {})
        self._foreign_seen = 0
        self._beyond = False
        self._until: float = 0  # the number of steps up to which calm ones need no decision and no snapshot
        self.danger = EarlyWarning()
        self._urgent = False  # the last loss was unusual: the next step is measured out of turn
        self.step, self.tau = 0, 0.0
        self.decisions = 0
        self.started = self.calm = False
        self.prediction: Prediction | None = None
        self.last: Observation | None = None
        self.decision: Decision | None = None
        self.state = policy.init()
        self.validation: tuple[int, float] | None = None

    # -- around the optimizer's step ---------------------------------------------------------------------------------

    def prepare_update(self) -> None:
        """Read the weights and write the knobs: the gradients are there, the optimizer is about to act."""
        self.start(())
        self._probe.before_update()
        self._applier.before_update()
        begun = time.perf_counter()  # writing the knobs and the weight decay are the optimizer's work, by other hands
        self._read_knobs()
        self.acting_s = time.perf_counter() - begun

    def _read_knobs(self) -> None:
        """Note the knobs in force in the step under way, and the mean learning rate of the measured layers."""
        in_step = self._applier.in_force()
        if in_step[0] != self._in_step[0]:
            lr = in_step[0]
            self._lr_in_step = math.fsum(lr[layer.group] for layer in self._probe.layers) / len(self._probe.layers)
        self._in_step = in_step

    def finish_update(self) -> None:
        """Read what the optimizer did."""
        self._applier.after_update()
        self._probe.after_update(*self._in_step)

    def start(self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> None:
        """Measure the initial spectrum, let the policy rescale the initialization and set the first knobs."""
        if self.started:
            return
        self.started, begun = True, time.perf_counter()
        if args or kwargs:
            self._probe.trace(*args, **(kwargs or {}))
        terms = self._probe.spectrum()
        self.prediction = Prediction(terms)
        knobs = self._applier.knobs()
        self.last = initial_observation(terms, self._total_steps, knobs, self._chain)
        decision, applied = self._decide(self.last)
        if decision.init_scale and self._mode == "takeover":
            # The run starts from the new weights: the policy too, so that a replay of the recorded run sees the same.
            terms = self._probe.spectrum()
            self.last = initial_observation(terms, self._total_steps, knobs, self._chain)
            self.state = self._policy.init()
            again, then = self._decide(self.last, rescaled=True)
            applied = dataclasses.replace(then, before=applied.before, refused=applied.refused + then.refused)
            reason = "; ".join(dict.fromkeys(part for part in (decision.reason, again.reason) if part))
            decision = dataclasses.replace(again, init_scale=decision.init_scale, reason=reason)
        self._recorder.add_observation(self.last, initial_columns(terms), input_sizes=terms.input_sizes)
        self._record(decision, applied)
        self._probe.charge(time.perf_counter() - begun)
        self._probe.arm(0)

    # -- a step's end --------------------------------------------------------------------------------------------------

    def close_calm(self, loss: torch.Tensor | float | None, begun: float) -> Decision | None:
        """Close a calm step in which nothing is due, in a few calls; ``None``, and nothing done, where that cannot be.

        Nearly all steps of a training end here.
        """
        if self.step + 1 >= self._until or self._probe.ranks.size > 1:  # ranks share their losses
            return None
        if isinstance(loss, torch.Tensor):
            if not loss.is_cpu or loss.numel() != 1:  # read late, or an error that the long way tells
                return None
            loss = loss.item()
        if loss is not None and not (isinstance(loss, float) and math.isfinite(loss)):
            return None
        return self._pass(loss, begun)

    def close_step(self, loss: torch.Tensor | float | None, begun: float) -> Decision:
        """Close a step with its training loss; return the decision in force for the next.

        Args:
            loss: of this step.
            begun: when closing it began, in seconds of ``time.perf_counter``.
        """
        value = self._loss.read(loss)
        calm, self.calm = self.calm, False
        if calm and self.step + 1 < self._until and (value is None or math.isfinite(value)):
            return self._pass(value, begun)
        if calm:
            self._probe.missed()
        self._urgent = value is not None and self._watch.unusual(value)
        return self._advance(value, begun)

    def _pass(self, loss: float | None, begun: float) -> Decision:
        self.step += 1
        self.tau += self._lr_in_step
        if loss is not None and self._watch.unusual(loss):
            self._probe.urge(self.step)
        self.calm = self._probe.pass_over(self.step - 1, begun - self.acting_s)
        assert self.decision is not None
        return self.decision

    def _advance(self, loss: float | None, begun: float) -> Decision:
        if self.last is None:
            raise RuntimeError("the advisor did not start; see the first error in the log")
        step = self.step
        self.step += 1
        self.tau += self._lr_in_step
        if self._total_steps is not None and step >= self._total_steps and not self._beyond:
            self._beyond = True
            _log.warning("the run goes on beyond total_steps = %d: the last step size is held", self._total_steps)
        before_s = time.perf_counter() - begun
        terms = self._probe.collect(step)
        begun = time.perf_counter() - before_s  # collecting has accounted for itself
        if loss is None or math.isfinite(loss):
            self._snapshot.keep(step)
            idle = terms is None and self.step % self._stride and self.step != self._total_steps
            if idle and self.decision is not None:
                return self._go_on(begun, self.decision)
        knobs, overhead = self._applier.knobs(), self._probe.overhead
        if terms is None:
            self.last = refreshed(self.last, step=self.step, tau=self.tau, knobs=knobs, loss=loss, overhead=overhead)
        else:
            self.last = self._measured(terms, knobs, loss, overhead)
        if self.validation is not None:
            at, value = self.validation
            self.last = dataclasses.replace(self.last, validation_loss=value, validation_step=at)
        decision, applied = self._decide(self.last)
        changed = self.decision is None or decision.reason != self.decision.reason
        if terms is not None or changed or decision.rollback or decision.rewind or applied.refused:
            self._record(decision, applied)
        return self._go_on(begun, decision)

    def _go_on(self, begun: float, decision: Decision) -> Decision:
        """Account for the time since ``begun``, and prepare the next step under ``decision``."""
        self.decision = decision
        self._probe.charge(time.perf_counter() - begun + self.acting_s)
        self.acting_s = 0.0
        if self._urgent:  # knobs that were right for the last measurement may be far off by now
            self._probe.urge(self.step)
        self.calm = not self._probe.arm(self.step) and self._mode == "takeover" and self._probe.idle
        if self.calm:
            self._read_knobs()
            decision_at = (self.step // self._stride + 1) * self._stride
            ends = [at for at in (decision_at, self._total_steps) if at is not None and at > self.step]
            self._until = min(*ends, self._snapshot.next_due(self.step) + 1)
        return decision

    def _measured(self, terms: Terms, knobs: tuple[Knobs, ...], loss: float | None, overhead: float) -> Observation:
        assert self.prediction is not None
        rates, bands = self.prediction.update(terms, loss)
        seen = observation(
            terms,
            rates,
            bands,
            total_steps=self._total_steps,
            tau=self.tau,
            knobs=knobs,
            loss=loss,
            overhead=overhead,
        )
        held = self.decision if self._mode == "takeover" else None
        seen, alarm = self.danger.ask(self.prediction, terms, seen, self._watch.level, held)
        self._recorder.add_observation(
            seen,
            extra_columns(terms, rates, self.prediction.reconstruction),
            measure_s=terms.measure_s,
            step_s=terms.step_s,
            alarm=alarm,
            input_sizes=terms.input_sizes,
        )
        if self.prediction.measurements % LAYER_BANDS_EVERY == 1:
            self._recorder.add_forecasts(
                self.step,
                layer_bands(self.prediction.forecaster.forecast(max(HORIZONS)), HORIZONS),
                lr=knobs[0].lr,
                weight_decay=knobs[0].weight_decay,
            )
        return seen

    def _decide(self, seen: Observation, rescaled: bool = False) -> tuple[Decision, Applied]:
        decision, self.state = self._policy.decide(seen, self.state)
        self.decisions += 1
        if rescaled:  # once is enough
            decision = dataclasses.replace(decision, init_scale=())
        applied = self._applier.apply(decision)
        refused = list(applied.refused)
        if self._mode == "takeover":
            if decision.rollback:
                refused += self._go_back("rollback", self._snapshot.restore())
            elif decision.rewind:
                refused += self._go_back("rewind", self._snapshot.restore_validated())
            if self._total_steps is None or self.step <= self._total_steps:
                self._snapshot.average.follow(self.step, decision)
            if decision.weight_scale and self.prediction is not None:
                self.prediction.shift(dict(decision.weight_scale))
        else:
            wished = (("rollback", decision.rollback), ("rewind", decision.rewind))
            refused += [f"{what}: not in {self._mode} mode" for what, asked in wished if asked]
        if self.step == self._total_steps:
            refused += self._snapshot.average.end(decision, self._mode)
        if self._applier.foreign_writes > self._foreign_seen:
            refused.append("foreign_write: overwritten")
            self._foreign_seen = self._applier.foreign_writes
        return decision, dataclasses.replace(applied, refused=tuple(refused))

    def _go_back(self, what: str, restored: bool) -> list[str]:
        """Forget what was learned about weights that are gone; say so where there were none to go back to."""
        if not restored:
            return [f"{what}: no snapshot"]
        before, self.prediction = self.prediction, Prediction(self._probe.spectrum())
        if before is not None:
            self.prediction.measurements, self.prediction.warning = before.measurements, before.warning
            self.prediction.warning.restart()
        return []

    def _record(self, decision: Decision, applied: Applied) -> None:
        self._recorder.add_decision(
            decision, mode=self._mode, before=applied.before, after=applied.after, refused=applied.refused
        )

    def close(self) -> None:
        """The training ends here, wherever that is."""
        self._snapshot.average.close()

    def rearm(self) -> None:
        """Begin the step under way anew: the optimizer was not asked to act."""
        self.calm = False
        if not self.started:  # the model has not been run yet, and starting arms the first step
            return
        self._probe.collect(self.step)
        self._probe.arm(self.step)

    def report_validation(self, loss: float) -> None:
        """Take a validation loss of the weights as they are now, for the policy and for the way back to them.

        After the last step of the run the policy is asked once more: it may end with the weights that validated best.
        """
        self.validation = (self.step, loss)
        self._snapshot.keep_validated(loss)
        if self.last is None or self.step != self._total_steps or self.last.validation_step == self.step:
            return
        self.last = dataclasses.replace(self.last, step=self.step, validation_loss=loss, validation_step=self.step)
        decision, applied = self._decide(self.last)
        if decision.rewind:
            self.decision = decision
            self._record(decision, applied)

    # -- checkpoint --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on: plain values and tensors."""
        return {
            "policy": self._policy.name,
            "policy_state": as_json(self.state),
            "step": self.step,
            "tau": self.tau,
            "started": self.started,
            "validation": None if self.validation is None else list(self.validation),
            "last": as_json(self.last),
            "decision": as_json(self.decision),
            "watch": self._watch.state_dict(),
            "endangered": self.danger.raised,
            "probe": self._probe.state_dict(),
            "applier": self._applier.state_dict(),
            "prediction": None if self.prediction is None else plain(self.prediction.state_dict()),
            "average": self._snapshot.average.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`. Load the model's and the optimizer's state first."""
        self.state = restore_state(self._policy, state["policy_state"])
        self.step, self.tau, self.started = int(state["step"]), float(state["tau"]), bool(state["started"])
        self.validation = None if state["validation"] is None else tuple(state["validation"])
        self.last = None if state["last"] is None else from_json(Observation, state["last"])
        self.decision = None if state["decision"] is None else from_json(Decision, state["decision"])
        if state["prediction"] is not None:  # before the probe's own state, which the spectrum would move on
            self.prediction = Prediction(self._probe.spectrum())
            self.prediction.load_state_dict(arrays(state["prediction"]))
        if "watch" in state:  # not in checkpoints of earlier versions
            self._watch.load_state_dict(state["watch"])
        self.danger.raised = bool(state.get("endangered"))  # likewise
        self._snapshot.average.load_state_dict(state.get("average", {}))  # likewise
        self._probe.load_state_dict(state["probe"])
        self._applier.load_state_dict(state["applier"])
        self._recorder.truncate(self.step + 1)
        self.calm = False
        if self.started:
            self._snapshot.begin()
            self._probe.arm(self.step)
