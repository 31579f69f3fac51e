"""The command as people call it."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import lipadvisor
from lipadvisor.modules.command import audit, load_factory

MODEL = """
from torch import nn
import torch
def plain():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
def pair():
    return plain(), torch.ones(3, 6)
def tokens():
    return nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 11))
def batch():
    return torch.zeros(2, 6)
number = 3
def wrong():
    return 4
model = plain()
def needy(width):
    return nn.Linear(width, 2)
def failing():
    raise OSError("no such data")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models_for_audit.py").write_text(MODEL)
    (tmp_path / "fails_on_import.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def called(*arguments: str) -> Result:
    return CliRunner().invoke(audit, arguments, catch_exceptions=False)


def test_table_json_and_page(folder: Path) -> None:
    shown = called("models_for_audit:pair", "--html", "page.html", "--steps", "100")
    assert shown.exit_code == 0
    assert "log bound Z" in shown.stdout
    assert "findings: none" in shown.stdout
    assert "<svg" in (folder / "page.html").read_text()
    data = json.loads(called("models_for_audit:pair", "--json", "--no-local").stdout)
    assert [row["module"] for row in data["modules"]] == ["0", "1", "2"]
    assert data["network"]["log_local"] is None


def test_batches(folder: Path) -> None:
    for arguments in (
        ("models_for_audit:plain", "--input", "4,6"),
        ("models_for_audit:plain", "--batch", "models_for_audit:batch"),
        ("models_for_audit:tokens", "--input", "2,5", "--vocabulary", "11"),
        ("models_for_audit:model", "--input", "4,6"),
    ):
        assert called(*arguments).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "module:name"),
        (("no_such_module_here:x",), "cannot load"),
        (("models_for_audit:number",), "must be callable"),
        (("models_for_audit:wrong",), "torch.nn.Module"),
        (("models_for_audit.py:plain",), "leave out .py: models_for_audit:plain"),
        (("models_for_audit:needy",), "must be callable without arguments"),
        (("fails_on_import:x",), "importing 'fails_on_import' raised ZeroDivisionError"),
        (("models_for_audit:tokens", "--input", "2,5"), "needs --vocabulary"),
        (("models_for_audit:plain",), "returns no batch"),
        (("models_for_audit:plain", "--input", "4,-6"), "--input must be"),
        (("models_for_audit:plain", "--input", "4,7"), "cannot be called with this batch: RuntimeError"),
        (("models_for_audit:tokens", "--input", "2,5", "--vocabulary", "500"), "cannot be called with this batch"),
        (("models_for_audit:failing",), "'models_for_audit:failing' raised OSError: no such data (models_for_audit.py"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    result = called(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_alarms_say_what_to_do(folder: Path) -> None:
    source = (
        "def sick():\n    m = plain()\n    m.append(nn.Linear(2, 2))\n    m[2].weight.data.mul_(100)\n    return m\n"
    )
    (folder / "models_for_audit_sick.py").write_text("from models_for_audit import *\n" + source)
    shown = called("models_for_audit_sick:sick", "--input", "4,6", "--html", "page.html").stdout
    assert "! 2: init_scale" in shown
    told = [line.split("training:")[-1].strip() for line in shown.splitlines() if "apply_cures" in line]
    scope = {"lipadvisor": lipadvisor, "model": load_factory("models_for_audit_sick:sick")(), "batch": torch.ones(4, 6)}
    exec("\n".join(told), scope)  # what is told works as it stands
    assert scope["undo"].remaining == ()
    assert scope["undo"].rounds == 1
    assert "apply_cures(model" in (folder / "page.html").read_text()
    assert "apply_cures" not in called("models_for_audit:plain", "--input", "4,6").stdout


def test_load_factory_takes_attributes(folder: Path) -> None:
    assert load_factory("models_for_audit:nn.ReLU")().training


def test_the_page_names_no_address_elsewhere() -> None:
    found = lipadvisor.audit(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4))
    assert "<svg" in found.to_html()
    assert "http" not in found.to_html().replace("https://arxiv.org", "")
