"""The whole forecaster on series whose law is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lipadvisor.dynamics import coefficients
from lipadvisor.forecast import Forecaster
from lipadvisor.policies import Status
from lipadvisor.terms import Terms

MakeTerms = Callable[..., Terms]
RunOf = Callable[..., list[Terms]]


def _fed(run: Iterable[Terms], **given: Any) -> Forecaster:
    forecaster = None
    for terms in run:
        if forecaster is None:
            forecaster = Forecaster(terms.names, terms.composition_L, **given)
        forecaster.update(terms, coefficients(terms))
    assert forecaster is not None
    return forecaster


def _log_law(tau: float) -> float:
    return 1.0 / (tau + 0.5)


@pytest.mark.parametrize("lr", [0.05, 0.01])
def test_a_drift_of_one_over_tau_is_forecast_to_the_letter(run_of: RunOf, lr: float) -> None:
    # tau_c = 10 lr; the law's own offset differs, so a little of the first steps is left.
    run = run_of(lambda tau: 1.0 / (tau + 10 * lr), [lr] * 900)
    got = _fed(run[:600]).forecast(200)
    truth = run[800].network_log_norm
    assert got.status is Status.OK
    assert abs(got.network.mean[199] - truth) < 0.01 * abs(truth - run[600].network_log_norm)
    assert got.start_step == 600


def test_entries_are_one_step_ahead_each_for_layers_and_network(run_of: RunOf) -> None:
    got = _fed(run_of(lambda tau: 0.3, [0.1] * 300, layers=3)).forecast(10)
    assert list(got.layers) == ["layer0", "layer1", "layer2"]
    for name, series in (*got.layers.items(), ("*", got["*"])):
        rate = {"layer0": 0.03, "layer1": 0.06, "layer2": 0.09, "*": 0.18}[name]
        np.testing.assert_allclose(series.mean, rate * (300 + np.arange(1, 11)), rtol=1e-6)
        assert len(series.std) == len(series.lower) == len(series.upper) == 10
        assert (np.diff(series.std) >= 0).all()
        assert (series.lower <= series.mean).all()
        assert (series.mean <= series.upper).all()


@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_what_if_another_learning_rate_is_right(run_of: RunOf, factor: float) -> None:
    lr_T = np.concatenate((np.full(500, 0.02), np.full(100, 0.02 * factor)))
    run = run_of(lambda tau: 1.0 / (tau + 0.2), lr_T, sigma=0.05)
    forecaster = _fed(run[:500])
    truth = run[599].network_log_norm
    with_plan = forecaster.forecast(99, {"lr": 0.02 * factor}).network.mean[-1]
    without = forecaster.forecast(99).network.mean[-1]
    assert abs(with_plan - truth) < 0.25 * abs(without - truth)


def test_a_change_of_learning_rate_in_mid_run_does_not_fool_the_drift(run_of: RunOf) -> None:
    lr_T = np.concatenate((np.full(400, 0.08), np.full(300, 0.01)))
    run = run_of(lambda tau: 1.0 / (tau + 0.8), lr_T)
    got = _fed(run[:405]).forecast(200)
    truth = run[605].network_log_norm
    assert abs(got.network.mean[-1] - truth) < 0.05 * abs(truth - run[405].network_log_norm)


def test_planned_decay_counts_less_what_growth_takes_back(run_of: RunOf) -> None:
    # Drift that fades like 1 / u, u = tau + tau_c with tau_c = 10 lr: growth answers; drift that does not: none.
    fading, steady = run_of(lambda tau: 1.0 / (tau + 0.5), [0.05] * 300), run_of(lambda tau: 0.1, [0.05] * 300)
    # The answer to decay, dR/du = -decay - R/u, step by step.
    gap_h, gap = np.zeros(40), 0.0
    for j in range(40):
        before, after = 15.5 + 0.05 * j, 15.5 + 0.05 * (j + 1)
        gap = gap * before / after + np.log1p(-0.025)
        gap_h[j] = gap
    taken_h = np.arange(1, 41) * np.log1p(-0.025)
    assert gap > 0.95 * taken_h[-1]
    for run, expected_h in ((fading, gap_h), (steady, taken_h)):
        forecaster = _fed(run)
        decayed, plain = forecaster.forecast(40, {"weight_decay": 0.5}), forecaster.forecast(40)
        for name in ("layer0", "layer1"):
            np.testing.assert_allclose(decayed[name].mean - plain[name].mean, expected_h, rtol=2e-3)
        np.testing.assert_allclose(decayed.network.mean - plain.network.mean, 2 * expected_h, rtol=2e-3)
        kept = forecaster.forecast(40, {"weight_decay": 0.0})
        np.testing.assert_array_equal(kept.network.mean, plain.network.mean)


def test_decay_in_force_is_taken_out_of_the_drift(run_of: RunOf) -> None:
    run = run_of(lambda tau: 0.4, [0.05] * 400, weight_decay_T=[0.0] * 200 + [0.6] * 200)
    forecaster = _fed(run[:300])
    off, on = forecaster.forecast(10, {"weight_decay": 0.0}), forecaster.forecast(10)
    # Within a few steps the answer of growth to the decay that ends is small beside what it took off.
    np.testing.assert_allclose(np.diff(off["layer0"].mean)[0], 0.05 * 0.4, atol=0.01 * 0.03)
    np.testing.assert_allclose(on["layer0"].mean[9], run[310].log_norm_L[0], rtol=1e-6)


def test_a_learning_rate_of_zero_stands_still_and_teaches_nothing(run_of: RunOf) -> None:
    lr_T = [0.0] * 10 + [0.05] * 60 + [0.0] * 30
    run = run_of(lambda tau: 0.5, lr_T, sigma=0.1)
    forecaster = _fed(run)
    still = forecaster.forecast(30)
    np.testing.assert_allclose(still.network.mean, run[-1].network_log_norm, rtol=1e-12)
    again = forecaster.forecast(30, {"lr": 0.05})
    assert np.isfinite(again.network.mean).all()
    # Up to the weights of the experts: forecasts of before were scored while the clock stood still.
    before = _fed(run[:70]).forecast(30)
    moved = before.network.mean[-1] - run[70].network_log_norm
    assert abs(again.network.mean[-1] - before.network.mean[-1]) < 0.1 * abs(moved)
    longer = _fed(run + [replace(run[-1], step=100 + i) for i in range(300)])
    np.testing.assert_array_less(0.1 * again.network.std, longer.forecast(30, {"lr": 0.05}).network.std)


@pytest.mark.parametrize("every", [2, 5, 10])
def test_measuring_now_and_then_costs_little(run_of: RunOf, every: int) -> None:
    run = run_of(_log_law, np.linspace(0.1, 0.02, 800))
    got = _fed(run[:601:every]).forecast(150, {"lr": np.linspace(0.1, 0.02, 800)[601:751]})
    truth = run[751].network_log_norm
    assert got.start_step == 601
    assert abs(got.network.mean[-1] - truth) < 0.15 * abs(truth - run[601].network_log_norm)


def test_a_later_start_bridges_the_steps_since_the_measurement(run_of: RunOf) -> None:
    forecaster = _fed(run_of(lambda tau: 0.3, [0.1] * 60, sigma=0.05))  # noise: bands widen from the first step on
    late, whole = forecaster.forecast(5, step=67), forecaster.forecast(12)
    assert late.start_step == 67
    np.testing.assert_allclose(late.network.mean, whole.network.mean[7:])
    np.testing.assert_allclose(late.network.std, whole.network.std[7:])
    with pytest.raises(ValueError, match=r"forecast\(step=\.\.\.\) must be at least 60"):
        forecaster.forecast(5, step=3)


def test_coverage_and_crps_on_simulated_paths(run_of: RunOf) -> None:
    """Each one-step shock is Gaussian with the variance that is given: the band must learn its own width."""
    hits, crps, count = np.zeros(3), np.zeros(3), np.zeros(3)
    for seed in range(3):
        forecaster = _fed(run_of(_log_law, [0.05] * 1200, sigma=0.6, seed=seed, layers=1), horizons=(1, 10, 50))
        for i, score in enumerate(forecaster.scores().values()):
            hits[i] += score.coverage * score.n
            crps[i] += score.crps * score.n
            count[i] += score.n
    coverage = hits / count
    assert ((coverage > 0.85) & (coverage < 0.95)).all(), coverage
    # The CRPS of the right Gaussian is sigma / sqrt(pi); at one step it is nearly reached.
    assert crps[0] / count[0] == pytest.approx(0.05 * 0.6 / np.sqrt(np.pi), rel=0.05)


def test_scores_are_what_a_plain_loop_gets(run_of: RunOf) -> None:
    run = run_of(_log_law, [0.05] * 260, sigma=0.3)
    forecaster, made, errors, still, hits, last = None, {}, [], [], [], 0
    for terms in run:
        if forecaster is None:
            forecaster = Forecaster(terms.names, terms.composition_L)
        forecaster.update(terms, coefficients(terms))
        level = terms.network_log_norm + terms.change_L.sum()
        if terms.step - 10 in made:
            start, mean, lower, upper = made[terms.step - 10]
            errors.append(abs(level - mean))
            still.append(abs(level - start))
            hits.append(lower <= level <= upper)
        stride = 1 if len(errors) < 30 else 5
        if forecaster.updates >= 5 and forecaster.step // stride > last // stride:
            last = forecaster.step
            band = forecaster.forecast(10).network
            made[terms.step] = (level, band.mean[9], band.lower[9], band.upper[9])
    score = forecaster.scores()[10]  # type: ignore[union-attr]
    assert score.n == len(errors) > 60
    assert score.mae == pytest.approx(np.mean(errors), rel=1e-9)
    assert score.mae_persistence == pytest.approx(np.mean(still), rel=1e-9)
    assert abs(score.coverage - np.mean(hits)) < 0.05  # a band here may not be narrower than at shorter horizons


def test_statuses_from_too_few_to_ok(run_of: RunOf) -> None:
    run = run_of(lambda tau: 0.1, [0.05] * 60, sigma=0.1)
    forecaster = Forecaster(run[0].names, run[0].composition_L, horizons=(1, 10))
    assert forecaster.forecast(3).status is Status.TOO_FEW_POINTS
    seen = []
    for terms in run:
        forecaster.update(terms, coefficients(terms))
        seen.append((forecaster.forecast(3).status, forecaster.forecast(12).status))
    assert seen[3] == (Status.TOO_FEW_POINTS, Status.TOO_FEW_POINTS)
    assert seen[10] == (Status.UNCALIBRATED, Status.UNCALIBRATED)
    assert seen[26] == (Status.OK, Status.UNCALIBRATED)
    assert seen[-1] == (Status.OK, Status.OK)
    assert [band.horizon for band in forecaster.bands()] == [1, 10]


def test_bands_are_the_forecast_at_their_horizons(run_of: RunOf) -> None:
    forecaster = _fed(run_of(_log_law, [0.05] * 400, sigma=0.2), horizons=(1, 10, 50))
    series = forecaster.forecast(50).network
    for band in forecaster.bands():
        j = band.horizon - 1
        assert band.mean == pytest.approx(series.mean[j], rel=1e-12)
        assert band.std == pytest.approx(series.std[j], rel=0.1)
        assert band.lower <= band.mean <= band.upper
        assert band.status is Status.OK


def test_a_plan_that_moves_a_layer_too_far_is_refused_with_a_reason(run_of: RunOf) -> None:
    run = run_of(lambda tau: 0.1, [0.05] * 60, sigma=0.1, update_ratio_L=np.array([0.2, 1.0]))
    forecaster = _fed(run)
    assert forecaster.forecast(5).status is Status.OK
    warned = forecaster.forecast(5, {"lr": 0.15})
    assert warned.status is Status.OK
    assert "'layer1'" in warned.warnings[0]
    refused = forecaster.forecast(5, {"lr": [0.05, 0.05, 0.25, 0.05, 0.05]})
    assert refused.status is Status.UNSTABLE
    assert "refused" in refused.warnings[0]


def test_what_is_not_finite_is_marked_and_the_rest_goes_on(run_of: RunOf) -> None:
    run = run_of(lambda tau: 0.3, [0.1] * 60)
    holes = [
        replace(t, log_norm_L=t.log_norm_L * [np.nan, 1.0], network_log_norm=float("nan")) if 20 <= t.step < 25 else t
        for t in run
    ]
    got = _fed(holes).forecast(5)
    assert got.status is not Status.NON_FINITE
    np.testing.assert_allclose(got["layer0"].mean, 0.03 * (60 + np.arange(1, 6)), rtol=3e-6)
    np.testing.assert_allclose(got["*"].mean, 0.09 * (60 + np.arange(1, 6)), rtol=3e-6)
    never = [replace(t, log_norm_L=t.log_norm_L * [np.nan, 1.0], network_log_norm=float("nan")) for t in run]
    got = _fed(never).forecast(5)
    assert got.status is Status.NON_FINITE
    assert np.isnan(got["layer0"].mean).all()
    np.testing.assert_allclose(got["layer1"].mean, 0.06 * (60 + np.arange(1, 6)), rtol=1e-6)


def test_norms_alone_are_enough_for_a_drift_and_a_band(run_of: RunOf) -> None:
    nan_L = np.full(2, np.nan)
    run = [
        replace(t, level="norms", change_L=nan_L, first_L=nan_L, curvature_L=nan_L, noise_LL=np.full((2, 2), np.nan))
        for t in run_of(lambda tau: 0.3, [0.1] * 600, sigma=0.2)
    ]
    forecaster = _fed(run)
    got = forecaster.forecast(10)
    assert got.status is Status.OK
    assert got.start_step == 599
    assert np.isfinite(got.network.std).all()
    assert 0.8 < forecaster.scores()[10].coverage <= 0.97


def test_adam_s_first_step_without_noise_spoils_nothing(run_of: RunOf) -> None:
    run = run_of(_log_law, [0.05] * 200, sigma=0.2, optimizer="adamw", momentum=0.9)
    forecaster = _fed(run, optimizer="adamw", momentum=0.9)
    assert np.isnan(coefficients(run[0]).diffusion)
    assert np.isfinite(forecaster.forecast(20).network.std).all()
    assert forecaster.scores()[10].n > 60


def test_norms_after_the_step_are_believed_before_predictions(run_of: RunOf) -> None:
    run = run_of(lambda tau: 0.3, [0.1] * 60)
    wrong = [
        replace(t, change_L=t.change_L * 1.5, log_norm_after_L=t.log_norm_L + t.change_L)  # a bad second order
        for t in run
    ]
    np.testing.assert_allclose(_fed(wrong).forecast(5).network.mean, _fed(run).forecast(5).network.mean, rtol=1e-9)


def test_groups_may_have_their_own_rates(run_of: RunOf, make_terms: MakeTerms) -> None:
    lr_L, log_norm_L = np.array([0.1, 0.02]), np.zeros(2)
    run = []
    for step in range(300):
        change_L = lr_L * np.array([0.2, 0.5])
        run.append(make_terms(step, log_norm_L, change_L, lr_L))
        log_norm_L = log_norm_L + change_L
    got = _fed(run).forecast(10)
    np.testing.assert_allclose(got["layer0"].mean, 0.02 * (300 + np.arange(1, 11)), rtol=1e-6)
    np.testing.assert_allclose(got["layer1"].mean, 0.01 * (300 + np.arange(1, 11)), rtol=1e-6)
    np.testing.assert_allclose(got["*"].mean, 0.03 * (300 + np.arange(1, 11)), rtol=1e-6)


def test_a_rescale_from_outside_is_no_drift(run_of: RunOf) -> None:
    run = run_of(lambda tau: 0.3, [0.1] * 60)
    factor_L = np.array([-2.0, 1.0])
    moved = _fed(run[:30])
    moved.shift(factor_L)
    for terms in run[30:]:
        log_norm_L = terms.log_norm_L + factor_L
        there = replace(terms, log_norm_L=log_norm_L, network_log_norm=float(log_norm_L.sum()))
        moved.update(there, coefficients(there))
    plain = _fed(run)
    np.testing.assert_allclose(moved.forecast(5)["layer0"].mean, plain.forecast(5)["layer0"].mean - 2.0, rtol=1e-9)
    for horizon, score in plain.scores().items():
        assert moved.scores()[horizon].mae == pytest.approx(score.mae, nan_ok=True)


def test_weights_put_back_start_afresh_and_keep_the_drift(run_of: RunOf) -> None:
    run = run_of(lambda tau: 0.3, [0.1] * 60)
    got = _fed([*run[:50], *run[20:40]])
    np.testing.assert_allclose(got.forecast(3).network.mean, 0.09 * np.array([41.0, 42.0, 43.0]), rtol=1e-6)
    assert got.forecast(3).start_step == 40
    assert got.scores()[10].mae < _fed(run).scores()[10].mae_persistence / 5


@pytest.mark.parametrize("every", [1, 3])
def test_round_trip_goes_on_to_the_bit(run_of: RunOf, every: int) -> None:
    run = run_of(_log_law, np.linspace(0.1, 0.01, 400), sigma=0.2)[::every]
    half = len(run) // 2
    one = _fed(run[:half], optimizer="adamw", momentum=0.9)
    two = Forecaster(run[0].names, run[0].composition_L, optimizer="adamw", momentum=0.9)
    two.load_state_dict(one.state_dict())
    for terms in run[half:]:
        for forecaster in (one, two):
            forecaster.update(terms, coefficients(terms))
    assert one.bands() == two.bands()
    assert repr(one.scores()) == repr(two.scores())  # nan where nothing could be scored
    first, second = one.forecast(30, {"lr": 0.02}), two.forecast(30, {"lr": 0.02})
    for name in ("layer0", "layer1", "*"):
        np.testing.assert_array_equal(first[name].mean, second[name].mean)
        np.testing.assert_array_equal(first[name].upper, second[name].upper)


def test_a_saved_state_does_not_move_on_with_the_run(run_of: RunOf) -> None:
    run = run_of(_log_law, [0.05] * 120, sigma=0.2)
    one = _fed(run[:80])
    saved, bands = one.state_dict(), one.bands()
    one.shift(np.array([1.0, 1.0]))
    for terms in run[80:]:
        one.update(terms, coefficients(terms))
    one.load_state_dict(saved)
    assert one.bands() == bands


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"momentum": 1.0}, r"Forecaster\(momentum=\.\.\.\) must be in \[0, 1\), got 1\.0"),
        ({"horizons": (10, 1)}, r"Forecaster\(horizons=\.\.\.\) must be ascending"),
        ({"horizons": ()}, r"Forecaster\(horizons=\.\.\.\) must be ascending"),
        ({"horizons": (0, 1)}, r"horizon=\.\.\.\) must be an integer of at least 1, got 0"),
        ({"composition_L": np.ones(3)}, r"must have one length of at least 1, got 2 and 3"),
    ],
)
def test_impossible_constructions_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Forecaster(**({"names": ("a", "b"), "composition_L": np.ones(2)} | given))


def test_other_layers_and_states_are_refused(run_of: RunOf) -> None:
    run = run_of(lambda tau: 0.1, [0.05] * 3)
    other = Forecaster(("a", "b"), np.ones(2))
    with pytest.raises(ValueError, match="must have the layers"):
        other.update(run[0], coefficients(run[0]))
    with pytest.raises(ValueError, match="must have names"):
        other.load_state_dict(_fed(run).state_dict())
    with pytest.raises(KeyError, match="no layer 'c'"):
        other.scores("c")


def test_a_plan_is_refused_by_what_the_loss_says_of_it(run_of: RunOf) -> None:
    run = [replace(t, update_ratio_L=np.full(2, 0.2)) for t in run_of(lambda tau: 0.3, [0.1] * 100, sigma=0.05)]
    told, quiet = Forecaster(run[0].names, run[0].composition_L), Forecaster(run[0].names, run[0].composition_L)
    for terms in run:
        told.update(terms, coefficients(terms), 2.0 if terms.step == 0 else 0.02)
        quiet.update(terms, coefficients(terms))
    # The average relative update at four times the rate is .08: far from .2, but not from half of a tenth.
    assert quiet.forecast(10, {"lr": 0.4}).status is Status.OK
    refused = told.forecast(10, {"lr": 0.4})
    assert refused.status is Status.UNSTABLE
    assert "refused" in refused.warnings[0]
    assert told.forecast(10, {"lr": 0.05}).status is Status.OK
    again = Forecaster(run[0].names, run[0].composition_L)
    again.load_state_dict(told.state_dict())
    assert again.forecast(10, {"lr": 0.4}).warnings == refused.warnings


def test_many_layers_that_each_bear_a_rise_may_not_bear_it_together(run_of: RunOf) -> None:
    ratio_L = np.full(6, 0.5)
    for optimizer, finite, status in (("sgd", 0.0, "unstable"), ("adamw", 0.0, "ok"), ("sgd", 8.0, "ok")):
        run = run_of(lambda tau: 0.1, [0.05] * 100, 0.05, layers=6, update_ratio_L=ratio_L, optimizer=optimizer)
        forecaster = Forecaster(run[0].names, run[0].composition_L, optimizer=optimizer)
        for terms in run:
            rates = coefficients(terms)
            forecaster.update(terms, replace(rates, finite_step=finite), 2.0 if terms.step == 0 else 0.5)
        # At .4 each layer moves by .2 and bears .26, half the root of the loss over the first; the network by 1.2.
        made = forecaster.forecast(10, {"lr": 0.4})
        assert made.status.value == status, (optimizer, finite)
        assert ("whole network" in made.warnings[0]) == (status == "unstable")
