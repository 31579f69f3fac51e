from __future__ import annotations

import random
from typing import Any

import pytest

from lipadvisor.policies.contract import Band, Knobs, Layer, Observation, hold
from lipadvisor.trajectory import TABLES, Batch, Recorder


def seen(step: int, layers: int = 2) -> Observation:
    network = Layer("*", "network", (), -1, 1.0, float(step), 0.5, 0.0)
    others = tuple(Layer(f"fc{i}", "linear", (3, 4), 0, 1.0, float(step), 0.5, 0.0) for i in range(layers))
    return Observation(step, None, 0.1 * step, "sgd", 0.0, (Knobs(0, 0.1),), network, others, (Band(1, 0, 1, -1, 1),))


def record(recorder: Recorder, step: int) -> None:
    recorder.add_observation(seen(step))
    recorder.add_forecasts(step, {"fc0": (Band(10, 0.0, 1.0, -1.0, 1.0),)}, 0.1, plan="halved")
    recorder.add_decision(hold(seen(step), "p", "test"))


def test_the_sink_gets_each_row_once_and_in_order() -> None:
    got: dict[str, list[Any]] = {name: [] for name in TABLES}

    def sink(batch: Batch) -> None:
        for name, rows in batch.items():
            got[name].extend(rows)

    recorder = Recorder(sink, batch_rows=17, batch_s=1e9)
    for step in range(50):
        record(recorder, step)
    assert 0 < len(got["observations"]) < 150
    recorder.close()
    recorder.close()
    assert [row[0] for row in got["observations"]] == [step for step in range(50) for _ in range(3)]
    assert [row[0] for row in got["forecasts"]] == [step for step in range(50) for _ in range(2)]
    assert [row[0] for row in got["decisions"]] == list(range(50))


def test_a_sink_out_of_order_is_offered_the_same_batches_again() -> None:
    generator, got, failures = random.Random(0), [], 0

    def sink(batch: Batch) -> None:
        nonlocal failures
        if generator.random() < 0.5:
            failures += 1
            raise OSError("no space left")
        got.extend(row[0] for row in batch.get("decisions", ()))

    recorder = Recorder(sink, batch_rows=5, batch_s=1e9)
    for step in range(100):
        record(recorder, step)
    while not recorder.flush():
        pass
    assert failures > 0
    assert recorder.sink_failures == failures
    assert got == list(range(100))


@pytest.mark.parametrize("limit", [1, 7, 100])
def test_the_limit_bounds_memory_and_keeps_the_newest(limit: int) -> None:
    recorder = Recorder(limit=limit)
    for step in range(60):
        record(recorder, step)
    frames = recorder.frames()
    assert frames.decisions["step"].tolist() == list(range(60))[-limit:]
    assert len(frames.observations) == min(limit, 180)
    assert len(recorder._rows["observations"]) <= 2 * limit + 3


def test_truncate_forgets_what_comes_after_the_checkpoint() -> None:
    got: list[int] = []
    recorder = Recorder(lambda batch: got.extend(row[0] for row in batch["decisions"]), batch_rows=10**6, batch_s=1e9)
    for step in range(10):
        record(recorder, step)
    recorder.truncate(6)
    for step in range(6, 8):
        record(recorder, step)
    assert recorder.frames().decisions["step"].tolist() == list(range(8))
    assert recorder.frames().observations["step"].max() == 7
    recorder.close()
    assert got == list(range(8))


def test_forecasts_name_their_plan() -> None:
    recorder = Recorder()
    record(recorder, 3)
    frame = recorder.frames().forecasts
    assert frame[["layer", "horizon", "plan", "lr"]].values.tolist() == [
        ["*", 1, "present", 0.1],
        ["fc0", 10, "halved", 0.1],
    ]


@pytest.mark.parametrize("arguments", [{"limit": 0}, {"batch_rows": 0}, {"batch_s": -1.0}, {"batch_s": float("nan")}])
def test_bad_arguments_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"Recorder\({next(iter(arguments))}=\.\.\.\)"):
        Recorder(**arguments)
