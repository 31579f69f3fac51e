"""One training run: the workload's loop under an advisor with the arm's policy, as Ray Tune calls it."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from lipadvisor.advisor import Advisor
from lipadvisor.experiments.arms import ARMS
from lipadvisor.experiments.records import SEARCH, Job, Record
from lipadvisor.experiments.settings import Settings
from lipadvisor.experiments.workloads import WORKLOADS
from lipadvisor.policies import as_json, from_json

if TYPE_CHECKING:  # the trial's function needs no Ray of its own
    from lipadvisor.tune import TrialContext

__all__ = ["decode_state", "encode_state", "train", "trial_config"]

_SPARSE_OVERHEAD = 0.1  # where a schedule is searched that reads no measurement
_CHECKPOINTS = 3  # of a trial, spread over its evaluations


def trial_config(job: Job, settings: Settings) -> dict[str, Any]:
    """Return the configuration that :func:`train` takes, as JSON."""
    sparse = job.stage == SEARCH and ARMS[job.arm].baseline
    every_step = settings.max_overhead is None and not sparse
    return {
        "job": as_json(job),
        "steps": settings.steps,
        "evaluations": settings.evaluations,
        "max_overhead": settings.max_overhead or _SPARSE_OVERHEAD,
        "interval": 1 if every_step else None,
    }


def train(context: TrialContext) -> Mapping[str, Any]:
    """Train one model and return its losses; validation is for selection, test is only reported.

    The baselines run through the same advisor as everything else, so each trial's trajectory is recorded alike. A
    checkpoint is kept now and then; a trial that was killed goes on from its last one.
    """
    torch.set_num_threads(1)
    config = context.config
    job = from_json(Job, config["job"])
    steps, evaluations = int(config["steps"]), int(config["evaluations"])
    workload, arm = WORKLOADS[job.workload], ARMS[job.arm]
    data, model = workload.load(), workload.model(job.seed)
    optimizer = workload.optimizer(model)
    advisor = Advisor(
        model,
        optimizer,
        steps,
        policy=context.policy(arm.policy(job.parameters)),
        max_overhead=config["max_overhead"],
        interval=config["interval"],
        seed=job.seed,
        sink=context.sink,
    )
    curve: list[list[Any]] = []
    done, spent_before = 0, 0.0
    state = context.restore()
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        advisor.load_state_dict(state["advisor"])
        curve, done, spent_before = state["curve"], state["step"], state["seconds"]
    begun = time.perf_counter()
    batches = workload.batches(data, job.seed, position=done)
    due = {round(steps * (index + 1) / evaluations) for index in range(evaluations)} | {steps}
    kept = {sorted(due)[len(due) * (index + 1) // (_CHECKPOINTS + 1)] for index in range(_CHECKPOINTS)} - {steps}
    with advisor:
        while done < steps:
            inputs, targets = next(batches)
            loss = workload.loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            advisor.step(loss)
            done += 1
            if done not in due:
                continue
            validation = workload.evaluate(model, data.validation)
            advisor.report_validation(validation.loss)
            curve.append([done, _finite(loss.item()), _finite(validation.loss)])
            spent = spent_before + time.perf_counter() - begun
            checkpoint = None
            if done in kept:
                checkpoint = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "advisor": advisor.state_dict(),
                    "curve": curve,
                    "step": done,
                    "seconds": spent,
                }
            context.report({"step": done, "validation_loss": validation.loss}, checkpoint)
        overhead = advisor.overhead
    validation, test = workload.evaluate(model, data.validation), workload.evaluate(model, data.test)
    finite = math.isfinite(validation.loss) and math.isfinite(test.loss)
    return Record(
        job,
        "finished" if finite else "diverged",
        steps=done,
        seconds=spent_before + time.perf_counter() - begun,
        overhead=overhead,
        validation_loss=_finite(validation.loss),
        validation_accuracy=_finite(validation.accuracy),
        test_loss=_finite(test.loss),
        test_accuracy=_finite(test.accuracy),
        advisor_errors=advisor.errors,
        curve=tuple((int(step), train_loss, loss) for step, train_loss, loss in curve),
    ).as_result()


def encode_state(state: Any) -> bytes:
    """Return a checkpoint's state as bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def decode_state(content: bytes) -> Any:
    """Read back :func:`encode_state`; nothing but tensors and plain values is ever built."""
    return torch.load(io.BytesIO(content), weights_only=True)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
