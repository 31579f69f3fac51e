"""Lists, scores, suites, store, and a whole small bench that resumes."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from lipadvisor.experiments.benchmarks import report
from lipadvisor.experiments.benchmarks.baseline import draw_trials
from lipadvisor.experiments.benchmarks.command import bench
from lipadvisor.experiments.benchmarks.lists import CONFIRMATION, DESIGN, HORIZON_TASKS, QUICK, TASKS
from lipadvisor.experiments.benchmarks.population import Population
from lipadvisor.experiments.benchmarks.score import FAILED_RATIO, loss_ratio, summary, table
from lipadvisor.experiments.benchmarks.suites import perturbed_constants, scale_all, scale_each
from lipadvisor.experiments.benchmarks.task import batch_order
from lipadvisor.policies import Cosine, Lipschitz


def test_the_lists_are_separate_and_large_enough():
    assert len(TASKS) == len(DESIGN) + len(CONFIRMATION) >= 16
    assert {task.optimizer for task in TASKS.values()} == {"adamw", "sgd", "muon"}
    assert set(TASKS) >= QUICK | HORIZON_TASKS


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_splits_are_finite_and_the_model_has_no_buffers(task):
    data = task.load()
    assert len(data.train) >= task.batch_size
    assert not list(task.model(0).buffers())
    torch.testing.assert_close(dict(task.model(1).named_parameters()), dict(task.model(1).named_parameters()))
    for split in (data.train, data.validation, data.test):
        assert len(split.inputs) == len(split.targets) > 0
        assert bool(split.inputs.isfinite().all())


def test_the_confirmation_list_has_one_task_of_each_family_and_shares_no_data_with_the_other():
    summaries = " ".join(task.summary for task in CONFIRMATION)
    families = (
        "plain SiLU MLP",
        "BatchNorm ResNet",
        "pre-LN",
        "post-LN",
        "antisymmetric state",
        "tanh of two states",
        "mixer",
    )
    families += ("GroupNorm", "teacher", "low-noise", "autoencoder", "patches", "of the labels", "batches of four")
    assert all(summaries.count(family) == 1 for family in (*families, "batches of four", "seen once"))
    assert sum(task.small_table for task in CONFIRMATION) == 5
    assert {task.optimizer for task in CONFIRMATION} == {"adamw", "sgd", "muon"}

    def source(task):
        load = getattr(task.load, "func", task.load)
        return load.__module__, load.__name__

    assert not {source(task) for task in CONFIRMATION} & {source(task) for task in DESIGN}


def test_the_draws_of_the_confirmation_list_are_the_same_in_every_process():
    code = "from lipadvisor.experiments.benchmarks.lists import CONFIRMATION as c; print([t.steps for t in c])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(told) == [task.steps for task in CONFIRMATION]


@pytest.mark.parametrize("name", ["one_pass", "votes", "orders", "nearest", "tallies", "sectors"])
def test_each_row_of_a_stream_is_seen_once(name):
    task = TASKS[name]
    rows = batch_order(len(task.load().train), task.batch_size, task.steps, seed=0)
    assert len(rows.unique()) == rows.numel() == len(task.load().train)


def test_batches_repeat_by_seed_and_cover_an_epoch():
    order = batch_order(10, 3, 7, seed=5)
    assert order.shape == (7, 3)
    assert torch.equal(order, batch_order(10, 3, 7, seed=5))
    assert not torch.equal(order, batch_order(10, 3, 7, seed=6))
    assert len(set(order[:3].flatten().tolist())) == 9


def test_trials_stay_in_their_ranges_and_follow_the_policies_schedules():
    task = TASKS["wine"]
    trials = draw_trials(task, 64)
    assert len({trial.schedule for trial in trials}) == 4
    assert draw_trials(task, 64) == trials
    for trial in trials:
        assert 1e-3 <= trial.lr <= 1.0
        assert 2e-3 <= trial.lr * trial.weight_decay * task.steps <= 3.1
        assert max(trial.plan(task.steps)) <= trial.lr * 1.000001


def test_ratios_are_paired_geometric_means_and_failures_count():
    assert loss_ratio([2.0, 0.5], [1.0, 1.0]) == pytest.approx(1.0)
    assert loss_ratio([math.nan], [1.0]) == pytest.approx(FAILED_RATIO)
    assert loss_ratio([2.0, 3.0], [1.0, math.nan]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="finite"):
        loss_ratio([1.0], [math.inf])
    figures = summary([0.9, 1.0, 1.04, 1.2, 50.0])
    assert figures.median == 1.04
    assert figures.within_5 == pytest.approx(0.6)
    assert figures.failed == 1
    assert "| a | 2 |" in table({"a": {"x": 1.0, "y": 2.0}}, "title")
    with pytest.raises(ValueError, match="at least one"):
        summary([])


def test_scaling_is_by_member_and_by_seed():
    population = Population(TASKS["wine"], (0, 0, 0))
    scale_all((1.0, 10.0, 0.1))(population)
    key = population.matrices[0]
    torch.testing.assert_close(population.parameters[key][1], population.parameters[key][0] * 10.0)
    again = Population(TASKS["wine"], (0, 1))
    plain = {name: value.clone() for name, value in again.parameters.items()}
    scale_each(1.0)(again)
    for name in again.matrices:
        factors = (again.parameters[name] / plain[name]).flatten(1).nanmedian(1).values
        assert float(factors.min()) >= 0.0999
        assert float(factors.max()) <= 10.01
        assert float(factors[0]) != pytest.approx(float(factors[1]))


def test_constants_are_moved_by_the_factor_or_as_far_as_the_constructor_lets_them():
    changed = perturbed_constants(Lipschitz())
    assert len(changed) >= 6
    assert all(policy != Lipschitz() for policy in changed.values())
    assert perturbed_constants(Cosine(lr=0.01))["lrx8"].lr == pytest.approx(0.08)


@pytest.fixture
def stand_in(monkeypatch):
    """Put a task of the design list in the place of the confirmation list, which no test may use up."""
    monkeypatch.setattr(report, "CONFIRMATION", (TASKS["alcohol_table"],))


@pytest.mark.slow
def test_a_small_bench_runs_resumes_and_writes_its_three_files(tmp_path, stand_in):
    options = ["policies", "--out", str(tmp_path), "--task", "wine", "--task", "alcohol_table"]
    options += ["--seeds", "2", "--trials", "8", "--threads", "1"]
    first = CliRunner().invoke(bench, options, catch_exceptions=False)
    assert first.exit_code == 0
    assert "design, suite zero" in first.output
    assert "confirmation, suite zero" in first.output
    assert (tmp_path / "zero.md").exists()
    assert (tmp_path / "zero.svg").exists()
    records = json.loads((tmp_path / "results.json").read_text())["records"]
    assert any(record["spec"].get("arm") == "frozen" for record in records.values())
    stamp = (tmp_path / "results.json").stat().st_mtime_ns
    second = CliRunner().invoke(bench, options, catch_exceptions=False)
    assert second.stdout == first.stdout
    assert (tmp_path / "results.json").stat().st_mtime_ns == stamp
    init = CliRunner().invoke(bench, [*options, "--suite", "init"], catch_exceptions=False)
    assert "suite init" in init.output


def test_baselines_alone_run_no_policy_and_are_found_by_the_other_suites(tmp_path, stand_in):
    options = ["policies", "--out", str(tmp_path), "--task", "alcohol_table", "--list", "confirmation"]
    options += ["--seeds", "1", "--trials", "4", "--threads", "1"]
    alone = CliRunner().invoke(bench, [*options, "--suite", "baselines"], catch_exceptions=False)
    assert "confirmation, suite baselines" in alone.output
    before = json.loads((tmp_path / "results.json").read_text())["records"]
    told = sorted(record["spec"]["arm"] for record in before.values())
    assert told == ["prodigy", "revalidated", "schedule_free", "tuned"]
    CliRunner().invoke(bench, [*options, "--arm", "foreign", "--arm", "revalidated"], catch_exceptions=False)
    after = json.loads((tmp_path / "results.json").read_text())["records"]
    added = [record["spec"].get("arm", "policy") for key, record in after.items() if key not in before]
    assert sorted(added) == ["frozen", "policy"]


def test_a_second_search_draws_other_trials_and_is_told_as_an_arm(tmp_path, stand_in):
    options = ["policies", "--out", str(tmp_path), "--task", "alcohol_table", "--list", "confirmation"]
    options += ["--seeds", "1", "--trials", "4", "--threads", "1", "--suite", "baselines", "--arm", "searched"]
    told = CliRunner().invoke(bench, options, catch_exceptions=False)
    assert "tuned, searched again" in told.output
    records = json.loads((tmp_path / "results.json").read_text())["records"]
    searches = {r["spec"]["arm"]: r["search"] for r in records.values() if r["spec"]["arm"] in ("tuned", "searched")}
    rates = [{trial["lr"] for trial in search} for search in searches.values()]
    assert len(rates) == 2
    assert not rates[0] & rates[1]


def test_an_unknown_task_is_one_line(tmp_path):
    result = CliRunner().invoke(bench, ["policies", "--out", str(tmp_path), "--task", "nope"])
    assert result.exit_code == 1
    assert "--task must be one of" in result.output


def test_variants_never_see_the_confirmation_list(tmp_path):
    result = CliRunner().invoke(bench, ["policies", "--out", str(tmp_path), "--suite", "variants"])
    assert result.exit_code == 1
    assert "design list alone" in result.output
