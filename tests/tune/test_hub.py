"""The stream to the hub on real Ray: nothing lost, nothing twice, whatever is killed; decisions late and on time."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle

from lipadvisor.policies.contract import Decision, Knobs, Layer, Observation
from lipadvisor.trajectory import Recorder, TrajectoryStore, load_run
from lipadvisor.tune import Hub, HubClient, HubPolicy, HubUnavailableError, ray_session, start_hub
from lipadvisor.tune.hub import Question, packed

pytestmark = pytest.mark.slow


def seen(step: int) -> Observation:
    return Observation(step, 100, 0.0, "sgd", 0.0, (), Layer("*", "network", (), -1, 1.0, 0.0, 0.5, 0.0), ())


@dataclass(frozen=True, slots=True)
class Counting:
    """Proposes 1 / (decisions so far): its answers show whether its state has been carried on."""

    slow_s: float = 0.0
    slow_until: int = 0
    name: str = "counting"

    def init(self) -> int:
        return 0

    def decide(self, observation: Observation, state: int) -> tuple[Decision, int]:
        if observation.step < self.slow_until and ray.get_runtime_context().get_actor_id() is not None:
            time.sleep(self.slow_s)
        return Decision(observation.step, self.name, "count", (Knobs(0, 1.0 / (state + 1)),)), state + 1


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_session(at_least_cpus=2, object_store_bytes=100_000_000):
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def hub(cluster: None, out: Path) -> Any:
    return start_hub(out, f"hub-{uuid.uuid4().hex}")


def stream(client: HubClient, steps: range, hub: Any, kill_at: frozenset[int] = frozenset()) -> None:
    recorder = Recorder(client.put, batch_rows=3, batch_s=1e9)
    for step in steps:
        recorder.add_observation(seen(step))
        if step in kill_at:
            ray.kill(hub, no_restart=False)
        time.sleep(0.001)
    recorder.close()


def steps(out: Path, trial: str) -> list[int]:
    return load_run(out).trial(trial).observations["step"].tolist()


def test_a_hub_killed_again_and_again_loses_nothing_and_doubles_nothing(out: Path, hub: Any) -> None:
    client = HubClient(hub, "killed", config={"lr": 0.1})
    stream(client, range(600), hub, frozenset({50, 51, 200, 400, 598}))
    client.close()
    assert steps(out, "killed") == list(range(600))
    counts = client.counts()
    assert counts["resends"] > 0, "the kills were not noticed"
    assert (counts["rows"], counts["unacknowledged"], counts["stalls"]) == (600, 0, 0)
    facts = {"config": {"lr": 0.1}, "attempts": 1, "lost_batches": 0, "result": None}
    assert load_run(out).meta["trials"]["killed"] == facts


def test_two_trials_share_a_hub_and_a_second_attempt_takes_over(out: Path, hub: Any) -> None:
    first, other = HubClient(hub, "a"), HubClient(hub, "b")
    stream(first, range(30), hub)
    stream(other, range(20), hub, frozenset({10}))
    first.close()
    other.close()
    second = HubClient(hub, "a", start_step=25)
    assert (first.attempt, second.attempt) == (1, 2)
    stream(second, range(25, 40), hub)
    second.close()
    assert steps(out, "a") == list(range(40))
    assert load_run(out).trial("a").observations["attempt"].tolist() == [1] * 25 + [2] * 15
    assert steps(out, "b") == list(range(20))


def test_a_full_backlog_waits_and_is_counted(out: Path, hub: Any) -> None:
    client = HubClient(hub, "full", max_backlog_rows=10)
    ray.kill(hub, no_restart=False)
    stream(client, range(60), hub)
    client.close()
    assert client.counts()["stalls"] > 0
    assert client.backlog_rows == 0
    assert steps(out, "full") == list(range(60))


def test_a_hub_gone_for_good_is_an_error_and_not_a_hang(cluster: None, tmp_path: Path) -> None:
    hub = start_hub(tmp_path, f"hub-{uuid.uuid4().hex}")
    client = HubClient(hub, "t", max_backlog_rows=5, patience_s=0.5)
    ray.kill(hub, no_restart=True)
    with pytest.raises(HubUnavailableError, match="rows wait"):
        stream(client, range(100), hub)
    with pytest.raises(HubUnavailableError, match="did not acknowledge"):
        client.close()
    with pytest.raises(HubUnavailableError, match="no hub"):
        HubClient(hub, "other", patience_s=0.5)


def test_a_disk_that_does_not_take_it_is_waited_for(out: Path, hub: Any) -> None:
    client = HubClient(hub, "disk")
    blocked = out / "trajectory" / "disk" / "1-observations.arrows"
    blocked.mkdir()
    stream(client, range(9), hub)
    assert not client.flush(0.3)
    blocked.rmdir()
    client.close()
    assert client.counts()["resends"] > 0
    assert steps(out, "disk") == list(range(9))


def test_what_the_hub_refuses_is_said_to_the_trial(out: Path, hub: Any) -> None:
    client = HubClient(hub, "refused")
    client.put({"observations": [(1, 2, 3)]})
    with pytest.raises(ValueError, match="refused a batch: a row of 'observations' must have"):
        client.flush(30)
    stream(client, range(6), hub)
    client.close()
    assert steps(out, "refused") == list(range(6))
    assert load_run(out).meta["trials"]["refused"]["lost_batches"] == 1
    with pytest.raises(ValueError, match="trial's name"):
        HubClient(hub, "../escape")


@pytest.fixture
def by_value() -> Iterator[None]:
    """The hub cannot import this file; a user's script travels by value in the same way."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def decide_all(policy: HubPolicy[int], steps: range) -> list[Decision]:
    state, decisions = policy.init(), []
    for step in steps:
        decision, state = policy.decide(seen(step), state)
        decisions.append(decision)
    return decisions


@pytest.mark.usefixtures("by_value")
def test_decisions_of_the_hub_equal_those_of_the_trial(hub: Any) -> None:
    client = HubClient(hub, "asking")
    decisions = decide_all(HubPolicy(Counting(), client, patience_s=30.0), range(20))
    assert [decision.knobs[0].lr for decision in decisions] == [1.0 / (step + 1) for step in range(20)]
    assert {decision.source for decision in decisions} == {"hub"}
    assert (client.counts()["asked"], client.counts()["late"]) == (20, 0)
    client.close()


@pytest.mark.usefixtures("by_value")
def test_a_late_answer_is_replaced_and_nobody_waits_for_it(hub: Any) -> None:
    client = HubClient(hub, "late")
    policy = HubPolicy(Counting(slow_s=3.0, slow_until=3), client, patience_s=0.1)
    began = time.monotonic()
    early = decide_all(policy, range(3))
    assert time.monotonic() - began < 1.0, "one patience, not one for each step"
    assert [decision.source for decision in early] == ["local:late"] * 3
    assert [decision.knobs[0].lr for decision in early] == [1.0, 1 / 2, 1 / 3]
    assert client.flush(30)
    policy = HubPolicy(Counting(), client, patience_s=30.0)
    assert [decision.source for decision in decide_all(policy, range(3, 6))] == ["hub"] * 3
    assert client.counts()["late"] == 3
    client.close()


@pytest.mark.usefixtures("by_value")
def test_a_hub_killed_amid_decisions_changes_none_of_them(out: Path, hub: Any) -> None:
    client = HubClient(hub, "amid")
    policy, recorder = HubPolicy(Counting(), client, patience_s=0.5), Recorder(client.put, batch_rows=1)
    state, decisions = policy.init(), []
    for step in range(2000):
        recorder.add_observation(seen(step))
        if step in (20, 40):
            ray.kill(hub, no_restart=False)
        decision, state = policy.decide(seen(step), state)
        recorder.add_decision(decision)
        decisions.append(decision)
        if step > 60 and decision.source == "hub":
            break
        time.sleep(0.02)
    recorder.close()
    client.close()
    assert [decision.knobs[0].lr for decision in decisions] == [1.0 / (n + 1) for n in range(len(decisions))]
    assert decisions[-1].source == "hub", "the hub did not come back"
    assert {decision.source for decision in decisions} == {"hub", "local:late"}
    recorded = load_run(out).trial("amid").decisions
    assert recorded["step"].tolist() == list(range(len(decisions)))
    assert recorded["source"].tolist() == [decision.source for decision in decisions]


def test_a_policy_that_the_hub_cannot_import_costs_no_row(
    out: Path, hub: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = HubClient(hub, "foreign")
    policy, recorder = HubPolicy(Counting(), client, patience_s=30.0), Recorder(client.put, batch_rows=1)
    for step in range(5):
        recorder.add_observation(seen(step))
        assert policy.decide(seen(step), step)[0].source == "local:late"
    client.close()
    assert caplog.text.count("the hub cannot: ModuleNotFoundError") == 1
    assert client.counts()["resends"] == 0
    assert steps(out, "foreign") == list(range(5))


def test_the_hub_is_a_plain_object_too(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    assert hub.begin("t", 0, {}, "token") == 1
    answer = hub.push("t", 1, [], packed(Question(Counting(), seen(0), 4)))
    assert answer.answer is not None
    assert answer.answer[1] == 5
    assert answer.sequence == 0
    silent = hub.push("t", 1, [], packed(Question(Counting(), seen(0), "not a number")))
    assert silent.answer is None
    assert silent.silent.startswith("TypeError")
    assert TrajectoryStore(tmp_path).last_sequence("t", 1) == 0


@pytest.mark.parametrize("arguments", [{"max_backlog_rows": 0}, {"patience_s": 0.0}])
def test_bad_arguments_are_named(arguments: dict[str, Any]) -> None:
    name = next(iter(arguments))
    with pytest.raises(ValueError, match=rf"HubClient\({name}="):
        HubClient("nobody", "t", **arguments)
    with pytest.raises(ValueError, match="patience_s"):
        HubPolicy(Counting(), None, 0.0)  # type: ignore[arg-type]
