"""The parts that bars are computed with, against plain integrals and series of known law."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.integrate import quad
from scipy.stats import norm

from lipadvisor.experiments.bars import BARS, bar
from lipadvisor.experiments.bars.command import bars
from lipadvisor.experiments.bars.networks import NETWORKS
from lipadvisor.experiments.bars.recorded import INTERVAL, Recorded
from lipadvisor.experiments.bars.schedules import Pieces, Ramp, WarmupCosine
from lipadvisor.experiments.bars.scoring import HORIZONS, crps, score_run
from lipadvisor.experiments.bars.twins import Subject, run_twins
from lipadvisor.experiments.reproduce.batch_size import exponent
from lipadvisor.experiments.reproduce.images import load_images
from lipadvisor.experiments.reproduce.run_log import RunLog
from lipadvisor.experiments.workloads import WORKLOADS
from lipadvisor.terms import Terms


@pytest.mark.parametrize(("error", "std"), [(0.0, 1.0), (0.7, 0.3), (-2.0, 1.5), (5.0, 0.1)])
def test_crps_is_its_integral(error: float, std: float) -> None:
    below = quad(lambda x: norm.cdf(x, scale=std) ** 2, -20, error, points=[0.0] if error > 0 else None, limit=200)[0]
    above = quad(lambda x: norm.sf(x, scale=std) ** 2, error, 20, points=[0.0] if error < 0 else None, limit=200)[0]
    assert float(crps(np.array([error]), np.array([std]))[0]) == pytest.approx(below + above, rel=1e-5)


def test_schedules() -> None:
    cosine = WarmupCosine(10, 110)
    assert [cosine(0), cosine(9), cosine(10)] == pytest.approx([0.1, 1.0, 1.0])
    assert cosine(60) == pytest.approx(0.505)
    assert cosine(110) == pytest.approx(0.01)
    pieces = Pieces(((0, 1.0), (5, 0.25)))
    assert [pieces(4), pieces(5), pieces(50)] == [1.0, 0.25, 0.25]
    ramp = Ramp(3, 2.0)
    assert [ramp(0), ramp(3), ramp(5)] == [1.0, 1.0, 4.0]


def test_exponent_of_a_power_law() -> None:
    size = np.array([8.0, 16.0, 64.0])
    assert exponent(size, 3.0 / size) == pytest.approx(-1.0)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_networks_take_the_digits(name: str) -> None:
    images = load_images("digits")
    assert NETWORKS[name]()(images.train_inputs[:3]).shape == (3, 10)


def test_every_bar_has_its_module() -> None:
    for name in BARS:
        assert callable(bar(name))
    with pytest.raises(ValueError, match="bars NAME must be one of"):
        bar("speed")


def _recorded(drift: float, lr_N: np.ndarray, noise: float) -> Recorded:
    """Return a run of one layer whose log-norm moves by ``drift`` per unit of tau, plus noise."""
    generator = np.random.default_rng(0)
    steps = len(lr_N)
    change_N = lr_N * drift + noise * generator.normal(size=steps)
    level_N = np.concatenate(([0.0], np.cumsum(change_N)))
    log = RunLog("made")
    for step in range(steps):
        terms = None
        if step % INTERVAL == 0:
            one = np.ones(1)
            terms = Terms(
                step=step,
                names=("a",),
                kinds=("linear",),
                shapes=((2, 2),),
                groups=(0,),
                lr_L=one * lr_N[step],
                weight_decay_L=0 * one,
                composition_L=one,
                log_norm_L=one * level_N[step],
                gap_L=one,
                log_gain_L=one,
                first_L=one * change_N[step] / lr_N[step],
                curvature_L=0 * one,
                change_L=one * change_N[step],
                update_ratio_L=one * 0.1,
                noise_LL=np.full((1, 1), (noise / lr_N[step]) ** 2),
                noise_curvature_L=0 * one,
                network_log_norm=float(level_N[step]),
                batch_size=8,
                optimizer="sgd",
                momentum=0.0,
                optimizer_step=step + 1,
                status_L=("ok",),
            )
        log.add(1.0, terms)
    return Recorded("made", "steps", "sgd", log, lr_N, np.zeros(steps))


def test_a_known_plan_beats_every_slope_where_the_rate_changes() -> None:
    lr_N = np.where(np.arange(900) < 500, 0.1, 0.02)
    scores = score_run(_recorded(0.05, lr_N, 1e-5))
    for horizon in HORIZONS:
        across = scores[horizon].ratios(scores[horizon].changed_N)
        assert across["n"] >= 1
        assert across["mae_ratio"] < 0.3
    assert scores[10].ratios()["coverage"] > 0.8


def test_windows_without_a_change_are_not_counted_as_across_one() -> None:
    scores = score_run(_recorded(0.05, np.full(600, 0.1), 1e-4))
    assert not scores[50].changed_N.any()
    assert scores[50].ratios(scores[50].changed_N) == {"n": 0.0}


def test_the_command_writes_what_it_measured(tmp_path: Path) -> None:
    done = CliRunner().invoke(bars, ["cost", "--quick", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "cost" / "bar.json").read_text())
    assert found["quick"] is True
    assert found["checks"][0][1] > 0.0
    assert "prediction" in (tmp_path / "cost" / "table.txt").read_text()
    assert CliRunner().invoke(bars, ["speed"]).exit_code == 2


TIMED = ("cost", "levels", "probe-cost", "probe-floor")  # they keep nothing: a clock is read anew


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_the_twin_of_an_advised_training_computes_the_same_numbers(name: str) -> None:
    workload = WORKLOADS[name]
    data = workload.load()
    lines: list[str] = []
    subject = Subject(name, workload.model, workload.optimizer, lambda seed: workload.batches(data, seed), seconds=0.0)
    twins = run_twins(subject, 3, 0.5, lines.append)
    assert twins.same
    assert twins.steps >= 3
    assert twins.measurements >= 3
    assert 0 < twins.reported < 1
    assert lines


def test_twins_of_other_numbers_are_told() -> None:
    workload = WORKLOADS["digits_mlp"]
    data = workload.load()
    seeds = iter(range(100))  # other batches every time they are asked for
    subject = Subject("other", workload.model, workload.optimizer, lambda _: workload.batches(data, next(seeds)), 0.0)
    assert not run_twins(subject, 3, 0.5, lambda _: None).same


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in BARS if name not in (*TIMED, "divergence", "scaling")])
def test_quick_bars_run_and_resume(tmp_path: Path, name: str) -> None:
    importlib.import_module(f"lipadvisor.experiments.bars.{BARS[name]}")
    first = CliRunner().invoke(bars, [name, "--quick", "--out", str(tmp_path)])
    assert first.exit_code == 0, first.output
    kept = (tmp_path / name / "bar.json").read_text()
    assert json.loads(kept)["checks"]
    again = CliRunner().invoke(bars, [name, "--quick", "--out", str(tmp_path)])
    assert again.exit_code == 0, again.output
    assert (tmp_path / name / "bar.json").read_text() == kept
