from pathlib import Path

import pytest

from lipadvisor.experiments.directory import open_directory, read_run, write_run
from lipadvisor.experiments.settings import QUICK, Settings

SETTINGS = Settings(**QUICK)


def test_the_same_settings_open_it_again_and_others_are_refused_by_name(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    with open_directory(out, SETTINGS, fresh=False) as facts:
        facts["done"] = 3
        write_run(out, facts)
    with open_directory(out, SETTINGS, fresh=False) as facts:
        assert facts["done"] == 3
    with (
        pytest.raises(ValueError, match=r"seed 9, was 0.*--fresh"),
        open_directory(out, Settings(**QUICK, seed=9), fresh=False),
    ):
        pass


def test_fresh_forgets_the_comparison_and_keeps_what_is_not_its_own(tmp_path: Path) -> None:
    with open_directory(tmp_path, SETTINGS, fresh=False):
        pass
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").touch()
    (tmp_path / "notes.txt").touch()
    other = Settings(**QUICK, seed=9)
    with open_directory(tmp_path, other, fresh=True):
        pass
    assert not (tmp_path / "results").exists()
    assert (tmp_path / "notes.txt").exists()
    assert other.differences(read_run(tmp_path)["settings"]) == ()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        open_directory(tmp_path, SETTINGS, fresh=False),
        pytest.raises(ValueError, match="in use"),
        open_directory(tmp_path, SETTINGS, fresh=False),
    ):
        pass
    with open_directory(tmp_path, SETTINGS, fresh=False):
        pass


@pytest.mark.parametrize("name", ["thesis.tex", "run.json"])
@pytest.mark.parametrize("fresh", [False, True])
def test_anything_else_is_left_alone(tmp_path: Path, name: str, fresh: bool) -> None:
    (tmp_path / name).write_text('{"kind": "other"}')
    with pytest.raises(ValueError, match="name an empty one"), open_directory(tmp_path, SETTINGS, fresh=fresh):
        pass
    assert [item.name for item in tmp_path.iterdir()] == [name]
