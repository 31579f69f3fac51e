import math
from pathlib import Path

import pytest

from lipadvisor.experiments.comparison import compare
from lipadvisor.experiments.records import REPLICATE, SEARCH, Job, Record, Results
from lipadvisor.experiments.table import comparison_table

ARMS = {
    "cosine": {"summary": "c", "baseline": True, "searched": True},
    "wsd": {"summary": "w", "baseline": True, "searched": True},
    "lipschitz": {"summary": "l", "baseline": False, "searched": False},
}
LOSSES = {"cosine": (0.2, 0.3, 0.4), "wsd": (0.25, 0.3, 0.45), "lipschitz": (0.1, 0.6, 0.4)}


def _results(folder: Path) -> Results:
    results = Results(folder)
    for arm, losses in LOSSES.items():
        for number, loss in enumerate(losses):
            job = Job("mlp", arm, REPLICATE, number, 5 + number)
            results.add(Record(job, "finished", steps=7, test_loss=loss, test_accuracy=0.9, validation_loss=9.0))
    results.add(Record(Job("mlp", "wsd", SEARCH, 0, 4), "finished", steps=7, validation_loss=0.1, test_loss=0.001))
    return results


def test_ratios_are_paired_and_to_the_baseline_of_lowest_test_loss(tmp_path: Path) -> None:
    (workload,) = compare(_results(tmp_path), ARMS, {"mlp": "an MLP"}, 0)["workloads"]
    assert workload["best_baseline"] == "cosine"
    assert workload["shown"] == "mlp-lipschitz-replicate-000"
    rows = {row["arm"]: row for row in workload["arms"]}
    expected = math.prod(a / b for a, b in zip(LOSSES["lipschitz"], LOSSES["cosine"], strict=True)) ** (1 / 3)
    assert rows["lipschitz"]["ratio"]["value"] == pytest.approx(expected)
    assert rows["cosine"]["ratio"]["value"] == pytest.approx(1.0)
    assert rows["cosine"]["test_loss"]["mean"] == pytest.approx(0.3)
    assert (rows["wsd"]["trials"], rows["wsd"]["repetitions"], rows["cosine"]["trials"]) == (1, 3, 0)
    assert rows["wsd"]["test_loss"]["mean"] > 0.3  # the search's test loss is in no figure


def test_runs_without_a_partner_are_left_out_of_the_ratio(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add(Record(Job("mlp", "cosine", REPLICATE, 0, 5), "finished", test_loss=0.2))
    results.add(Record(Job("mlp", "cosine", REPLICATE, 1, 6), "diverged"))
    for number in range(3):
        results.add(Record(Job("mlp", "lipschitz", REPLICATE, number, 5 + number), "finished", test_loss=0.1))
    (workload,) = compare(results, ARMS, {"mlp": ""}, 0)["workloads"]
    rows = {row["arm"]: row for row in workload["arms"]}
    assert (rows["lipschitz"]["ratio"]["pairs"], rows["lipschitz"]["ratio"]["value"]) == (1, pytest.approx(0.5))
    assert rows["cosine"]["not_finished"] == 1


def test_an_empty_campaign_compares_to_nothing(tmp_path: Path) -> None:
    comparison = compare(Results(tmp_path), ARMS, {"mlp": ""}, 0)
    assert comparison["workloads"][0]["best_baseline"] is None
    assert all(row["ratio"] is None for row in comparison["workloads"][0]["arms"])
    assert "none finished" in comparison_table(comparison)


def test_the_table_has_a_row_for_each_arm(tmp_path: Path) -> None:
    lines = comparison_table(compare(_results(tmp_path), ARMS, {"mlp": ""}, 0)).splitlines()
    assert lines[0].split()[:2] == ["workload", "arm"]
    assert lines[2].startswith("mlp       cosine*")
    assert "0.3000 ± 0.1000" in lines[2]
    assert "90.00 ± 0.00 %" in lines[2]
    assert "untuned" in lines[4]
