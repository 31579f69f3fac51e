import json
from typing import Any

import pytest

from lipadvisor.experiments.settings import QUICK, Settings
from lipadvisor.policies import as_json


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"workloads": ("mnist",)}, "workload 'mnist'; there are digits_mlp"),
        ({"arms": ("linear",)}, "arm 'linear'; there are constant"),
        ({"arms": ()}, "at least one arm"),
        ({"arms": ("cosine", "cosine")}, "named once"),
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"steps": -5}, "steps must be at least 1, got -5"),
        ({"replicates": 0}, "replicates"),
        ({"seed": -1}, "seed"),
        ({"policy_at": "moon"}, "trial, hub"),
        ({"max_overhead": 0.0}, r"\(0, 1\]"),
        ({"max_overhead": float("nan")}, r"\(0, 1\]"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings(**change)


def test_settings_survive_json_and_name_what_differs() -> None:
    settings = Settings(**QUICK)
    recorded = json.loads(json.dumps(as_json(settings)))
    assert settings.differences(recorded) == ()
    changed = Settings(**{**QUICK, "steps": 31, "arms": ("cosine",)})
    assert changed.differences(recorded) == ("arms cosine, was cosine, lipschitz", "steps 31, was 30")
