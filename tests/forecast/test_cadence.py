"""When forecasts are due: often at first, then together, and never at a step that was passed over."""

from __future__ import annotations

import numpy as np
import pytest

from lipadvisor.forecast.cadence import AT_FIRST, Cadence

HORIZONS = (1, 10, 50, 200)


def _made(steps: list[int], scored_H: list[int]) -> list[list[int]]:
    cadence = Cadence(HORIZONS)
    cadence.pace(scored_H)
    made: list[list[int]] = [[] for _ in HORIZONS]
    for step in steps:
        assert (step >= cadence.next_step) == bool(cadence.due(step))
        for place in cadence.due(step):
            made[place].append(step)
            cadence.note(place, step)
    return made


def test_at_first_every_twentieth_of_the_horizon() -> None:
    made = _made(list(range(1, 101)), [0, 0, 0, 0])
    assert [len(own) for own in made] == [100, 100, 51, 11]


def test_later_all_horizons_at_the_same_steps() -> None:
    made = _made(list(range(1, 101)), [AT_FIRST] * 4)
    assert made[0] == made[1] == made[2] == [1, *range(5, 101, 5)]
    assert made[3] == [1, *range(10, 101, 10)]


@pytest.mark.parametrize("every", [5, 7, 20])
def test_sparse_measurements_are_all_used(every: int) -> None:
    steps = list(range(1, 400, every))
    made = _made(steps, [AT_FIRST] * 4)
    assert made[0] == made[1] == made[2] == steps
    assert np.diff(made[3]).max() <= max(10, 2 * every)


def test_a_horizon_that_has_been_taught_little_keeps_its_pace() -> None:
    made = _made(list(range(1, 101)), [AT_FIRST, AT_FIRST - 1, AT_FIRST, 0])
    assert [len(own) for own in made] == [21, 100, 21, 11]


def test_a_restart_begins_at_once_and_a_reload_goes_on() -> None:
    cadence = Cadence(HORIZONS)
    cadence.pace([AT_FIRST] * 4)
    for place in cadence.due(12):
        cadence.note(place, 12)
    assert cadence.due(13) == []
    again = Cadence(HORIZONS)
    again.load(cadence.last_H, [AT_FIRST] * 4)
    assert [again.due(step) for step in (13, 15, 20)] == [cadence.due(step) for step in (13, 15, 20)]
    cadence.restart()
    assert cadence.due(13) == [0, 1, 2, 3]
