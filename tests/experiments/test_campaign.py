import itertools
from collections import Counter
from pathlib import Path

import pytest

from lipadvisor.experiments.campaign import Campaign
from lipadvisor.experiments.records import REPLICATE, SEARCH, Job, Record, Results
from lipadvisor.experiments.space import Range
from lipadvisor.policies import as_json
from lipadvisor.trajectory import write_json

LR = (Range("lr", 1e-4, 1e-1, 1e-2, log=True),)
SPACES = {("mlp", "cosine"): LR, ("mlp", "untuned"): (), ("conv", "cosine"): LR, ("conv", "untuned"): ()}


def _campaign(folder: Path) -> Campaign:
    return Campaign(folder, SPACES, trials=4, replicates=3, seed=10)


def _record(job: Job, status: str = "finished") -> Record:
    loss = abs(job.parameters.get("lr", 0.05) - 0.003) + 0.001 * job.seed
    return Record(job, status, steps=5, validation_loss=loss, test_loss=2 * loss)


def _keep(folder: Path, record: Record) -> None:
    """What the driver does when a trial hands in its result."""
    entry = {"trial": record.job.name, "config": {"job": as_json(record.job)}, "result": record.as_result()}
    write_json(folder / "results" / f"{record.job.name}.json", entry)


def _run(folder: Path, campaign: Campaign, places: int, limit: int = 1000) -> list[Job]:
    """Run ``places`` jobs at a time; the oldest ends first. Stops, leaving jobs running, after ``limit`` ends."""
    running: list[Job] = []
    ended: list[Job] = []
    while len(ended) < limit:
        while len(running) < places and (job := campaign.ask()) is not None:
            running.append(job)
        if not running:
            break
        ended.append(running.pop(0))
        _keep(folder, _record(ended[-1]))
        campaign.tell(_record(ended[-1]))
    return ended


def test_every_search_gets_its_trials_and_every_arm_its_repetitions(tmp_path: Path) -> None:
    campaign = _campaign(tmp_path)
    assert (campaign.total, campaign.done, campaign.finished) == (2 * 4 + 4 * 3, 0, False)
    ended = _run(tmp_path, campaign, places=2)
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
    _run(tmp_path, campaign, places=2)
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
    expected = _run(whole, _campaign(whole), places=2)
    _run(cut, _campaign(cut), places=2, limit=limit)
    again = _campaign(cut)
    assert again.done == limit
    _run(cut, again, places=2)
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
    _keep(tmp_path, _record(job))  # the process dies here, before the study hears of it
    again = _campaign(tmp_path)
    names = [ended.name for ended in _run(tmp_path, again, places=1)]
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


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    record = Record(Job("a", "b", SEARCH, 3, 1, {"lr": 0.5}), "finished", curve=((1, None, 0.5), (2, 0.25, 0.125)))
    _keep(tmp_path, record)
    assert Results(tmp_path).all() == (record,)


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "results" / "x.json", {"config": {}, "result": {}})
    with pytest.raises(ValueError, match=r"x\.json"):
        Results(tmp_path)


def test_names_are_unique(tmp_path: Path) -> None:
    jobs = [Job(w, a, s, n, 0) for w, a, s, n in itertools.product("ab", "cd", (SEARCH, REPLICATE), range(3))]
    assert len({job.name for job in jobs}) == len(jobs)
