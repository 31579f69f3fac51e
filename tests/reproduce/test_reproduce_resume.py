"""A reproduction that is killed in the middle goes on from what is there, and ends as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from lipadvisor.experiments.reproduce import Settings
from lipadvisor.experiments.reproduce.command import reproduce
from lipadvisor.experiments.reproduce.kept import kept_part

PARTS = {"contraction": "runs/*.json", "validation": "runs/*.npz", "module-constants": "runs/*.json"}


def started(name: str, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lipadvisor", "reproduce", name, "--quick", "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PARTS)
def test_a_killed_run_resumes_without_computing_anything_twice(tmp_path: Path, name: str) -> None:
    whole = started(name, tmp_path / "whole")
    told = whole.communicate(timeout=300)[0]
    assert whole.returncode == 0, told

    killed, folder = started(name, tmp_path / "cut"), tmp_path / "cut" / name
    until = time.monotonic() + 200
    while len(list(folder.glob(PARTS[name]))) < 2:
        assert killed.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (folder / "verdict.json").exists()
    before = {path: path.stat().st_mtime_ns for path in folder.glob(PARTS[name])}

    resumed = started(name, tmp_path / "cut")
    told = resumed.communicate(timeout=300)[0]
    assert resumed.returncode == 0, told
    assert told.count("kept from before") == len(before) >= 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for file in ("data.json", "verdict.json"):
        assert (folder / file).read_bytes() == (tmp_path / "whole" / name / file).read_bytes()


def test_a_part_is_made_once_for_the_same_numbers_and_again_for_others(tmp_path: Path) -> None:
    made, said = [], []

    def make() -> dict[str, object]:
        made.append(1)
        return {"loss": 0.1 + 0.2, "lost": float("inf"), "rates": (1, 2)}

    settings = Settings(tmp_path, seed=3, quick=True, progress=said.append)
    first = kept_part(settings, "SGD 0.3 %", (200, 64), make)
    assert first == {"loss": 0.1 + 0.2, "lost": float("inf"), "rates": [1, 2]}
    assert kept_part(settings, "SGD 0.3 %", (200, 64), make) == first
    assert len(made) == 1
    assert said == ["SGD 0.3 %: kept from before"]
    kept_part(settings, "SGD 0.3 %", (100, 64), make)
    kept_part(Settings(tmp_path, seed=3, quick=False, progress=said.append), "SGD 0.3 %", (100, 64), make)
    kept_part(Settings(tmp_path, seed=4, quick=False, progress=said.append), "SGD 0.3 %", (100, 64), make)
    assert len(made) == 4


@pytest.mark.slow
def test_fresh_leaves_nothing_of_the_run_before(tmp_path: Path) -> None:
    arguments = ["depth", "--quick", "--out", str(tmp_path)]
    assert CliRunner().invoke(reproduce, arguments).exit_code == 0
    parts = sorted((tmp_path / "depth" / "runs").glob("*.json"))
    assert parts
    for path in parts:
        kept = json.loads(path.read_text())
        kept["value"]["log_bound"] = 1e9
        path.write_text(json.dumps(kept))
    assert "done before" in CliRunner().invoke(reproduce, arguments).output
    again = CliRunner().invoke(reproduce, [*arguments, "--fresh"])
    assert again.exit_code == 0
    assert "kept from before" not in again.output
    assert all(json.loads(path.read_text())["value"]["log_bound"] < 1e6 for path in parts)
