"""The early warning: two signs within the window, nothing before, and a restart that changes nothing."""

from __future__ import annotations

import math

import pytest

from lipadvisor.forecast import LEAD_STEPS, DivergenceWarning, wanted_update


def calm(warning: DivergenceWarning, start: int, stop: int) -> None:
    for step in range(start, stop):
        assert not warning.update(step, 1.0, 0.0, 0.01, (step + 10, 0.0, 0.1)).raised


def test_one_sign_is_not_enough_two_are() -> None:
    warning = DivergenceWarning()
    calm(warning, 0, 104)
    one = warning.update(104, 1.0, 0.0, 0.2)
    assert one.signs == ("update",)
    assert not one.raised
    two = warning.update(105, 1.0, 0.5, 0.01)  # 5 standard deviations off what was forecast at step 95
    assert two.signs == ("forecast", "update")
    assert two.raised
    assert two.read == (("forecast", pytest.approx(5.0), 2.2), ("update", 0.2, 0.057))
    told = two.describe()
    assert "off by 5.0 standard deviations (limit 2.2); the largest relative update is 0.200 (limit 0.057)" in told
    assert str(LEAD_STEPS[1]) in told
    assert not warning.update(200, 1.0, 0.0, 0.01).signs


def test_a_run_measured_at_every_step_is_not_asked_more_often() -> None:
    rare, often = DivergenceWarning(settle=0), DivergenceWarning(settle=0)
    for step in range(200):
        forecast = (step + 10, 0.0 if step % 5 == 0 else 99.0, 0.1)  # those in between would all be wrong
        assert often.update(step, 1.0, 0.0, 0.01, forecast).signs == ()
        if step % 5 == 0:
            assert rare.update(step, 1.0, 0.0, 0.01, forecast).signs == ()


@pytest.mark.parametrize(("interval", "judged"), [(1, True), (5, True), (7, True), (20, True), (21, False)])
def test_a_forecast_is_judged_at_the_first_measurement_after_its_step(interval: int, judged: bool) -> None:
    warning = DivergenceWarning(settle=0)
    slope, seen = 0.1, []
    for step in range(0, 200, interval):  # forecasts see the slope, until it breaks
        now = slope * step if step <= 100 else slope * 100 + 3.0 * slope * (step - 100)
        seen.append(warning.update(step, 1.0, now, 0.01, (step + 10, now + 10 * slope, 0.2)).signs)
    assert (("forecast",) in seen) == judged
    assert seen[0] == ()


def test_an_update_that_the_policy_wants_is_no_sign() -> None:
    for wanted, signs in ((None, ("update",)), (0.02, ("update",)), (0.10, ()), (0.05, ("update",))):
        warning = DivergenceWarning(settle=0)
        assert warning.update(1, 1.0, 0.0, 0.12, wanted=wanted).signs == signs
    assert DivergenceWarning(settle=0).update(1, 1.0, 0.0, math.nan, wanted=0.1).signs == ("update",)


def test_what_a_policy_wants_is_read_off_its_decision() -> None:
    assert wanted_update(()) is None
    assert wanted_update((("relative_step", 0.1), ("total_ratio", 3.0))) == 0.1
    assert wanted_update((("relative_step", 0.1), ("median_over_spectral", 0.5))) == 0.2
    assert wanted_update((("relative_step", math.nan),)) is None
    assert wanted_update((("relative_step", 0.1), ("median_over_spectral", 0.0))) is None


def test_weights_that_were_put_back_start_anew_with_the_first_loss() -> None:
    warning = DivergenceWarning(smoothing=1.0, settle=0)
    warning.update(1, 2.0, 0.0, 0.01, (11, 5.0, 0.1))
    assert warning.update(2, 0.5, 0.0, 0.2).signs == ("update",)
    warning.restart()
    assert warning.update(11, 0.9, 0.0, 0.01).signs == ()  # neither the forecast nor the old minimum counts
    assert warning.update(12, 1.05, 0.0, 0.01).signs == ()  # .075 of the first loss, .17 of the one after
    assert warning.update(13, 1.1, 0.0, 0.01).signs == ("loss",)


def test_the_loss_counts_by_its_rise_above_its_minimum() -> None:
    for first in (1.0, 1000.0):  # in units of the first loss
        warning = DivergenceWarning(smoothing=1.0, settle=0)
        for step, loss in enumerate((1.0, 0.6, 0.2, 0.28)):
            assert warning.update(step, first * loss, 0.0, 0.01).signs == ()
        assert warning.update(4, first * 0.284, 0.0, 0.01).signs == ("loss",)


def test_not_a_number_is_a_sign() -> None:
    warning = DivergenceWarning()
    calm(warning, 0, 105)
    alarm = warning.update(105, math.nan, math.nan, math.nan)
    assert alarm.raised
    assert "nan" in alarm.describe()
    assert set(alarm.signs) == {"forecast", "loss", "update"}


def test_nothing_counts_while_it_settles() -> None:
    warning = DivergenceWarning(settle=50)
    for step in range(49):
        assert not warning.update(step, 10.0 * step, float(step), 1.0).signs


def test_going_on_from_its_state_changes_nothing() -> None:
    whole, first = DivergenceWarning(), DivergenceWarning()
    calm(whole, 0, 125)
    calm(first, 0, 125)
    second = DivergenceWarning()
    second.load_state_dict(first.state_dict())
    seen = [second.update(step, 1.0 + step % 7, 0.3, 0.06) for step in range(125, 160)]
    assert seen == [whole.update(step, 1.0 + step % 7, 0.3, 0.06) for step in range(125, 160)]
    assert {sign for alarm in seen for sign in alarm.signs} == {"forecast", "loss", "update"}


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        *(("z_limit", 0.0), ("z_limit", "x"), ("z_limit", True), ("loss_limit", -1.0), ("ratio_limit", 0.0)),
        *(("window", 0), ("window", 2.5), ("settle", -1), ("smoothing", 0.0), ("smoothing", None)),
        ("wanted_factor", 0.5),
    ],
)
def test_bad_arguments_are_named(argument: str, bad: object) -> None:
    with pytest.raises(ValueError, match=rf"DivergenceWarning\({argument}=...\) must be .*, got {bad!r}"):
        DivergenceWarning(**{argument: bad})  # type: ignore[arg-type]
