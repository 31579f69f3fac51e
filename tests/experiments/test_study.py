import math
from pathlib import Path

import pytest

from lipadvisor.experiments.space import Range
from lipadvisor.experiments.study import Study, open_journal

SPACE = (Range("lr", 1e-4, 1e-1, 1e-3, log=True), Range("warmup", 0.0, 0.3, 0.05))


def _open(path: Path, seed: int = 0) -> Study:
    study = Study("digits/cosine", SPACE, open_journal(path / "journal.log"), seed)
    study.requeue_orphans()
    return study


def _value(parameters: dict[str, float]) -> float:
    return abs(math.log10(parameters["lr"]) + 2) + parameters["warmup"]


def test_the_first_configuration_is_the_default(tmp_path: Path) -> None:
    assert _open(tmp_path).ask().parameters == {"lr": 1e-3, "warmup": 0.05}


def test_an_interrupted_search_tries_what_the_uninterrupted_one_tries(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    study = _open(whole)
    for _ in range(9):
        proposal = study.ask()
        study.tell(proposal.number, _value(proposal.parameters))
    for trial in range(9):
        study_cut = _open(cut)
        if trial in (0, 3, 7):  # this process dies with its trial
            study_cut.ask()
            study_cut = _open(cut)
        proposal = study_cut.ask()
        study_cut.tell(proposal.number, _value(proposal.parameters))
    expected = [(p.parameters, p.value) for p in study.finished()]
    assert [(p.parameters, p.value) for p in _open(cut).finished()] == expected
    assert len({p["lr"] for p, _ in expected}) == 9


def test_an_orphan_is_failed_and_asked_again(tmp_path: Path) -> None:
    first = _open(tmp_path)
    lost = first.ask()
    assert first.running == (lost.number,)
    reopened = _open(tmp_path)
    assert reopened.running == ()
    assert reopened.asked == 0
    again = reopened.ask()
    assert again == lost
    assert reopened.asked == 1
    assert _open(tmp_path).ask() == lost  # lost once more
    last = _open(tmp_path)
    assert last.ask() == lost
    assert last.tell(lost.number, 1.0)
    assert last.ask().number != lost.number
    assert [(trial.number, trial.value) for trial in last.finished()] == [(lost.number, 1.0)]


def test_telling_twice_changes_nothing(tmp_path: Path) -> None:
    study = _open(tmp_path)
    proposal = study.ask()
    assert study.tell(proposal.number, 2.0)
    assert not study.tell(proposal.number, 1.0)
    assert not study.fail(proposal.number)
    assert [trial.value for trial in _open(tmp_path).finished()] == [2.0]


def test_a_diverged_run_is_kept_and_never_best(tmp_path: Path) -> None:
    study = _open(tmp_path)
    for value in (math.nan, math.inf):
        study.tell(study.ask().number, value)
    assert study.best() is None
    study.tell(study.ask().number, 5.0)
    study.tell(study.ask().number, 5.0)
    best = study.best()
    assert best is not None
    assert (best.number, best.value) == (2, 5.0)


def test_a_failed_trial_counts_as_asked_and_not_as_finished(tmp_path: Path) -> None:
    study = _open(tmp_path)
    study.fail(study.ask().number)
    assert (study.asked, study.finished()) == (1, ())


def test_studies_share_a_journal_and_differ_by_seed(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "journal.log")
    tried = []
    for name, seed in (("a", 0), ("b", 0), ("a2", 1)):
        study = Study(name, SPACE, journal, seed)
        study.tell(study.ask().number, 1.0)
        tried.append(study.ask().parameters["lr"])
    assert len(set(tried)) == 3


@pytest.mark.parametrize(
    ("bounds", "words"),
    [((2.0, 1.0, 1.5, False), "low < high"), ((0.0, 1.0, 0.5, True), "> 0"), ((0.0, 1.0, 2.0, False), "default")],
)
def test_impossible_ranges_are_refused(bounds: tuple[float, float, float, bool], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Range("x", *bounds)
