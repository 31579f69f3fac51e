"""What records are kept under, how far a bench says it is, and what it says when it cannot go on."""

from __future__ import annotations

import io

import pytest
from click.testing import CliRunner

from lipadvisor.experiments.benchmarks import bench as bench_module
from lipadvisor.experiments.benchmarks.bench import Bench
from lipadvisor.experiments.benchmarks.command import ARMS, SUITES, bench
from lipadvisor.experiments.benchmarks.frozen import frozen_hash, source_files
from lipadvisor.experiments.benchmarks.lists import (
    CONFIRMATION,
    DESIGN,
    HORIZON_TASKS,
    INTERVAL_TASKS,
    QUICK,
    SHOCK_TASKS,
    TASKS,
)
from lipadvisor.experiments.benchmarks.progress import Progress
from lipadvisor.experiments.benchmarks.report import NO_BASELINE, _work
from lipadvisor.experiments.benchmarks.rules import FirstRule
from lipadvisor.experiments.benchmarks.runs import ZERO_ARMS
from lipadvisor.experiments.benchmarks.store import Results, _further_files, task_fingerprint
from lipadvisor.policies import Cosine, Lipschitz, every


def test_the_hash_is_of_the_constants_and_of_what_the_policy_is_made_of():
    names = {path.stem for path in source_files(Lipschitz())}
    assert names >= {"lipschitz", "spectral_rate", "lipschitz_budget", "guard", "chain", "contract"}
    assert not names & {"greedy", "portfolio", "attended", "plateau"}
    assert {path.stem for path in source_files(every(Cosine(), 3))} >= {"combine", "schedules"}
    assert "rules" in {path.stem for path in source_files(FirstRule())}
    assert frozen_hash(Lipschitz()) == frozen_hash(Lipschitz())
    assert frozen_hash(Lipschitz(budget=0.4)) != frozen_hash(Lipschitz())


def test_progress_counts_what_was_there_without_taking_it_for_speed():
    stream = io.StringIO()
    progress = Progress(100.0, stream, every_s=0.0)
    progress.skip(50.0)
    assert progress.share == 0.5
    progress.add(25.0, "task")
    assert stream.getvalue().startswith(" 75%  0:00 left  task")


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["zero", "baselines", "init", "grid", "constants", "variants", "shocks"])
def test_the_work_announced_is_the_work_counted(tmp_path, suite):
    task = TASKS["wine"]
    progress = Progress(1.0, io.StringIO(), every_s=1e9)
    first = Bench(Results(tmp_path / "r.json"), [task], seeds=1, trials=4, progress=progress)
    getattr(first, suite)()
    announced = _work(task, suite, 1, 4, "lipschitz")
    assert progress._done == pytest.approx(announced, rel=0.25)
    again = Progress(1.0, io.StringIO(), every_s=1e9)
    known = Bench(Results(tmp_path / "r.json"), [task], seeds=1, trials=4, progress=again)
    getattr(known, suite)()
    assert again._worked == 0.0
    skipped = 0.0 if suite in NO_BASELINE else known.known_baselines()
    assert again._done + skipped == pytest.approx(announced, rel=0.25)


def test_the_interval_suite_compares_forecast_with_reactive(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_module, "INTERVALS", (40,))
    found = Bench(Results(tmp_path / "r.json"), [TASKS["wine"]], seeds=1).interval()
    assert set(found) == {f"{arm} 40" for arm in ("reactive", "forecast", "told", "rollback only", "lead time")}
    assert set(found["reactive 40"]) == {"wine init x1", "wine init x3"}
    assert all(ratio > 0.0 for ratios in found.values() for ratio in ratios.values())
    assert {task.name for task in DESIGN} & INTERVAL_TASKS
    assert set(TASKS) >= INTERVAL_TASKS


def test_a_broken_results_file_is_one_line_and_stays(tmp_path):
    (tmp_path / "results.json").write_text("[1, 2")
    result = CliRunner().invoke(bench, ["policies", "--out", str(tmp_path), "--task", "wine"])
    assert result.exit_code == 1
    assert "holds no records of a bench" in result.output
    assert (tmp_path / "results.json").read_text() == "[1, 2"


def test_no_task_left_is_one_line(tmp_path):
    result = CliRunner().invoke(bench, ["policies", "--out", str(tmp_path), "--task", "wine", "--list", "confirmation"])
    assert result.exit_code == 1
    assert "no task is left by --list confirmation" in result.output


def test_an_interrupt_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "zero", interrupted)
    result = CliRunner().invoke(bench, ["policies", "--out", str(tmp_path), "--task", "wine", "--threads", "1"])
    assert result.exit_code == 1
    assert "the same command goes on from" in result.output


def test_help_names_every_suite_and_arm():
    text = CliRunner().invoke(bench, ["policies", "--help"]).output
    assert all(f"  {name} " in text for name in (*SUITES, *ARMS))


def test_the_command_names_the_arms_that_the_bench_knows_and_leaves_the_second_search_to_who_asks(
    monkeypatch, tmp_path
):
    asked = []
    monkeypatch.setattr(
        "lipadvisor.experiments.benchmarks.report.run_lists", lambda out, **options: asked.append(options["arms"]) or ""
    )
    for more in ((), ("--arm", "searched")):
        assert CliRunner().invoke(bench, ["policies", "--out", str(tmp_path), *more]).exit_code == 0
    assert asked == [ZERO_ARMS, ("searched",)]
    assert {*ARMS} == {*ZERO_ARMS, "searched"}


def test_every_task_of_a_list_is_named():
    lines = CliRunner().invoke(bench, ["tasks", "--list", "design"]).output.splitlines()
    assert [line.split()[0] for line in lines] == [task.name for task in DESIGN]
    assert len(CliRunner().invoke(bench, ["tasks"]).output.splitlines()) == len(TASKS)


def test_what_is_run_often_is_of_the_design_list_alone():
    design = {task.name for task in DESIGN}
    for often in (QUICK, INTERVAL_TASKS, SHOCK_TASKS, HORIZON_TASKS):
        assert often <= design
    assert len(CONFIRMATION) >= 10
    assert not design & {task.name for task in CONFIRMATION}
    assert len(TASKS) == len(DESIGN) + len(CONFIRMATION)


def test_a_task_of_other_modules_has_their_source_in_its_fingerprint():
    common, further = TASKS["wine"], TASKS["adding"]
    assert not _further_files(common)
    assert [path.name for path in _further_files(further)] == ["more_networks.py", "more_sources.py"]
    assert task_fingerprint(common)["source"] != task_fingerprint(further)["source"]
