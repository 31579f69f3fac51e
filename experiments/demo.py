"""The main job, end to end: search all arms on all workloads, repeat what was selected, compare, report."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TextIO, cast

from torch import Tensor

from lipadvisor import __version__
from lipadvisor.experiments.arms import ARMS
from lipadvisor.experiments.campaign import Campaign
from lipadvisor.experiments.comparison import compare
from lipadvisor.experiments.directory import open_directory, write_run
from lipadvisor.experiments.progress import Progress, duration
from lipadvisor.experiments.settings import Settings
from lipadvisor.experiments.source import CampaignSource
from lipadvisor.experiments.table import comparison_table
from lipadvisor.experiments.trial import decode_state, encode_state, train
from lipadvisor.experiments.workloads import WORKLOADS, Workload
from lipadvisor.report import write_report
from lipadvisor.trajectory import write_json, write_text

__all__ = ["FINISHED", "INTERRUPTED", "run_demo"]

FINISHED, INTERRUPTED = 0, 130  # exit codes


def run_demo(
    settings: Settings,
    out: Path,
    *,
    stream: TextIO,
    address: str | None = None,
    concurrent: int = 2,
    fresh: bool = False,
) -> int:
    """Run the comparison, or the rest of it, and write its report.

    Args:
        settings: what to compare.
        out: the run's directory; the same one with the same settings resumes.
        stream: for progress and the table.
        address: Ray cluster to join; a local Ray if None and ``RAY_ADDRESS`` is not set.
        concurrent: trials at a time, >= 1.
        fresh: start over in a directory that holds an earlier comparison.

    Returns:
        ``FINISHED``, or ``INTERRUPTED`` after Ctrl-C: what is done is kept.

    Raises:
        ValueError: ``concurrent`` is below 1, or the directory cannot be used; nothing has been done then.
        ConnectionError: the cluster cannot be reached.
    """
    if concurrent < 1:
        raise ValueError(f"concurrent must be at least 1, got {concurrent}.")
    with open_directory(out, settings, fresh=fresh) as facts:
        spaces = {
            (workload, arm): ARMS[arm].space(WORKLOADS[workload].optimizer_kind)
            for workload in settings.workloads
            for arm in settings.arms
        }
        campaign = Campaign(out, spaces, settings.trials, settings.replicates, settings.seed)
        if campaign.finished:
            _say(stream, f"This comparison is finished ({campaign.done} trials in {out}); its report is built again.")
            return _finish(settings, out, facts, campaign, stream)
        if campaign.done:
            _say(stream, f"Resuming in {out}: {campaign.done} of {campaign.total} trials are there.")
        else:
            _say(stream, f"{campaign.total} trials of {settings.steps} steps, {concurrent} at a time, into {out}.")
        _say(stream, "Starting Ray ...")
        begun = time.monotonic()
        interrupted = _run(campaign, settings, out, stream, address, concurrent)
        facts["seconds"] += time.monotonic() - begun
        if interrupted:
            _record(settings, out, facts, campaign, "interrupted")
            _say(
                stream,
                f"Stopped. {campaign.done} of {campaign.total} trials are kept in {out}, trajectories included; "
                "the same command goes on from here.",
            )
            return INTERRUPTED
        return _finish(settings, out, facts, campaign, stream)


def _run(
    campaign: Campaign, settings: Settings, out: Path, stream: TextIO, address: str | None, concurrent: int
) -> bool:
    """Run what is left; return whether it was stopped."""
    from lipadvisor.tune import StateFormat, run_trials  # imports Ray: some seconds

    progress = Progress(stream, campaign.done, lambda: campaign.total)
    for record in campaign.results.all():
        progress.add(record, count=False)
    try:
        outcome = run_trials(
            train,
            CampaignSource(campaign, settings, progress),
            out=out,
            concurrent=concurrent,
            address=address,
            policy_at=cast(Literal["trial", "hub"], settings.policy_at),
            state_format=StateFormat(encode_state, decode_state),
        )
    finally:
        progress.close()
    for name, error in outcome.failures.items():
        _say(stream, f"{name} failed: {error}")
    return outcome.interrupted


def _finish(settings: Settings, out: Path, facts: dict[str, Any], campaign: Campaign, stream: TextIO) -> int:
    comparison = _record(settings, out, facts, campaign, "finished")
    _audit_models(settings, out, stream)
    report = write_report(out)
    _say(stream, "\n" + comparison_table(comparison))
    _say(stream, f"\n{campaign.done} trials in {duration(facts['seconds'])} of computing. Report: {report.resolve()}")
    return FINISHED


def _audit_models(settings: Settings, out: Path, stream: TextIO) -> None:
    """Leave an audit of each untrained model for the report; one that fails is said, and costs no report."""
    from lipadvisor.modules import audit

    for name in settings.workloads:
        path, workload = out / f"audit-{name}.html", WORKLOADS[name]
        if path.exists():
            continue
        try:
            inputs, targets = next(iter(workload.batches(workload.load(), settings.seed)))
            found = audit(
                workload.model(settings.seed),
                inputs,
                loss=functools.partial(_loss_of, workload, targets),
                total_steps=settings.steps,
            )
        except (RuntimeError, ValueError, TypeError) as error:
            _say(stream, f"No audit of {name}: {error}")
        else:
            write_text(path, found.to_fragment())


def _loss_of(workload: Workload, targets: Tensor, output: Tensor) -> Tensor:
    return workload.loss(output, targets)


def _record(settings: Settings, out: Path, facts: dict[str, Any], campaign: Campaign, state: str) -> Mapping[str, Any]:
    """Write ``comparison.json`` and ``run.json`` as things stand, and return the comparison."""
    arms = {
        name: {
            "summary": ARMS[name].summary,
            "baseline": ARMS[name].baseline,
            "searched": bool(ARMS[name].space("adamw")),
        }
        for name in settings.arms
    }
    workloads = {name: WORKLOADS[name].summary for name in settings.workloads}
    comparison = compare(campaign.results, arms, workloads, settings.seed)
    write_json(out / "comparison.json", comparison)
    facts |= {
        "title": "Lipschitz-aware schedules against tuned baselines",
        "state": state,
        "done": campaign.done,
        "total": campaign.total,
        "header": _header(settings, facts),
    }
    write_run(out, facts)
    return comparison


def _header(settings: Settings, facts: Mapping[str, Any]) -> dict[str, str]:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "ray", "optuna", "numpy"))
    measured = (
        "every step; in the baselines' searches, whose schedules read no measurement, within a tenth of the "
        "time, or half a second"
        if settings.max_overhead is None
        else f"within {settings.max_overhead:.0%} of a trial's time, or half a second"
    )
    return {
        "What ran": f"{', '.join(settings.arms)} on {', '.join(settings.workloads)}",
        "Search": f"{settings.trials} configurations for each tuned arm and workload, {settings.steps} steps each, "
        "selected by validation loss",
        "Repetitions": f"{settings.replicates} fresh seeds for each selected configuration, the same for every arm",
        "Seed": str(settings.seed),
        "Decisions at": "the trial" if settings.policy_at == "trial" else "the hub, over the streamed trajectory",
        "Measured": measured,
        "Ended": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Computing": f"{duration(facts['seconds'])} min on {os.cpu_count()} cores ({platform.machine()})",
        "Versions": f"lipadvisor {__version__}, Python {platform.python_version()}, {versions}",
    }


def _say(stream: TextIO, text: str) -> None:
    stream.write(text + "\n")
    stream.flush()
