import re
from pathlib import Path

import numpy as np
import pytest

from lipadvisor.advisor import Advisor
from lipadvisor.experiments.comparison import compare
from lipadvisor.experiments.records import REPLICATE, Job, Record, Results
from lipadvisor.experiments.workloads import WORKLOADS
from lipadvisor.report import endangered_trials, write_report
from lipadvisor.report.figure_prediction import draw_prediction
from lipadvisor.report.growth import dangers, growth
from lipadvisor.report.prediction import track
from lipadvisor.trajectory import TrajectoryStore, load_run, write_json

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
    assert page.count("<svg") == page.count("<figcaption>") == 6
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


def test_growth_is_split_and_an_early_warning_is_told_and_marked(run: Path, tmp_path: Path) -> None:
    page = write_report(run).read_text()
    assert "The early warning of divergence was not raised." in page
    assert "Where the growth came from" in page
    assert page.count("noise curvature") > 1
    one = load_run(run).trial("digits_mlp-lipschitz-replicate-000").observations
    seen = growth(one)
    assert seen is not None
    levels = one[one.layer == "*"].sort_values("step").log_norm
    np.testing.assert_allclose(seen.growth_T, levels - levels.iloc[0], atol=1e-12)
    np.testing.assert_allclose(sum(seen.parts_T.values()), seen.growth_T, atol=1e-9)
    assert sum(row[1] for row in seen.rows[:-1]) == pytest.approx(seen.growth_T[-1])
    assert sum(row[3] for row in seen.rows[:-1]) == pytest.approx(seen.rows[-1][3])

    marked = one.copy()
    marked.loc[(marked.layer == "*") & marked.step.isin([5, 6, 7, 20]), "alarm"] = "forecast update"
    marked.loc[(marked.layer == "*") & (marked.step == 7), "alarm"] = "loss update"
    found = dangers(marked)
    assert [(stretch.first, stretch.last) for stretch in found.stretches] == [(5, 7), (20, 20)]
    assert found.stretches[0].signs == ("forecast", "update", "loss")
    assert not dangers(one.drop(columns="alarm")).recorded
    tracks = [track(one, load_run(run).trial("digits_mlp-lipschitz-replicate-000").forecasts, "*", 10)]
    plain, drawn = draw_prediction(tracks, "x"), draw_prediction(tracks, "x", [(5, 7), (20, 20)])
    assert "early warning" not in plain
    assert "early warning" in drawn


def test_a_run_that_was_lost_says_that_it_was_announced(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 8, generator=generator)
    targets = inputs[:, :3].argmax(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Advisor(model, optimizer, 300, mode="shadow", interval=2, out=tmp_path / "lost") as advisor:
        for step in range(300):
            optimizer.param_groups[0]["lr"] = 0.1 * 1.03 ** max(0, step - 100)
            rows = slice(16 * (step % 16), 16 * (step % 16) + 16)
            loss = torch.nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            advisor.step(loss)
    page = write_report(tmp_path / "lost").read_text()
    assert "raised in 1 of 1 trial:" in page
    assert f"marked in the figure above: steps {advisor.alarms[0].step} to" in page
    assert "early warning" in page[page.index("<svg") : page.index("</svg>")]
    assert endangered_trials(load_run(tmp_path / "lost")) == ("run",)


@pytest.mark.parametrize("mode", ["takeover", "cap", "shadow"])
def test_the_page_says_what_was_done_to_the_weights_and_what_was_only_wished(tmp_path: Path, mode: str) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    start = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Advisor(model, optimizer, 20, mode=mode, interval=1, out=tmp_path / "run") as advisor:  # type: ignore[arg-type]
        for _ in range(3):
            x = torch.randn(16, 8, generator=generator)
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            advisor.step(loss)
    page = write_report(tmp_path / "run").read_text()
    assert load_run(tmp_path / "run").decisions.init_scale.iloc[0] != "{}", "this network's initialization is rescaled"
    touched = mode == "takeover"
    assert ("the policy rescaled" in page) == touched
    assert ("would have rescaled" in page) == (f"({mode} mode)" in page) == (not touched)
    assert ("the policy touched nothing" in page) == (mode == "shadow")
    assert torch.equal(start, model[0].weight) != touched
