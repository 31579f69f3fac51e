"""The demo through its real command line and real Ray: whole, stopped and resumed, and decided at the hub."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lipadvisor import load_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = ("--quick", "--workload", "digits_mlp", "--replicates", "1")


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    """A directory of the user's own, whose packages have our folders' names and must never be imported."""
    for name in ("policies", "experiments"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the user''s own package was imported')\n")
    return tmp_path


def _start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lipadvisor", "demo", "--out", "run", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _whole(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=500)[0]


def test_stopped_by_ctrl_c_the_same_command_goes_on_to_the_end(user_folder: Path) -> None:
    first = _start(user_folder, *SMALL)
    assert first.stdout is not None
    said = []
    watchdog = threading.Timer(300, first.kill)
    watchdog.start()
    for line in first.stdout:
        said.append(line)
        if line.startswith("1/"):
            first.send_signal(signal.SIGINT)
            break
    said.append(_whole(first))
    watchdog.cancel()
    output = "".join(said)
    assert first.returncode == 130, output
    assert "the same command goes on" in output
    kept = sorted(path.name for path in (user_folder / "run" / "results").iterdir())
    assert kept, output

    second = _start(user_folder, *SMALL)
    output = _whole(second)
    assert second.returncode == 0, output
    assert f"Resuming in run: {len(kept)} of 4 trials" in output
    assert "lipschitz" in output
    assert "Report: " in output
    run = load_run(user_folder / "run")
    finished = {name: facts for name, facts in run.meta["trials"].items() if facts["result"]}
    assert len(finished) == 4
    assert set(finished) == set(run.trials)  # what was cut off has been finished, under its own name
    assert all(facts["lost_batches"] == 0 for facts in finished.values())
    assert all(facts["result"]["advisor_errors"] == 0 for facts in finished.values())
    assert set(run.decisions["source"]) == {"local"}
    page = (user_folder / "run" / "report.html").read_text()
    assert "http" not in page
    assert page.count("<svg") >= 4

    third = _start(user_folder, *SMALL)
    output = _whole(third)
    assert third.returncode == 0, output
    assert "is finished" in output

    other = _start(user_folder, *SMALL, "--steps", "31")
    output = _whole(other)
    assert other.returncode == 2
    assert "steps 31, was 30" in output


def test_decisions_at_the_hub_ride_back_to_the_trials(tmp_path: Path) -> None:
    process = _start(tmp_path, *SMALL, "--policy-at", "hub", "--arm", "lipschitz")
    output = _whole(process)
    assert process.returncode == 0, output
    sources = load_run(tmp_path / "run").decisions["source"].value_counts()
    assert set(sources.index) <= {"hub", "local:late"}
    assert sources["hub"] > 0
