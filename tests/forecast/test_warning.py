"""The early warning: two signs within the window, nothing before, and a restart that changes nothing."""

from __future__ import annotations

import math

import pytest

from lipadvisor.forecast import DivergenceWarning


def calm(warning: DivergenceWarning, start: int, stop: int) -> None:
    for step in range(start, stop):
        assert not warning.update(step, 1.0, 0.0, 0.01, (step + 10, 0.0, 0.1)).raised


def test_one_sign_is_not_enough_two_are() -> None:
    warning = DivergenceWarning()
    calm(warning, 0, 100)
    one = warning.update(100, 1.0, 0.0, 0.2)
    assert one.signs == ("update",)
    assert not one.raised
    two = warning.update(101, 1.0, 0.5, 0.01)  # 5 standard deviations off what was forecast at step 91
    assert two.signs == ("forecast", "update")
    assert two.raised
    assert not warning.update(200, 1.0, 0.0, 0.01).signs


def test_the_loss_counts_by_its_rise_above_its_minimum() -> None:
    warning = DivergenceWarning(smoothing=1.0)
    calm(warning, 0, 60)
    assert warning.update(60, 1.18, 0.0, 0.01).signs == ()
    assert warning.update(61, 1.2, 0.0, 0.01).signs == ("loss",)


def test_not_a_number_is_a_sign() -> None:
    warning = DivergenceWarning()
    calm(warning, 0, 60)
    alarm = warning.update(60, math.nan, math.nan, math.nan)
    assert alarm.raised
    assert set(alarm.signs) == {"forecast", "loss", "update"}


def test_nothing_counts_while_it_settles() -> None:
    warning = DivergenceWarning(settle=50)
    for step in range(49):
        assert not warning.update(step, 10.0 * step, float(step), 1.0).signs


def test_going_on_from_its_state_changes_nothing() -> None:
    whole, first = DivergenceWarning(), DivergenceWarning()
    calm(whole, 0, 95)
    calm(first, 0, 95)
    second = DivergenceWarning()
    second.load_state_dict(first.state_dict())
    for step in range(95, 130):
        assert second.update(step, 1.0 + step % 7, 0.3, 0.06) == whole.update(step, 1.0 + step % 7, 0.3, 0.06)


@pytest.mark.parametrize(
    "bad", [{"z_limit": 0.0}, {"loss_limit": -1.0}, {"ratio_limit": 0.0}, {"window": 0}, {"smoothing": 0.0}]
)
def test_bad_arguments_are_named(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        DivergenceWarning(**bad)  # type: ignore[arg-type]
