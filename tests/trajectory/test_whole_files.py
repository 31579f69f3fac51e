from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from lipadvisor.trajectory import read_json, write_json, write_text


def test_json_comes_back_with_null_for_what_json_cannot_hold(tmp_path: Path) -> None:
    path = write_json(tmp_path / "deep" / "x.json", {"a": [1, 2.5, math.nan], "b": {"c": -math.inf}, "d": "ä"})
    assert read_json(path) == {"a": [1, 2.5, None], "b": {"c": None}, "d": "ä"}


def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "x", "old")
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})

    def fail(*_: object) -> None:
        raise OSError("no space left")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(OSError, match="no space"):
                write_text(path, "new")
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["x"]


def test_others_may_read_it_as_far_as_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert write_text(tmp_path / "x", "").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_broken_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is not JSON"):
        read_json(tmp_path / "x.json")
