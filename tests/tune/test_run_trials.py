"""Whole runs through Ray Tune, from a directory of the user's own, stopped, killed and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lipadvisor.trajectory import Run, load_run
from lipadvisor.tune import finished, run_trials

SCRIPT = '''
import os, sys, time
from pathlib import Path
from lipadvisor.policies import Decision, Knobs, Layer, Observation
from lipadvisor.trajectory import Recorder
from lipadvisor.tune import finished, run_trials

OUT = Path(sys.argv[1])
STEPS = 40


class Halving:
    name = "halving"

    def init(self):
        return 1.0

    def decide(self, observation, state):
        return Decision(observation.step, self.name, "halve", (Knobs(0, state),)), state / 2


def seen(step, log_norm):
    layer = Layer("fc", "linear", (3, 4), 0, 1.0, log_norm, 0.5, 0.0)
    network = Layer(**{**fields(layer), **WHOLE})
    return Observation(step, STEPS, 0.1 * step, "sgd", 0.0, (Knobs(0, 0.1),), network, (layer,))


WHOLE = {"name": "*", "kind": "network", "shape": (), "group": -1}


def fields(layer):
    return {name: getattr(layer, name) for name in layer.__dataclass_fields__}


def train(context):
    recorder, policy = Recorder(context.sink, batch_rows=8), context.policy(Halving())
    restored = context.restore() or {"step": 0, "log_norm": 0.0, "state": policy.init()}
    step, log_norm, state = restored["step"], restored["log_norm"], restored["state"]
    assert step == context.start_step
    while step < STEPS:
        log_norm += context.config["drift"]
        step += 1
        observation = seen(step, log_norm)  # a row of step n: n steps have been taken
        recorder.add_observation(observation)
        decision, state = policy.decide(observation, state)
        recorder.add_decision(decision)
        if step % 10 == 0:
            checkpoint = {"step": step, "log_norm": log_norm, "state": state}
            context.report({"step": step, "loss": log_norm}, checkpoint_state=checkpoint)
        if step == 25 and context.config.get("dies") and not (OUT / "died").exists():
            (OUT / "died").write_text("")
            os._exit(1)
        time.sleep(context.config["pause_s"])
    recorder.close()
    return {"loss": log_norm, "curve": [[step, log_norm]], "nothing": float("nan"), "pid": os.getpid()}


class Source:
    """Hands out four trials in pairs: the second pair only when the first is done."""

    def __init__(self):
        self.told, self.names = [], ["a", "b", "c", "d"]
        self.left = [name for name in self.names if name not in finished(OUT)]
        self.out = 0

    @property
    def finished(self):
        return not self.left and not self.out

    def ask(self, trial_id):
        if not self.left or (self.left[0] == "c" and self.out):
            return None
        name = self.left.pop(0)
        self.out += 1
        slow = {"c": 0.2, "d": 0.2}.get(name, 0.0) * (OUT / "slow").exists()
        return {"trial_name": name, "drift": 0.5, "pause_s": 0.002 + slow, "dies": name == "b"}

    def tell(self, trial_id, result, failed, pruned):
        self.out -= 1
        self.told.append((result and result["loss"], failed, pruned))


if __name__ == "__main__":
    source = Source()
    began = time.monotonic()
    outcome = run_trials(
        train, source, out=OUT, metric="loss", total=4, policy_at="hub", patience_s=5.0,
        on_progress=lambda progress: print(progress, flush=True),
    )
    print("TOLD", source.told)
    print("ACCOUNT", outcome.account)
    print("INTERRUPTED", outcome.interrupted, outcome.unfinished)
'''


def start(folder: Path, out: Path) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RAY_ADDRESS")}
    command = [sys.executable, str(folder / "study.py"), str(out)]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.05)


def whole(run: Run, trial: str) -> None:
    observations = run.trial(trial).observations
    network = observations[observations["layer"] == "*"]
    assert network["step"].tolist() == list(range(1, 41)), trial
    assert network["log_norm"].tolist() == [0.5 * step for step in range(1, 41)], trial
    decisions = run.trial(trial).decisions
    assert decisions["step"].tolist() == list(range(1, 41))
    assert decisions["lr_proposed"].tolist() == [0.5**step for step in range(40)]


@pytest.mark.slow
def test_a_run_is_stopped_and_killed_and_gone_on_with(tmp_path: Path) -> None:
    folder, out = tmp_path / "project", tmp_path / "out"
    out.mkdir()
    for package in ("policies", "experiments"):  # the user's own packages of these names
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text("raise RuntimeError('not the package that was meant')")
    (folder / "study.py").write_text(SCRIPT)
    (out / "slow").write_text("")

    process = start(folder, out)  # a and b end, b dies once on its way; Ctrl-C while c and d run
    checkpoints = [out / "checkpoints" / name / "latest.json" for name in "cd"]
    wait_for(lambda: all(path.exists() for path in checkpoints), process)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=90)[0]
    assert process.returncode == 0, said
    assert "2 trials finished" in said
    assert "2 were cut off. The same command goes on from here." in said
    assert "INTERRUPTED True ('c', 'd')" in said
    assert "TOLD [(20.0, False, False), (20.0, False, False)]" in said
    assert "2/4 trials done, 2 running, best 20 (a)" in said
    assert set(finished(out)) == {"a", "b"}
    assert finished(out)["b"]["result"]["attempt"] == 2
    assert finished(out)["b"]["config"] == {"drift": 0.5, "pause_s": 0.002, "dies": True}
    run = load_run(out)
    whole(run, "a")
    whole(run, "b")
    assert set(run.trial("b").observations["attempt"]) == {1, 2}
    assert run.trial("b").observations.query("attempt == 2")["step"].min() == 21
    assert set(run.decisions["source"]) <= {"hub", "local:late"}
    assert (run.decisions["source"] == "hub").mean() > 0.5
    stopped_at = {name: json.loads(path.read_text())["step"] for name, path in zip("cd", checkpoints, strict=True)}
    ended = {name: (out / "results" / f"{name}.json").read_text() for name in "ab"}

    process = start(folder, out)  # the driver is killed outright
    again = [out / "trajectory" / name / "2-observations.arrows" for name in "cd"]
    wait_for(lambda: any(path.exists() for path in again), process)
    process.kill()
    process.communicate(timeout=90)
    time.sleep(1.0)  # its workers notice
    (out / "slow").unlink()

    process = start(folder, out)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert "ACCOUNT 4 trials finished; results and trajectories are in" in said
    assert "INTERRUPTED False ()" in said
    assert {name: (out / "results" / f"{name}.json").read_text() for name in "ab"} == ended
    run = load_run(out)
    for name in "abcd":
        whole(run, name)
        facts = run.meta["trials"][name]
        assert (facts["lost_batches"], facts["result"]["hub"]["unacknowledged"]) == (0, 0)
        assert facts["result"]["nothing"] is None
    assert max(run.meta["trials"][name]["result"]["attempt"] for name in "cd") == 3
    for name in "cd":
        assert (run.trial(name).observations.query("attempt == 1")["step"] <= stopped_at[name]).all()
    assert not list(out.rglob("*.arrows")), "all is sealed"
    assert not list((out / "checkpoints").iterdir())


def never(context: Any) -> dict[str, Any]:
    raise AssertionError("nothing is to be run")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"concurrent": 0}, "concurrent"),
        ({"cpus_per_trial": 0}, "cpus_per_trial"),
        ({"max_failures": -1}, "max_failures"),
        ({"patience_s": 0.0}, "patience_s"),
        ({"policy_at": "moon"}, "policy_at"),
        ({"trials": {"../x": {}}}, "trial's name"),
    ],
)
def test_bad_arguments_are_named_before_ray_starts(tmp_path: Path, arguments: dict[str, Any], says: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=says):
        run_trials(never, **{"trials": {"a": {}}, "out": tmp_path, **arguments})
    assert time.monotonic() - began < 2.0


def test_a_finished_run_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text(json.dumps({"trial": "a", "config": {}, "result": {"loss": 1.0}}))
    outcome = run_trials(never, {"a": {}}, out=tmp_path)
    assert outcome.results == {"a": {"loss": 1.0}}
    assert not outcome.interrupted


def test_two_processes_do_not_work_on_one_run(tmp_path: Path) -> None:
    code = "import fcntl, sys, time; f = open(sys.argv[1] + '/lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX)"
    with subprocess.Popen(
        [sys.executable, "-c", code + "; print(1, flush=True); time.sleep(60)", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(BlockingIOError, match="another process"):
            run_trials(never, {"a": {}}, out=tmp_path)
        other.kill()
