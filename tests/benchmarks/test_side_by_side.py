"""Tasks in several processes: the same records, each written as it comes, and a failure that is told."""

from __future__ import annotations

import io
import json
import threading
from multiprocessing import Pipe
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from lipadvisor.experiments.benchmarks.command import bench
from lipadvisor.experiments.benchmarks.progress import Progress
from lipadvisor.experiments.benchmarks.side_by_side import Plan, WorkerError, _take, serve, side_by_side
from lipadvisor.experiments.benchmarks.store import Results

_SMALL = Plan("baselines", seeds=1, trials=4, decide_every=5, default="lipschitz", arms=("revalidated",))


def _alone(folder, names, plan):
    results = Results(folder / "alone.json")
    getattr(plan.bench(results, names, Progress(1.0, io.StringIO())), plan.suite)()
    return results.records


def _served(plan, *requests):
    """Return what ``serve`` sends for the requests, which it is sent before it begins."""
    ours, theirs = Pipe()
    for request in (*requests, None):
        ours.send(request)
    thread = threading.Thread(target=serve, args=(theirs, plan))
    thread.start()
    thread.join()
    theirs.close()
    found = []
    while ours.poll():
        try:
            found.append(ours.recv())
        except EOFError:
            break
    return found


def test_a_worker_hands_over_the_records_of_a_process_alone(tmp_path):
    told = _served(_SMALL, ("wine", {}))
    handed = {key: record for kind, content in told if kind == "records" for key, record in content.items()}
    assert handed == _alone(tmp_path, ["wine"], _SMALL)
    assert told[-1] == ("finished", "wine")
    assert sum(content[1] for kind, content in told if kind == "progress") > 0
    again = _served(_SMALL, ("wine", handed))
    assert not [kind for kind, _ in again if kind == "records"]


def test_a_worker_tells_what_failed_and_goes_on():
    told = _served(_SMALL, ("nope", {}), ("nope", {}))
    assert [kind for kind, _ in told] == ["failed", "failed"]
    assert "KeyError" in told[0][1]


def test_a_worker_that_was_ended_is_told_with_its_exit_code(tmp_path):
    ours, theirs = Pipe()
    theirs.close()
    ended = SimpleNamespace(join=lambda: None, exitcode=-9)
    with pytest.raises(WorkerError, match="exit code -9"):
        _take(ours, ended, Results(tmp_path / "r.json"), Progress(1.0, io.StringIO()))


def test_records_come_back_from_the_file_as_they_were(tmp_path):
    results = Results(tmp_path / "r.json")
    for place in range(3):
        results.add({"task": "a", "seed": place}, {"test": 0.1 * place, "why": '"quoted"\n'})
        results.write()
    results.add({"task": "a", "seed": 1}, {"test": float("nan")})
    results.write()
    again = Results(tmp_path / "r.json")
    assert list(again.records) == list(results.records)
    assert again.record({"seed": 0, "task": "a"}) == results.record({"task": "a", "seed": 0})
    assert again.record({"task": "a", "seed": 1})["test"] != again.record({"task": "a", "seed": 1})["test"]
    assert len((tmp_path / "r.json").read_text().splitlines()) == 5


@pytest.mark.slow
def test_two_processes_make_the_records_of_one_and_leave_the_rest_to_another_time(tmp_path):
    names = ["wine", "iris", "alcohol_table"]
    results, progress = Results(tmp_path / "r.json"), Progress(1.0, io.StringIO(), every_s=1e9)
    with pytest.raises(WorkerError, match="nope: "):
        side_by_side(results, ["wine", "nope"], _SMALL, 1, progress)
    assert {record["spec"]["task"] for record in json.loads(results.path.read_text())["records"].values()} == {"wine"}
    side_by_side(results, names, _SMALL, 2, progress)
    assert Results(results.path).records == _alone(tmp_path, names, _SMALL)


@pytest.mark.slow
def test_the_table_of_two_workers_is_that_of_one(tmp_path):
    options = [
        "policies",
        "--list",
        "design",
        "--task",
        "wine",
        "--task",
        "iris",
        "--seeds",
        "1",
        "--trials",
        "4",
        "--arm",
        "blind",
    ]
    told = [
        CliRunner().invoke(bench, [*options, "--workers", workers, "--out", str(tmp_path / workers)])
        for workers in ("1", "2")
    ]
    assert [result.exit_code for result in told] == [0, 0]
    assert told[0].stdout == told[1].stdout.replace(str(tmp_path / "2"), str(tmp_path / "1"))
