"""A blind policy is the policy as it would be if nothing were ever validated."""

from __future__ import annotations

from typing import Any

import pytest

from lipadvisor.experiments.benchmarks.blind import Blind
from lipadvisor.experiments.benchmarks.drive import drive
from lipadvisor.experiments.benchmarks.frozen import frozen_hash, source_files
from lipadvisor.experiments.benchmarks.lists import TASKS
from lipadvisor.policies import Cosine, Decision, Lipschitz, Observation


class _Witness(Cosine):
    """Notes whether it was ever shown a validation loss."""

    shown = False

    def decide(self, observation: Observation, state: Any) -> tuple[Decision, Any]:
        type(self).shown = type(self).shown or observation.validation_loss is not None
        return super().decide(observation, state)


@pytest.mark.parametrize("blind", [False, True])
def test_a_blind_policy_is_shown_no_validation_and_decides_as_it_would(blind: bool) -> None:
    witness = type("Fresh", (_Witness,), {"shown": False})(lr=0.01)
    told = drive(TASKS["wine"], [Blind(witness) if blind else witness], [0], decide_every=5, validate_every=6)
    assert type(witness).shown is not blind
    assert told.test == drive(TASKS["wine"], [Cosine(lr=0.01)], [0], decide_every=5).test


def test_its_records_depend_on_what_it_wraps() -> None:
    assert frozen_hash(Blind(Lipschitz(budget=0.4))) != frozen_hash(Blind(Lipschitz()))
    assert {path.stem for path in source_files(Blind(Lipschitz()))} >= {"blind", "overfitting", "contract"}
