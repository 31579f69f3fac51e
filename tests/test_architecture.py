"""Holds the arrows: which stage may import which, and where torch, ray and optuna may stand."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"lipadvisor": ROOT / "lipadvisor", "lipadvisor.policies": ROOT / "policies"}
FOLDERS["lipadvisor.experiments"] = ROOT / "experiments"

# Stage -> the stages of ours that it may import (itself always).
MAY_IMPORT: dict[str, set[str]] = {
    "policies": set(),
    "terms": set(),
    "spectra": set(),
    "plain_chain": set(),
    "probe": {"spectra", "terms", "policies"},
    "dynamics": {"terms", "policies"},
    "forecast": {"dynamics", "terms", "policies"},
    "observe": {"dynamics", "terms", "policies"},
    "trajectory": {"terms", "policies"},
    "apply": {"policies"},
    "average": {"policies"},
    "snapshot": {"average"},
    "checkpoint": set(),
    "fail_open": set(),
    "loss": set(),
    "arguments": {"apply", "trajectory"},
    "announce": {"probe"},
    "prediction": {"dynamics", "forecast", "policies", "terms"},
    "record": {"dynamics", "forecast", "policies", "terms"},
    "modules": {"plain_chain", "spectra", "policies", "trajectory"},
    "early_warning": {"forecast", "observe", "policies", "prediction", "terms"},
    "line": {
        "apply", "checkpoint", "early_warning", "loss", "observe", "policies", "prediction", "probe", "record",
        "snapshot", "terms", "trajectory",
    },
    "stage": {"apply", "forecast", "line", "probe", "terms"},
    "training_hooks": {"announce", "apply", "fail_open", "line", "probe", "stage"},
    "advisor": {
        "announce", "apply", "arguments", "fail_open", "forecast", "inspection", "line", "plain_chain", "policies",
        "probe", "snapshot", "stage", "training_hooks", "trajectory",
    },
    "rehearsal": {"advisor", "apply", "arguments", "forecast", "probe", "stage", "terms"},
    "inspection": {"dynamics", "fail_open", "modules", "policies", "probe"},
    "report": {"dynamics", "forecast", "policies", "terms", "trajectory"},
    "tune": {"policies", "trajectory"},
}  # fmt: skip
FREE = {"cli", "__main__", "experiments", ""}  # the ends of the line: they may use all of it
TORCH = {
    "spectra", "probe", "modules", "advisor", "line", "apply", "arguments", "average", "snapshot", "checkpoint",
    "fail_open", "loss", "inspection", "plain_chain", "rehearsal", "stage", "training_hooks", "experiments",
}  # fmt: skip
RAY = {"tune"}
OPTUNA = {"experiments"}


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = path
    return found


def stage(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(module: str, path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import; write the whole name"
            names.add(node.module or "")
            if node.module == "lipadvisor":
                names |= {f"lipadvisor.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_follow_the_arrows(module: str) -> None:
    own = stage(module)
    seen = imports(module, modules()[module])
    top = {name.split(".")[0] for name in seen}
    assert "torch" not in top or own in TORCH, f"{module} imports torch"
    assert "ray" not in top or own in RAY, f"{module} imports ray"
    assert "optuna" not in top or own in OPTUNA, f"{module} imports optuna"
    if own in FREE:
        return
    ours = {stage(name) for name in seen if name.split(".")[0] == "lipadvisor"} - {own, ""}
    assert own in MAY_IMPORT, f"{module}: stage {own!r} has no row in MAY_IMPORT"
    assert ours <= MAY_IMPORT[own], f"{module} must not import {sorted(ours - MAY_IMPORT[own])}"


def test_only_one_file_imports_optuna() -> None:
    users = [
        module for module, path in modules().items() if "optuna" in {n.split(".")[0] for n in imports(module, path)}
    ]
    assert users == ["lipadvisor.experiments.study"]


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name + " is not to be imported here")
sys.meta_path.insert(0, Blocked())
"""


def test_policies_need_nothing_but_the_standard_library() -> None:
    third = {"numpy", "scipy", "pandas", "pyarrow", "torch", "ray", "optuna", "sklearn", "click", "pydantic"}
    run(BLOCK.format(blocked=third) + "from lipadvisor.policies import named_policy; named_policy('lipschitz')")


def test_the_offline_line_needs_neither_torch_nor_ray() -> None:
    run(
        BLOCK.format(blocked={"torch", "ray", "optuna", "sklearn"})
        + "import lipadvisor.dynamics, lipadvisor.forecast, lipadvisor.observe, lipadvisor.trajectory\n"
        + "from lipadvisor import load_run"
    )


def test_the_advisor_imports_neither_ray_nor_optuna() -> None:
    run(BLOCK.format(blocked={"ray", "optuna", "sklearn"}) + "from lipadvisor import Advisor")


def test_the_package_list_equals_the_tree() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    tree = {m for m, path in modules().items() if path.name == "__init__.py"}
    assert listed == tree
