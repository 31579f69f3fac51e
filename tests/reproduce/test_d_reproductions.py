"""Every reproduction of [D], in its small version: files, verdict computed from them, nothing run twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lipadvisor.experiments.reproduce import REPRODUCTIONS
from lipadvisor.experiments.reproduce.command import reproduce

NAMES = [name for name, (_, source) in REPRODUCTIONS.items() if source == "D"]


def test_all_seven_are_there() -> None:
    assert len(NAMES) == 7


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_quick_version(tmp_path: Path, name: str) -> None:
    arguments = [name, "--quick", "--out", str(tmp_path)]
    done = CliRunner().invoke(reproduce, arguments)
    assert done.exit_code == 0, done.output
    folder = tmp_path / name
    for file in ("data.json", "figure.svg", "figure.png", "verdict.json"):
        assert (folder / file).stat().st_size > 0
    verdict = json.loads((folder / "verdict.json").read_text())["verdict"]
    assert verdict["name"] == name
    assert verdict["claim"].startswith("[D]")
    assert verdict["figures"]
    # What was kept is used: a second run from the kept pieces gives the same verdict.
    again = CliRunner().invoke(reproduce, [*arguments, "--fresh"])
    assert again.exit_code == 0, again.output
    assert json.loads((folder / "verdict.json").read_text())["verdict"] == verdict


def test_unknown_data_is_one_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(reproduce, ["landscapes", "--quick", "--data", "mnist", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "--data must be" in done.output
