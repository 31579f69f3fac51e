import re
from pathlib import Path

import pytest

from lipadvisor.advisor import Advisor
from lipadvisor.experiments.comparison import compare
from lipadvisor.experiments.records import REPLICATE, Job, Record, Results
from lipadvisor.experiments.workloads import WORKLOADS
from lipadvisor.report import write_report
from lipadvisor.trajectory import TrajectoryStore, write_json

ARMS = {
    "cosine": {"summary": "cosine <tuned>", "baseline": True, "searched": True},
    "lipschitz": {"summary": "untuned", "baseline": False, "searched": False},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real trials of 25 steps in one directory, compared."""
    folder = tmp_path_factory.mktemp("compared")
    workload = WORKLOADS["digits_mlp"]
    data, results = workload.load(), Results(folder)
    with TrajectoryStore(folder) as store:
        for arm in ARMS:
            job = Job("digits_mlp", arm, REPLICATE, 0, 1)
            model = workload.model(1)
            optimizer = workload.optimizer(model)
            batches = workload.batches(data, 1)
            curve = []
            with Advisor(model, optimizer, 25, policy=arm, interval=1, sink=store.sink(job.name)) as advisor:
                for step in range(25):
                    x, y = next(batches)
                    loss = workload.loss(model(x), y)
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    advisor.step(loss)
                    curve.append((step + 1, float(loss), workload.evaluate(model, data.validation).loss))
            test = workload.evaluate(model, data.test)
            results.add(
                Record(job, "finished", 25, test_loss=test.loss, test_accuracy=test.accuracy, curve=tuple(curve))
            )
    write_json(folder / "comparison.json", compare(results, ARMS, {"digits_mlp": "an <MLP>"}, 0))
    write_json(folder / "run.json", {"title": "A & B", "header": {"Seed": "<1>"}, "state": "finished"})
    return folder


def test_the_page_has_every_part_and_loads_nothing(run: Path) -> None:
    page = write_report(run).read_text()
    assert page.count("<svg") == page.count("<figcaption>") == 5
    assert "http" not in page
    assert not re.search(r"<(script|link|img|iframe)\b|@import|url\((?!#)", page)
    for words in ("times the test loss of the best tuned baseline", "Relative error of the norm", "spectral:", "nats"):
        assert words in page
    assert "A &amp; B" in page
    assert "&lt;MLP&gt;" in page
    assert "<MLP>" not in page


def test_ids_are_unique_and_every_reference_is_there(run: Path) -> None:
    page = write_report(run).read_text()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    referred = set(re.findall(r"url\(#([^)]+)\)", page)) | set(re.findall(r'href="#([^"]+)"', page))
    assert referred
    assert referred <= set(ids)


def test_the_same_run_gives_the_same_page(run: Path, tmp_path: Path) -> None:
    first, second = (write_report(run, tmp_path / name).read_text() for name in ("a.html", "b.html"))
    assert first == second


def test_an_unfinished_run_says_so_and_shows_what_is_there(run: Path, tmp_path: Path) -> None:
    empty = Results(tmp_path)
    with TrajectoryStore(tmp_path) as store:
        store.begin("digits_mlp-cosine-search-000")
    write_json(tmp_path / "comparison.json", compare(empty, ARMS, {"digits_mlp": "x"}, 0))
    write_json(tmp_path / "run.json", {"state": "interrupted", "done": 0, "total": 9})
    page = write_report(tmp_path).read_text()
    assert "not finished (interrupted): 0 of 9" in page
    assert "<svg" not in page
