"""Forecasts that wait, as arrays for a checkpoint and back: what several of them share is kept once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lipadvisor.forecast.outcomes import Learned, Matured, Present
from lipadvisor.terms import Array

__all__ = ["dump", "load"]


def dump(waiting: Sequence[Iterable[tuple[Present, Learned, Array]]], matured: Iterable[Matured]) -> dict[str, Any]:
    """Return the forecasts that wait, horizon by horizon, and those that wait to be learned from."""
    rows = [(place, *one) for place, own in enumerate(waiting) for one in own]
    ready = list(matured)
    presents = _Unique([made for _, made, *_ in rows] + [p for one in ready for p in (one.made, one.now)])
    learned = _Unique([one for _, _, one, _ in rows] + [one.learned for one in ready])
    return {
        "step": np.array([present.step for present in presents.items]),
        "record": np.array([present.record_RS for present in presents.items]),
        "learned": np.array([one.rows_HRS for one in learned.items]),
        "waiting": np.array([(place, presents.at(made), learned.at(own)) for place, made, own, _ in rows]),
        "answer": np.array([one.answer_S for one in ready] + [answer_S for *_, answer_S in rows]),
        "matured": np.array(
            [(one.place, presents.at(one.made), learned.at(one.learned), presents.at(one.now)) for one in ready]
        ),
    }


def load(state: Mapping[str, Any], horizons: int) -> tuple[list[list[tuple[Present, Learned, Array]]], list[Matured]]:
    """Return what :func:`dump` was given, as lists."""
    records = [np.array(record_RS, dtype=np.float64) for record_RS in state["record"]]
    presents = [Present(int(step), record_RS) for step, record_RS in zip(state["step"], records, strict=True)]
    learned = [Learned(np.array(rows_HRS, dtype=np.float64)) for rows_HRS in state["learned"]]
    answers = iter(np.array(state["answer"], dtype=np.float64))
    matured = [
        Matured(int(place), presents[int(made)], learned[int(own)], next(answers), presents[int(now)])
        for place, made, own, now in state["matured"]
    ]
    waiting: list[list[tuple[Present, Learned, Array]]] = [[] for _ in range(horizons)]
    for place, made, own in state["waiting"]:
        waiting[int(place)].append((presents[int(made)], learned[int(own)], next(answers)))
    return waiting, matured


class _Unique:
    """Objects without repetition, in the order of their first appearance."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items: list[Any] = []
        self._index: dict[int, int] = {}
        for item in items:
            if id(item) not in self._index:
                self._index[id(item)] = len(self.items)
                self.items.append(item)

    def at(self, item: Any) -> int:
        """Return the index of an item among ``items``."""
        return self._index[id(item)]
