"""Every reproduction of [D], in its small version: files, verdict computed from them, nothing run twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lipadvisor.experiments.reproduce import REPRODUCTIONS, WITHOUT_DATA
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
    (folder / "verdict.json").unlink()
    again = CliRunner().invoke(reproduce, arguments)
    assert again.exit_code == 0, again.output
    assert json.loads((folder / "verdict.json").read_text())["verdict"] == verdict


def test_unknown_data_is_one_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(reproduce, ["landscapes", "--quick", "--data", "mnist", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "--data must be" in done.output


def test_data_that_a_result_does_not_use_is_refused_and_all_others_use_it(tmp_path: Path) -> None:
    import lipadvisor.experiments.reproduce as package

    folder = Path(package.__file__).parent
    unused = {
        name for name, (file, _) in REPRODUCTIONS.items() if "load_images" not in (folder / f"{file}.py").read_text()
    }
    assert unused == WITHOUT_DATA
    done = CliRunner().invoke(reproduce, ["depth", "--data", "cifar10:/nowhere", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "--data does not apply" in done.output


def test_paths_that_are_no_folders_are_one_error(tmp_path: Path) -> None:
    file = tmp_path / "cifar-10-python.tar.gz"
    file.touch()
    done = CliRunner().invoke(reproduce, ["landscapes", "--out", str(file)])
    assert done.exit_code == 2
    assert "is a file" in done.output
    done = CliRunner().invoke(reproduce, ["landscapes", "--data", f"cifar10:{file}", "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "unpacked" in done.output.replace("\n", " ")


def test_the_users_own_folder_may_be_written_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    done = CliRunner().invoke(reproduce, ["landscapes", "--data", "cifar10:~/data", "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert str(tmp_path) in done.output.replace("\n", "")
