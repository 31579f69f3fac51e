import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from lipadvisor.cli import main


def _run(*arguments: str):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of a few steps, stored by a plain advisor."""
    from lipadvisor import Advisor
    from lipadvisor.experiments.workloads import WORKLOADS

    out = tmp_path_factory.mktemp("run")
    workload = WORKLOADS["digits_mlp"]
    model = workload.model(0)
    optimizer = workload.optimizer(model)
    batches = workload.batches(workload.load(), 0)
    with Advisor(model, optimizer, 25, policy="cosine", interval=1, out=out) as advisor:
        for _ in range(25):
            x, y = next(batches)
            loss = workload.loss(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            advisor.step(loss)
    return out


def test_help_is_there_without_torch_or_ray() -> None:
    code = (
        "import sys; from lipadvisor.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'ray', 'optuna', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "report", "replay", "policies", "version"):
        assert command in done.stdout


@pytest.mark.parametrize("command", ["demo", "report", "replay", "policies", "reproduce"])
def test_every_command_has_help(command: str) -> None:
    result = _run(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arm", "sgdr"], "no arm 'sgdr'"),
        (["--workload", "mnist"], "no workload 'mnist'"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--trials", "-3"], "trials must be at least 1"),
        (["--policy-at", "moon"], "trial, hub"),
        (["--max-overhead", "2"], "(0, 1]"),
        (["--concurrent", "0"], "concurrent must be at least 1"),
    ],
)
def test_bad_demo_input_is_one_line_and_leaves_nothing(tmp_path: Path, arguments: list[str], words: str) -> None:
    result = _run("demo", "--out", tmp_path / "run", *arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_an_output_directory_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = _run("demo", "--out", tmp_path / "file" / "run")
    assert (result.exit_code, "cannot be written" in result.output) == (2, True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    result = _run("demo", "--out", tmp_path / "mine")
    assert (result.exit_code, "thesis.tex" in result.output) == (2, True)
    assert [item.name for item in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_policies_are_listed_with_their_parameters() -> None:
    output = _run("policies").output
    assert "cosine" in output
    assert "warmup_fraction=0.0" in output
    assert "relative_step=" in output
    assert "``" not in output
    assert ":class:" not in output


def test_policies_are_listed_in_plain_text() -> None:
    lines = _run("policies").output.splitlines()
    assert not [line for line in lines if "``" in line or ":class:" in line or len(line) > 111]


def test_replay_shows_recorded_beside_proposed(recorded: Path, tmp_path: Path) -> None:
    result = _run("replay", recorded, "--policy", "constant", "--param", "lr=0.25")
    assert result.exit_code == 0, result.output
    assert "lr_recorded" in result.output
    table = tmp_path / "replay.csv"
    assert _run("replay", recorded, "--policy", "constant", "--param", "lr=0.25", "--out", table).exit_code == 0
    frame = pd.read_csv(table)
    assert list(frame["step"]) == list(range(26))
    assert (frame["lr_proposed"] == 0.25).all()
    assert frame["lr_recorded"].iloc[0] == pytest.approx(1e-3)
    as_json = json.loads(_run("replay", recorded, "--policy", "constant", "--json").output)
    assert len(as_json) == 26


def test_a_replay_of_two_groups_shows_both_at_the_steps_it_shows(tmp_path: Path) -> None:
    import torch

    from lipadvisor import Advisor

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    optimizer = torch.optim.SGD([{"params": list(part.parameters())} for part in (model[0], model[2])], lr=0.1)
    with Advisor(model, optimizer, 60, policy="constant", interval=1, out=tmp_path / "run") as advisor:
        for _ in range(60):
            loss = model(torch.ones(4, 3)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            advisor.step(loss)
    for policy in ("constant", "initialization"):  # the second leaves both groups alone
        output = _run("replay", tmp_path / "run", "--policy", policy).output
        table = [line.split()[:2] for line in output.splitlines()[1:-1]]
        assert {step for step, group in table if group == "0"} == {step for step, group in table if group == "1"}
        assert f"{len(table) // 2} of 61 recorded steps" in output
        assert len(table) <= 20


def test_replaying_the_recorded_policy_proposes_what_was_recorded(recorded: Path, tmp_path: Path) -> None:
    table = tmp_path / "same.csv"
    assert _run("replay", recorded, "--policy", "cosine", "--out", table).exit_code == 0
    frame = pd.read_csv(table)
    pd.testing.assert_series_equal(frame["lr_recorded"], frame["lr_proposed"], check_names=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "nosuch"], "nosuch"),
        (["--policy", "cosine", "--param", "lr=-1"], "lr"),
        (["--policy", "cosine", "--param", "speed=1"], "speed"),
        (["--policy", "step", "--param", "milestones=0.5"], "Step(milestones=...) must be a tuple"),
        (["--policy", "cosine", "--param", "lr"], "KEY=VALUE"),
        (["--policy", "cosine", "--trial", "other"], "no trial 'other'"),
    ],
)
def test_bad_replay_input_is_one_line(recorded: Path, arguments: list[str], words: str) -> None:
    result = _run("replay", recorded, *arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert len(result.output.strip().splitlines()) == 1


@pytest.mark.parametrize("command", [("reproduce", "depth"), ("bars", "cost"), ("bench", "policies")])
def test_a_file_is_no_folder_for_results_and_help_has_a_short_name(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "file").touch()
    result = _run(*command, "--out", tmp_path / "file")
    assert result.exit_code == 2
    assert "is a file" in result.output
    assert "Usage: lipadvisor" in _run(*command, "-h").output


def test_bars_are_listed_by_name() -> None:
    output = " ".join(_run("bars", "--help").output.split())
    assert all(name in output for name in ("branching", "what-if", "divergence"))


def test_report_of_something_else_is_refused(tmp_path: Path) -> None:
    result = _run("report", tmp_path)
    assert (result.exit_code, "is not a run" in result.output) == (2, True)


def test_report_of_a_plain_run(recorded: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = _run("report", recorded, "--out", page)
    assert result.exit_code == 0, result.output
    assert page.read_text().count("<svg") == 4
