from collections.abc import Mapping
from typing import Any

import pytest
import torch

from lipadvisor.experiments.arms import ARMS
from lipadvisor.experiments.records import REPLICATE, SEARCH, Job, Record, record_of
from lipadvisor.experiments.settings import Settings
from lipadvisor.experiments.trial import decode_state, encode_state, train, trial_config
from lipadvisor.policies import Policy
from lipadvisor.trajectory import Batch

SETTINGS = Settings(steps=24, evaluations=6)


class _KilledError(Exception):
    """The process dies."""


class _Context:
    """What Ray's side gives to a trial, without Ray: checkpoints go through the same bytes."""

    def __init__(self, config: Mapping[str, Any], dies_at: int | None = None, checkpoint: bytes | None = None) -> None:
        self.config, self.checkpoint, self._dies_at = dict(config), checkpoint, dies_at
        self.rows: list[Batch] = []
        self.reported: list[int] = []

    def sink(self, batch: Batch) -> None:
        self.rows.append(batch)

    def policy(self, policy: Policy[Any]) -> Policy[Any]:
        return policy

    def report(self, metrics: Mapping[str, Any], checkpoint_state: Any = None) -> None:
        self.reported.append(metrics["step"])
        if checkpoint_state is not None:
            self.checkpoint = encode_state(checkpoint_state)
        if metrics["step"] == self._dies_at:
            raise _KilledError

    def restore(self) -> Any:
        return None if self.checkpoint is None else decode_state(self.checkpoint)


def _record(context: _Context) -> Record:
    return record_of(_job(context.config["job"]["workload"], context.config["job"]["arm"]), train(context))  # type: ignore[arg-type]


def _job(workload: str, arm: str, stage: str = REPLICATE) -> Job:
    space = ARMS[arm].space("adamw" if workload == "digits_mlp" else "sgd")
    return Job(workload, arm, stage, 0, 3, {item.name: item.default for item in space})


@pytest.mark.parametrize("workload", ["digits_mlp", "digits_convnet"])
@pytest.mark.parametrize("arm", ["cosine", "lipschitz"])
def test_a_trial_gives_a_whole_record_and_streams_its_trajectory(workload: str, arm: str) -> None:
    context = _Context(trial_config(_job(workload, arm), SETTINGS))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    record = _record(context)
    assert torch.equal(state, torch.get_rng_state())
    assert (record.status, record.steps, record.advisor_errors) == ("finished", 24, 0)
    assert [point[0] for point in record.curve] == context.reported == [4, 8, 12, 16, 20, 24]
    assert record.curve[-1][2] == record.validation_loss
    assert 0 < record.overhead < 1
    for table in ("observations", "forecasts", "decisions"):
        assert sum(len(batch.get(table, ())) for batch in context.rows) > 24


@pytest.mark.parametrize("arm", ["cosine", "lipschitz"])
def test_a_killed_trial_goes_on_from_its_checkpoint_as_if_it_had_not_been(arm: str) -> None:
    config = trial_config(_job("digits_mlp", arm), SETTINGS)
    whole = _record(_Context(config))
    first = _Context(config, dies_at=20)
    with pytest.raises(_KilledError):
        train(first)  # type: ignore[arg-type]
    second = _Context(config, checkpoint=first.checkpoint)
    resumed = _record(second)
    assert second.reported[0] > 8
    assert resumed.curve == whole.curve
    assert (resumed.test_loss, resumed.validation_loss) == (whole.test_loss, whole.validation_loss)


def test_a_diverged_trial_says_so() -> None:
    job = Job("digits_mlp", "constant", REPLICATE, 0, 0, {"lr": 1e30, "weight_decay": 0.0})
    record = _record(_Context(trial_config(job, SETTINGS)))
    assert record.status == "diverged"
    assert record.validation_loss is None


def test_only_the_searches_of_baselines_are_measured_sparsely() -> None:
    def interval(arm: str, stage: str, settings: Settings) -> Any:
        return trial_config(_job("digits_mlp", arm, stage), settings)["interval"]

    assert interval("cosine", SEARCH, SETTINGS) is None
    assert interval("cosine", REPLICATE, SETTINGS) == 1
    assert interval("lipschitz_tuned", SEARCH, SETTINGS) == 1
    budgeted = Settings(max_overhead=0.2)
    assert interval("lipschitz", REPLICATE, budgeted) is None
    assert trial_config(_job("digits_mlp", "lipschitz"), budgeted)["max_overhead"] == 0.2
