"""What is recorded is what comes back: contract objects -> rows -> frames or files -> contract objects."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipadvisor.policies.contract import Band, Decision, Knobs, Layer, Observation, Status, as_json
from lipadvisor.trajectory import TABLES, Recorder, TrajectoryStore, load_run, observations_from_frame

floats = st.floats(allow_nan=False) | st.just(0.1)
anything = st.floats()  # nan and infinities too
status = st.sampled_from(list(Status))
names = st.text(min_size=1, max_size=8).filter(lambda text: text != "*" and "\ud800" not in text)


def layers(name: st.SearchStrategy[str], shape: st.SearchStrategy[tuple[int, ...]]) -> st.SearchStrategy[Layer]:
    return st.builds(
        Layer,
        name=name,
        kind=st.sampled_from(["linear", "conv2d", "network"]),
        shape=shape,
        group=st.integers(-1, 3),
        status=status,
        **{
            field.name: anything
            for field in dataclasses.fields(Layer)
            if field.name not in ("name", "kind", "shape", "group", "status")
        },
    )


shapes = st.lists(st.integers(1, 999), min_size=1, max_size=4).map(tuple)
knobs = st.lists(st.tuples(st.none() | floats, st.none() | floats), max_size=3).map(
    lambda pairs: tuple(Knobs(group, *pair) for group, pair in enumerate(pairs))
)
bands = st.dictionaries(st.integers(1, 500), st.builds(Band, st.just(1), *[anything] * 4, status), max_size=3).map(
    lambda found: tuple(dataclasses.replace(found[h], horizon=h) for h in sorted(found))
)


@st.composite
def observations(draw: st.DrawFn, step: int) -> Observation:
    return Observation(
        step=step,
        total_steps=draw(st.none() | st.integers(1, 10**12)),
        tau=draw(anything),
        optimizer=draw(st.text(max_size=5).filter(lambda text: "\ud800" not in text)),
        momentum=draw(floats),
        knobs=draw(knobs),
        network=draw(layers(st.just("*"), st.just(()))),
        layers=tuple(draw(st.lists(layers(names, shapes), max_size=3, unique_by=lambda layer: layer.name))),
        bands=draw(bands),
        loss=draw(st.none() | anything),
        validation_loss=draw(st.none() | anything),
        validation_step=draw(st.none() | st.integers(0, 10**12)),
        measured_step=draw(st.integers(0, step)),
        overhead=draw(floats),
        status=draw(status),
    )


@st.composite
def runs(draw: st.DrawFn) -> tuple[Observation, ...]:
    steps = sorted(draw(st.sets(st.integers(0, 10**9), max_size=4)))
    return tuple(draw(observations(step)) for step in steps)


def text(seen: tuple[Observation, ...]) -> str:
    """Equal texts: equal objects, where nan equals nan."""
    return json.dumps(as_json(seen))


@settings(max_examples=30, deadline=None)
@given(runs())
def test_frames_give_back_the_observations(run: tuple[Observation, ...]) -> None:
    recorder = Recorder()
    for seen in run:
        recorder.add_observation(seen)
    frames = recorder.frames()
    assert text(observations_from_frame(frames.observations, frames.forecasts)) == text(run)


@settings(max_examples=12, deadline=None)
@given(runs(), st.integers(1, 9))
def test_files_give_back_the_observations(
    tmp_path_factory: pytest.TempPathFactory, run: tuple[Observation, ...], batch_rows: int
) -> None:
    out = tmp_path_factory.mktemp("run")
    store = TrajectoryStore(out)
    recorder = Recorder(store.sink("run"), batch_rows=batch_rows)
    for seen in run:
        recorder.add_observation(seen)
    recorder.close()
    for sealed in (False, True):
        if sealed:
            store.close()
        loaded = load_run(out)
        assert text(observations_from_frame(loaded.observations, loaded.forecasts)) == text(run), f"sealed: {sealed}"
        kept = recorder.frames()
        for name in TABLES:
            back = getattr(loaded, name).drop(columns=["trial", "attempt"])
            assert back.equals(getattr(kept, name)), name
            assert list(back.dtypes) == list(getattr(kept, name).dtypes)


def test_a_layer_has_a_column_for_each_of_its_fields() -> None:
    columns = set(TABLES["observations"].names)
    fields = {field.name for field in dataclasses.fields(Layer)} - {"name"}
    assert fields <= columns
    assert {"step", "tau", "measured_step", "total_steps", "optimizer", "momentum", "knobs", "overhead"} <= columns


def test_every_flag_of_a_decision_has_a_column() -> None:
    flags = {field.name for field in dataclasses.fields(Decision) if isinstance(field.default, bool)}
    assert flags <= set(TABLES["decisions"].names)
    for flag in flags:
        recorder = Recorder()
        recorder.add_decision(
            Decision(3, "p", "test", **{flag: True}), mode="takeover", before=(), after=(), refused=()
        )
        row = recorder.frames().decisions.iloc[0]
        assert {name for name in flags if row[name]} == {flag}


def test_empty_frames_have_all_columns_and_their_dtypes(tmp_path: Path) -> None:
    frames = Recorder().frames()
    TrajectoryStore(tmp_path).close()
    loaded = load_run(tmp_path)
    for name, schema in TABLES.items():
        assert list(getattr(frames, name).columns) == schema.names
        assert list(getattr(loaded, name).columns) == ["trial", "attempt", *schema.names]
        assert list(getattr(loaded, name).dtypes[2:]) == list(getattr(frames, name).dtypes)
    assert str(frames.observations["total_steps"].dtype) == "Int64"
    assert str(frames.observations["log_norm"].dtype) == "float64"
    assert str(frames.decisions["rollback"].dtype) == "bool"
    assert loaded.trials == ()


NETWORK = Layer("*", "network", (), -1, 1.0, 2.0, 0.5, 0.0)
LAYER = Layer("fc", "linear", (3, 4), 1, 1.0, 2.0, 0.5, 0.0)
SEEN = Observation(7, 100, 0.7, "sgd", 0.9, (Knobs(0, 0.1, 0.2), Knobs(1, 0.3, None)), NETWORK, (LAYER,), loss=1.5)


def test_step_columns_stand_on_the_network_and_knobs_with_their_group() -> None:
    recorder = Recorder()
    recorder.add_observation(SEEN, {"predicted": [2.0, 2.5]}, measure_s=0.01, step_s=0.5)
    rows = recorder.frames().observations.set_index("layer")
    assert (rows.loc["fc", "lr"], rows.loc["*", "lr"], rows.loc["*", "weight_decay"]) == (0.3, 0.1, 0.2)
    assert math.isnan(rows.loc["fc", "weight_decay"])
    assert (rows.loc["fc", "predicted"], rows.loc["*", "predicted"]) == (2.0, 2.5)
    assert math.isnan(rows.loc["*", "curvature"])
    assert (rows.loc["*", "loss"], rows.loc["*", "measure_s"], rows.loc["*", "step_s"]) == (1.5, 0.01, 0.5)
    assert math.isnan(rows.loc["fc", "loss"])
    assert (rows.loc["fc", "shape"], rows.loc["*", "shape"]) == ("3x4", "")


@pytest.mark.parametrize(
    ("extras", "says"),
    [({"predicted": [1.0]}, "2 numbers"), ({"prediction": [1.0, 2.0]}, "'prediction'")],
)
def test_extras_that_do_not_fit_are_refused(extras: dict[str, list[float]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Recorder().add_observation(SEEN, extras)


def test_a_decision_is_recorded_by_group_with_what_became_of_it() -> None:
    recorder = Recorder()
    decision = Decision(
        7,
        "p",
        "budget",
        knobs=(Knobs(1, 0.5, 0.6),),
        weight_scale=(("fc", 0.9),),
        cooldown_started=True,
        read=(("head", math.inf),),
        source="hub",
    )
    recorder.add_decision(
        decision, SEEN.knobs, (Knobs(0, 0.1, 0.2), Knobs(1, 0.4, 0.6)), mode="cap", refused=("lr: cap",)
    )
    rows = recorder.frames().decisions.set_index("group")
    assert list(rows.index) == [0, 1]
    assert list(rows.loc[1, ["lr_before", "lr_proposed", "lr_applied"]]) == [0.3, 0.5, 0.4]
    assert list(rows.loc[0, ["lr_before", "lr_applied"]]) == [0.1, 0.1]
    assert math.isnan(rows.loc[0, "lr_proposed"])
    first = rows.loc[0]
    assert (first["policy"], first["reason"], first["source"], first["mode"]) == ("p", "budget", "hub", "cap")
    assert first["refused"] == "lr: cap"
    assert json.loads(first["read"]) == {"head": math.inf}
    assert json.loads(first["weight_scale"]) == {"fc": 0.9}
    assert (first["warmup_ended"], first["cooldown_started"]) == (False, True)


def test_a_decision_without_knobs_has_a_row_too() -> None:
    recorder = Recorder()
    recorder.add_decision(Decision(0, "p", "hold:unknown"))
    assert recorder.frames().decisions["group"].tolist() == [-1]


def test_frames_of_several_trials_are_refused() -> None:
    recorder = Recorder()
    recorder.add_observation(SEEN)
    frame = recorder.frames().observations
    frame["trial"] = ["a", "b"]
    with pytest.raises(ValueError, match="one trial"):
        observations_from_frame(frame)
    with pytest.raises(ValueError, match="'knobs'"):
        observations_from_frame(frame.drop(columns=["trial", "knobs"]))


def test_runs_recorded_before_an_update_had_three_sizes_are_read_as_unmeasured() -> None:
    recorder = Recorder()
    sized = dataclasses.replace(LAYER, update_ratio=3.0, frobenius_ratio=2.0, row_ratio=2.5)
    seen = dataclasses.replace(SEEN, layers=(sized,))
    recorder.add_observation(seen)
    frame = recorder.frames().observations
    assert observations_from_frame(frame) == (seen,)
    (old,) = observations_from_frame(frame.drop(columns=["frobenius_ratio", "row_ratio"]))
    assert old == dataclasses.replace(seen, layers=(dataclasses.replace(LAYER, update_ratio=3.0),))


def test_the_size_of_maps_stands_with_its_layer_and_nowhere_else() -> None:
    recorder = Recorder()
    recorder.add_observation(SEEN, input_sizes=[(3, 32, 16)])
    recorder.add_observation(SEEN)
    assert recorder.frames().observations["input_size"].tolist() == ["3x32x16", "", "", ""]
    with pytest.raises(ValueError, match="zip"):
        recorder.add_observation(SEEN, input_sizes=[(1,), (2,)])
