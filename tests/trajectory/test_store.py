"""The store under faults: torn files, full disks, repeated and interrupted batches, killed writers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from lipadvisor.policies.contract import Layer, Observation, hold
from lipadvisor.trajectory import TABLES, Batch, TrajectoryStore, load_run
from lipadvisor.trajectory.rows import decision_rows, observation_rows
from lipadvisor.trajectory.schema import as_frame, as_table
from lipadvisor.trajectory.stream import TableFile


def seen(step: int, log_norm: float = 0.0) -> Observation:
    return Observation(step, None, 0.0, "sgd", 0.0, (), Layer("*", "network", (), -1, 1.0, log_norm, 0.5, 0.0), ())


def batch(steps: range | list[int], log_norm: float = 0.0) -> Batch:
    return {
        "observations": [row for step in steps for row in observation_rows(seen(step, log_norm))],
        "decisions": [row for step in steps for row in decision_rows(hold(seen(step), "p", "test"))],
    }


def table(name: str, step: int) -> pa.Table:
    return as_table(name, batch([step])[name])


def steps_stored(out: Path, table: str = "observations") -> list[int]:
    return list(getattr(load_run(out), table)["step"])


def test_a_torn_tail_is_left_out_at_every_byte_and_writing_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "1-observations"
    file = TableFile(path, "observations")
    ends = []
    for number in range(1, 4):
        file.append(number, table("observations", number))
        ends.append((tmp_path / "1-observations.arrows").stat().st_size)
    content = (tmp_path / "1-observations.arrows").read_bytes()
    for cut in (
        0,
        1,
        *random.Random(0).sample(range(len(content)), 25),
        *(end + late for end in ends for late in (-1, 0)),
    ):
        torn = tmp_path / f"{cut}-observations"
        (tmp_path / f"{cut}-observations.arrows").write_bytes(content[:cut])
        whole = sum(end <= cut for end in ends)
        again = TableFile(torn, "observations")
        assert again.read()["step"].to_pylist() == list(range(1, whole + 1))
        assert again.last_sequence == whole
        for number in range(1, 6):
            again.append(number, table("observations", number))
        again.close()
        assert TableFile(torn, "observations").read()["step"].to_pylist() == [1, 2, 3, 4, 5]


def test_garbage_in_the_tail_is_left_out(tmp_path: Path) -> None:
    file = TableFile(tmp_path / "1-decisions", "decisions")
    file.append(1, table("decisions", 1))
    file.close()
    for tail in (b"\0" * 64, b"\xff\xff\xff\xff\x10\0\0\0garbage garbage!", os.urandom(100)):
        with (tmp_path / "1-decisions.arrows").open("ab") as stream:
            stream.write(tail)
        again = TableFile(tmp_path / "1-decisions", "decisions")
        assert again.read()["step"].to_pylist() == [1]
        assert again.last_sequence == 1


def test_batches_sent_again_through_restarts_and_seals_are_stored_once(tmp_path: Path) -> None:
    generator = random.Random(1)
    store = TrajectoryStore(tmp_path)
    attempt = store.begin("t")
    sent = 0
    for _ in range(300):
        choice = generator.random()
        if choice < 0.1:
            store = TrajectoryStore(tmp_path)  # the writer died: nothing but the files is left
        elif choice < 0.15:
            store.seal("t")
        elif choice < 0.5 and sent:
            again = generator.randint(1, sent)
            assert store.append("t", attempt, again, batch([again])) == sent
        else:
            sent += 1
            assert store.append("t", attempt, sent, batch([sent])) == sent
        assert store.last_sequence("t", attempt) == sent
    assert sent > 100
    for table in ("observations", "decisions"):
        assert steps_stored(tmp_path, table) == list(range(1, sent + 1))
    assert load_run(tmp_path).meta["trials"]["t"]["lost_batches"] == 0


def test_a_batch_cut_off_between_two_tables_is_completed(tmp_path: Path) -> None:
    store = TrajectoryStore(tmp_path)
    attempt = store.begin("t")
    store.append("t", attempt, 1, {"observations": batch([1])["observations"]})  # the writer dies here
    TrajectoryStore(tmp_path).append("t", attempt, 1, batch([1]))
    assert steps_stored(tmp_path) == [1]
    assert steps_stored(tmp_path, "decisions") == [1]


def test_a_crash_between_sealing_and_removing_the_stream_doubles_nothing(tmp_path: Path) -> None:
    store = TrajectoryStore(tmp_path)
    attempt = store.begin("t")
    store.append("t", attempt, 1, batch([1]))
    live = tmp_path / "trajectory" / "t" / "1-observations.arrows"
    content = live.read_bytes()
    store.seal("t")
    live.write_bytes(content)
    assert steps_stored(tmp_path) == [1]
    store = TrajectoryStore(tmp_path)
    store.append("t", attempt, 2, batch([2]))
    assert steps_stored(tmp_path) == [1, 2]
    store.seal("t")
    assert steps_stored(tmp_path) == [1, 2]
    assert not live.exists()


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TrajectoryStore(tmp_path)
    attempt = store.begin("t")
    store.append("t", attempt, 1, batch([1]))
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, content: write(handle, content[:100]))
    with pytest.raises(OSError, match="100 of"):
        store.append("t", attempt, 2, batch([2]))
    monkeypatch.undo()
    assert steps_stored(tmp_path) == [1]
    assert store.append("t", attempt, 2, batch([2])) == 2
    assert steps_stored(tmp_path) == [1, 2]


def test_of_each_step_the_last_attempt_counts(tmp_path: Path) -> None:
    generator = random.Random(2)
    for case in range(30):
        out = tmp_path / str(case)
        store = TrajectoryStore(out)
        expected: dict[int, float] = {}
        reached = 0
        for number in range(1, generator.randint(2, 5)):
            start = generator.randint(0, reached)
            attempt = store.begin("t", start_step=start)
            assert attempt == number
            steps = [step for step in range(start, start + generator.randint(0, 9)) if generator.random() < 0.7]
            expected = {step: value for step, value in expected.items() if step < start}
            expected |= dict.fromkeys(steps, float(number))
            if steps:
                store.append("t", attempt, 1, batch(steps, float(number)))
            reached = max(expected, default=0)
        run = load_run(out)
        assert dict(zip(run.observations["step"], run.observations["log_norm"], strict=True)) == expected
        assert run.observations["step"].is_monotonic_increasing
        assert list(run.observations["attempt"]) == [int(value) for value in run.observations["log_norm"]]
        assert dict(zip(run.decisions["step"], run.decisions["attempt"], strict=True)) == {
            step: int(value) for step, value in expected.items()
        }


def test_the_same_folder_twice_is_told_and_both_runs_can_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, steps in ((1.0, 9), (2.0, 4)):
        with TrajectoryStore(tmp_path) as store:
            store.sink("run")(batch(range(steps), number))
        assert caplog.text.count("holds an earlier run") == int(number) - 1
    assert list(load_run(tmp_path).observations["attempt"]) == [2] * 4
    both = load_run(tmp_path, superseded=True).observations
    assert list(both["attempt"]) == [1] * 9 + [2] * 4
    assert list(both["log_norm"]) == [1.0] * 9 + [2.0] * 4


def test_begin_twice_with_one_token_is_one_attempt(tmp_path: Path) -> None:
    store = TrajectoryStore(tmp_path)
    assert [store.begin("t", token=token) for token in ("a", "a", "b", "b", "c")] == [1, 1, 2, 2, 3]
    assert [store.begin("t"), store.begin("t")] == [4, 5]
    assert store.attempts("t") == (1, 2, 3, 4, 5)
    assert store.attempts("other") == ()


def test_many_trials_do_not_use_up_the_file_handles(tmp_path: Path) -> None:
    store = TrajectoryStore(tmp_path)
    for round_ in (1, 2):
        for number in range(70):
            attempt = store.begin(f"t{number}", token="same")
            store.append(f"t{number}", attempt, round_, batch([round_]))
    assert len(os.listdir("/proc/self/fd")) < 400
    run = load_run(tmp_path)
    assert run.observations.groupby("trial")["step"].apply(list).tolist() == [[1, 2]] * 70


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/abs", "-x", "a\0", "x" * 101, "ä", "a\n", None, 3])
def test_names_with_path_parts_are_refused(tmp_path: Path, name: str) -> None:
    store = TrajectoryStore(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for call in (lambda: store.begin(name), lambda: store.append(name, 1, 1, batch([1])), lambda: store.sink(name)):
        with pytest.raises(ValueError, match="trial's name"):
            call()
    assert sorted(tmp_path.rglob("*")) == before


def test_what_does_not_fit_is_refused_and_nothing_of_it_stored(tmp_path: Path) -> None:
    store = TrajectoryStore(tmp_path)
    attempt = store.begin("t")
    good = batch([1])
    row = list(good["decisions"][0])
    for wrong, says in (
        ({"losses": []}, "tables among"),
        ({"decisions": [row[:-1]]}, "must have"),
        ({"decisions": [("x", *row[1:])]}, "'step'"),
        ({"decisions": [(None, *row[1:])]}, "'step'"),
        ({**good, "decisions": [(*row[:-1], 3)]}, "'weight_scale'"),
        ([], "tables among"),
    ):
        with pytest.raises(ValueError, match=says):
            store.append("t", attempt, 1, wrong)  # type: ignore[arg-type]
        assert store.last_sequence("t", attempt) == 0, wrong
    for number in (0, -1, True, 1.0, "1"):
        with pytest.raises(ValueError, match="whole number"):
            store.append("t", attempt, number, good)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="whole number"):
            store.append("t", number, 1, good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="start_step"):
        store.begin("t", start_step=-1)


def test_lost_batches_are_counted(tmp_path: Path) -> None:
    store = TrajectoryStore(tmp_path)
    attempt = store.begin("t")
    for number in (1, 2, 5):
        store.append("t", attempt, number, batch([number]))
    assert load_run(tmp_path).meta["trials"]["t"]["lost_batches"] == 2


def test_a_file_of_another_version_is_named(tmp_path: Path) -> None:
    store = TrajectoryStore(tmp_path)
    attempt = store.begin("t")
    store.append("t", attempt, 1, batch([1]))
    store.close()
    folder = tmp_path / "trajectory" / "t"
    (folder / "1-decisions.arrows").rename(folder / "1-forecasts.arrows")
    with pytest.raises(ValueError, match=r"1-forecasts\.arrows holds other columns"):
        load_run(tmp_path)


def test_what_is_not_a_run_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a directory"):
        load_run(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="not a run"):
        load_run(tmp_path)
    TrajectoryStore(tmp_path / "inside").close()
    with pytest.raises(FileNotFoundError, match="inside"):
        load_run(tmp_path)


def test_one_trial_of_a_run(tmp_path: Path) -> None:
    store = TrajectoryStore(tmp_path)
    for name in ("b", "a"):
        store.append(name, store.begin(name, config={"name": name}), 1, batch([1, 2]))
    run = load_run(tmp_path)
    assert run.trials == ("a", "b")
    assert run.meta["trials"]["a"]["config"] == {"name": "a"}
    assert run.trial("b").observations["trial"].tolist() == ["b", "b"]
    with pytest.raises(KeyError, match="'c'"):
        run.trial("c")


def test_an_unwritable_directory_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        TrajectoryStore(tmp_path / "file" / "run")


WRITER = """
import sys
from test_store import batch
from lipadvisor.trajectory import TrajectoryStore
store = TrajectoryStore(sys.argv[1])
attempt = store.begin("t", token="one")
number = store.last_sequence("t", attempt)
print("ready", number, flush=True)
while True:
    number += 1
    store.append("t", attempt, number, batch([number]))
    print(number, flush=True)
"""


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_it_had_acknowledged_and_readers_never_fail(tmp_path: Path) -> None:
    generator, acknowledged = random.Random(3), 0
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        writer = subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        assert writer.stdout.readline().startswith("ready")
        until = time.monotonic() + generator.uniform(0.05, 0.3)
        while time.monotonic() < until:
            stored = steps_stored(tmp_path)
            assert stored == list(range(1, len(stored) + 1))
        writer.send_signal(signal.SIGKILL)
        numbers = [int(line) for line in writer.stdout.read().splitlines() if line.strip()]
        writer.wait()
        acknowledged = max([acknowledged, *numbers])
        stored = steps_stored(tmp_path)
        assert stored == list(range(1, len(stored) + 1))
        assert len(stored) >= acknowledged
    assert acknowledged > 10
    assert set(TABLES) == {"observations", "forecasts", "decisions", "inspections"}


def test_a_stream_of_an_earlier_version_is_read_and_written_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TABLES["observations"]
    fewer = {**TABLES, "observations": whole.remove(whole.get_field_index("input_size"))}
    path = tmp_path / "1-observations"
    with monkeypatch.context() as before:
        before.setattr("lipadvisor.trajectory.stream.TABLES", fewer)
        file = TableFile(path, "observations")
        for number in (1, 2):
            file.append(number, table("observations", number).drop_columns(["input_size"]))
        file.close()
    again = TableFile(path, "observations")
    assert again.read()["step"].to_pylist() == [1, 2]
    assert again.read()["input_size"].to_pylist() == [None, None]
    again.append(2, table("observations", 2))
    again.append(3, table("observations", 3))
    assert again.read()["step"].to_pylist() == [1, 2, 3]
    again.seal()
    assert again.read()["input_size"].to_pylist() == [None, None, ""]
    assert as_frame(again.read())["input_size"].isna().tolist() == [True, True, False]
