"""The page of tables is what the runs wrote."""

from __future__ import annotations

from click.testing import CliRunner

from lipadvisor.experiments.benchmarks.command import bench
from lipadvisor.experiments.benchmarks.publish import page
from lipadvisor.experiments.benchmarks.store import Results


def test_the_page_holds_every_table_of_the_folders_in_order(tmp_path):
    for name, suites in (("one", ("zero", "grid")), ("two", ("zero",))):
        folder = tmp_path / name
        results = Results(folder / "results.json")
        results.add({"arm": name}, {"test": [1.0]})
        results.write()
        for suite in suites:
            (folder / f"{suite}.md").write_text(f"### {name}, suite {suite}\n\n| a |\n\n", encoding="utf-8")
    text = page([tmp_path / "two", tmp_path / "one"])
    order = [text.index(f"### {title}") for title in ("two, suite zero", "one, suite zero", "one, suite grid")]
    assert order == sorted(order)
    assert "## two: 1 records" in text
    target = tmp_path / "page.md"
    result = CliRunner().invoke(bench, ["publish", str(tmp_path / "one"), "--to", str(target)])
    assert result.exit_code == 0
    assert target.read_text(encoding="utf-8") == page([tmp_path / "one"])


def test_the_figures_of_untuned_runs_stand_beside_the_page_that_shows_them(tmp_path):
    for name in ("one", "two"):
        folder = tmp_path / name
        Results(folder / "results.json").write()
        (folder / "zero.md").write_text("### suite zero\n", encoding="utf-8")
    (tmp_path / "two" / "zero.svg").write_text("<svg> \n</svg>\n", encoding="utf-8")
    target = tmp_path / "page.md"
    options = ["publish", str(tmp_path / "one"), str(tmp_path / "two"), "--to", str(target)]
    assert CliRunner().invoke(bench, options).exit_code == 0
    assert (tmp_path / "page_two.svg").read_text(encoding="utf-8") == "<svg>\n</svg>\n"
    assert "(page_two.svg)" in target.read_text(encoding="utf-8")
    assert not (tmp_path / "page_one.svg").exists()
    assert "page_one" not in target.read_text(encoding="utf-8")


def test_a_folder_without_tables_is_one_line(tmp_path):
    result = CliRunner().invoke(bench, ["publish", str(tmp_path), "--to", str(tmp_path / "page.md")])
    assert result.exit_code == 1
    assert "holds no table of a suite" in result.output
    assert not (tmp_path / "page.md").exists()
