import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from lipadvisor.experiments.campaign import Campaign
from lipadvisor.experiments.records import REPLICATE, SEARCH, Job, Record, Results
from lipadvisor.experiments.space import Range

LR = (Range("lr", 1e-4, 1e-1, 1e-2, log=True),)
SPACES = {("mlp", "cosine"): LR, ("mlp", "untuned"): (), ("conv", "cosine"): LR, ("conv", "untuned"): ()}


def _campaign(folder: Path) -> Campaign:
    return Campaign(folder, SPACES, trials=4, replicates=3, seed=10)


def _record(job: Job, status: str = "finished") -> Record:
    loss = abs(job.parameters.get("lr", 0.05) - 0.003) + 0.001 * job.seed
    return Record(job, status, steps=5, validation_loss=loss, test_loss=2 * loss)


def _run(campaign: Campaign, places: int, limit: int = 1000) -> list[Job]:
    """Run ``places`` jobs at a time; the oldest ends first. Stops, leaving jobs running, after ``limit`` ends."""
    running: list[Job] = []
    ended: list[Job] = []
    while len(ended) < limit:
        while len(running) < places and (job := campaign.ask()) is not None:
            running.append(job)
        if not running:
            break
        ended.append(running.pop(0))
        campaign.tell(_record(ended[-1]))
    return ended


def test_every_search_gets_its_trials_and_every_arm_its_repetitions(tmp_path: Path) -> None:
    campaign = _campaign(tmp_path)
    assert (campaign.total, campaign.done, campaign.finished) == (2 * 4 + 4 * 3, 0, False)
    ended = _run(campaign, places=2)
    assert Counter((job.workload, job.arm, job.stage) for job in ended) == {
        **{(*pair, SEARCH): 4 for pair, space in SPACES.items() if space},
        **{(*pair, REPLICATE): 3 for pair in SPACES},
    }
    assert (campaign.total, campaign.done, campaign.finished) == (20, 20, True)
    assert {job.seed for job in ended if job.stage == SEARCH} == {10}
    for pair in SPACES:
        assert [r.job.seed for r in campaign.results.of(*pair, REPLICATE)] == [11, 12, 13]


def test_repetitions_take_the_configuration_of_lowest_validation_loss(tmp_path: Path) -> None:
    campaign = _campaign(tmp_path)
    _run(campaign, places=2)
    for pair, space in SPACES.items():
        searched = campaign.results.of(*pair, SEARCH)
        best = min(searched, key=lambda r: r.validation_loss or 0.0).job.parameters if space else {}
        assert all(r.job.parameters == best for r in campaign.results.of(*pair, REPLICATE))


def test_a_search_has_one_configuration_out_at_a_time_while_others_can_fill_the_place(tmp_path: Path) -> None:
    campaign = _campaign(tmp_path)
    one, two = campaign.ask(), campaign.ask()
    assert one is not None
    assert two is not None
    assert one.workload != two.workload


@pytest.mark.parametrize("limit", [0, 1, 5, 9, 13, 19])
def test_a_campaign_cut_anywhere_ends_like_the_uninterrupted_one(tmp_path: Path, limit: int) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    expected = _run(_campaign(whole), places=2)
    _run(_campaign(cut), places=2, limit=limit)
    again = _campaign(cut)
    assert again.done == limit
    _run(again, places=2)
    assert again.finished
    parameters = [
        {(j.workload, j.arm, j.stage, j.seed, j.parameters.get("lr")) for j in jobs}
        for jobs in (expected, [record.job for record in again.results.all()])
    ]
    assert parameters[0] == parameters[1]


def test_a_result_recorded_but_not_told_is_told_once_on_restart(tmp_path: Path) -> None:
    campaign = _campaign(tmp_path)
    job = campaign.ask()
    assert job is not None
    campaign.results.add(_record(job))  # the process dies here, before the study hears of it
    again = _campaign(tmp_path)
    names = [ended.name for ended in _run(again, places=1)]
    assert job.name not in names
    assert Counter(r.job.stage for r in again.results.all()) == {SEARCH: 8, REPLICATE: 12}


def test_failed_and_diverged_trials_use_up_the_budget_and_are_never_selected(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, {("mlp", "cosine"): LR}, trials=3, replicates=2, seed=0)
    for status in ("failed", "diverged", "failed"):
        job = campaign.ask()
        assert job is not None
        campaign.tell(Record(job, status))
    assert campaign.ask() is None
    assert (campaign.finished, campaign.total, campaign.done) == (True, 3, 3)
    assert campaign.best(("mlp", "cosine")) is None


def test_telling_twice_keeps_the_first(tmp_path: Path) -> None:
    campaign = _campaign(tmp_path)
    job = campaign.ask()
    assert job is not None
    campaign.tell(_record(job))
    campaign.tell(Record(job, "failed"))
    assert [r.status for r in campaign.results.all()] == ["finished"]


def test_a_torn_last_line_is_dropped_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    results = Results(path)
    for number in range(3):
        results.add(Record(Job("a", "b", SEARCH, number, 0), "finished", curve=((1, None, 0.5), (2, 0.25, 0.125))))
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for cut in (last + 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        torn = Results(path)
        assert [r.job.number for r in torn.all()] == [0, 1]
        torn.add(Record(Job("a", "b", SEARCH, 9, 0), "finished"))
        assert [r.job.number for r in Results(path).all()] == [0, 1, 9]
        assert Results(path).all()[0] == results.all()[0]


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({"job": {}}) + "\n")
    with pytest.raises(ValueError, match=r"results\.jsonl:1"):
        Results(path)


def test_a_nan_is_written_as_null(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.jsonl")
    results.add(Record(Job("a", "b", SEARCH, 0, 0), "diverged", validation_loss=float("nan")))
    assert Results(tmp_path / "r.jsonl").all()[0].validation_loss is None


def test_names_are_unique(tmp_path: Path) -> None:
    jobs = [Job(w, a, s, n, 0) for w, a, s, n in itertools.product("ab", "cd", (SEARCH, REPLICATE), range(3))]
    assert len({job.name for job in jobs}) == len(jobs)
