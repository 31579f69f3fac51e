"""What is learned from many outcomes at once is what a plain loop learns from one after the other."""

from __future__ import annotations

import functools
import math
from collections import deque
from typing import Any

import numpy as np
import pytest

from lipadvisor.dynamics import squared_response_sums
from lipadvisor.forecast.experts import AVERAGES, POWER_E, SMOOTHINGS
from lipadvisor.forecast.outcomes import DECAY, LEVEL, NOISE, SLOPES, SQUARED, START, TAU, VALUES, Present
from lipadvisor.forecast.tracker import Tracker
from lipadvisor.terms import Array

HORIZONS = (1, 10, 50)
PRIOR_E = np.linspace(1.0, 2.0, len(POWER_E)) / np.linspace(1.0, 2.0, len(POWER_E)).sum()
PATIENCE, AT_FIRST = 32, 30
EARLY, LATE = (1, 1, 2), (5, 5, 5)  # steps between forecasts, before and after that many outcomes


class PlainTracker:
    """One series, one forecast at a time, plain numbers; learns when `Tracker` does."""

    def __init__(self, optimizer: str, momentum: float) -> None:
        self.response = (optimizer, momentum)
        count = len(HORIZONS)
        self.waiting: list[deque[dict[str, Any]]] = [deque() for _ in HORIZONS]
        self.ready: list[tuple[int, dict[str, Any], int, list[float]]] = []
        self.last_made = [-stride for stride in EARLY]
        self.error = [[0.0] * len(POWER_E) for _ in HORIZONS]
        self.log, self.peak, self.n = [0.0] * count, [0.0] * count, [0] * count
        self.scale, self.quantile = [1.0] * count, [1.6448536269514722] * count
        self.dropped = [0] * count
        self.scores: list[list[tuple[float, ...]]] = [[] for _ in HORIZONS]
        self.weight = [self.weights(place) for place in range(count)]

    def update(self, step: int, record: list[float], lr: float, network_n: list[int], learns: bool) -> None:
        if learns:
            for place, made, at, outcome in self.ready:
                self.learn(place, made, at, outcome)
            self.ready.clear()
            # Kept in its range once for all outcomes that are learned from together.
            self.quantile = [min(max(one, 1.2), 3.0) for one in self.quantile]
            self.weight = [self.weights(place) for place in range(len(HORIZONS))]
        strides = [EARLY[place] if network_n[place] < AT_FIRST else LATE[place] for place in range(len(HORIZONS))]
        due = [place for place, n in enumerate(strides) if step // n > self.last_made[place] // n]
        if learns or any(network_n[place] == 0 for place in due):
            self.settle(record, lr, network_n)
        for place in due:
            made = {"step": step, "record": record, "weight": self.weight[place]}
            made |= {"scale": self.scale[place], "quantile": self.quantile[place]}
            self.waiting[place].append(made)
            self.last_made[place] = step

    def mature(self, step: int, record: list[float]) -> None:
        for place, horizon in enumerate(HORIZONS):
            while self.waiting[place] and step - self.waiting[place][0]["step"] >= horizon:
                made = self.waiting[place].popleft()
                if step - made["step"] > 1.5 * horizon:
                    self.dropped[place] += 1
                else:
                    self.ready.append((place, made, step, record))

    def moments(self, weight: list[float], record: list[float], advance: float) -> tuple[list[float], float, float]:
        start = record[START]
        integrals = (advance, math.log1p(advance / start), advance / start / (start + advance))
        each = [record[VALUES.start + e] * integrals[POWER_E[e]] for e in range(len(POWER_E))]
        mean = math.fsum(w * f for w, f in zip(weight, each, strict=True))
        return each, mean, math.fsum(w * f * f for w, f in zip(weight, each, strict=True))

    def raw(self, squared: float, noise: float, steps: float, mean: float, second: float) -> float:
        s_2 = _squares(*self.response, steps)
        variance = squared * noise * s_2 / (steps * math.sqrt(1.0 + steps / 10.0)) + max(second - mean**2, 0.0)
        return math.sqrt(max(variance, 1e-20)) if not math.isnan(variance) else math.nan

    def learn(self, place: int, made: dict[str, Any], step: int, now: list[float]) -> None:
        was, steps = made["record"], step - made["step"]
        moved, squared = now[LEVEL] - was[LEVEL], now[SQUARED] - was[SQUARED]
        free = moved - (now[DECAY] - was[DECAY])
        each, mean, second = self.moments(made["weight"], was, now[TAU] - was[TAU])
        raw = self.raw(squared, was[NOISE], float(steps), mean, second)
        error = abs(free - mean)
        if not (math.isfinite(error) and math.isfinite(raw) and squared > 0.0):
            return
        gain = max(0.02, 10.0 / (self.n[place] + 10.0))
        for e, own in enumerate(each):
            self.error[place][e] += gain * (abs(free - own) - self.error[place][e])
        self.log[place] += gain * (math.log((error / raw) ** 2 + 0.01) + 1.03 - self.log[place])
        self.peak[place] = max(error, 0.98 * self.peak[place])
        std = made["scale"] * raw
        hit = error <= made["quantile"] * std
        if step >= 20:
            move = 0.02 * EARLY[place] * ((not hit) - 0.1)
            self.quantile[place] += move
        z = error / std
        density = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
        crps = std * (z * math.erf(z / math.sqrt(2.0)) + 2.0 * density - 1.0 / math.sqrt(math.pi))
        slopes = [abs(moved - was[SLOPES.start + g] * steps) for g in range(len(SMOOTHINGS))]
        self.scores[place].append((error, abs(moved), crps, float(hit), *slopes))
        self.n[place] += 1

    def weights(self, place: int) -> list[float]:
        error, count = self.error[place], len(POWER_E)
        share = max(0.1, 5.0 / max(self.n[place], 1)) / count
        floor = [one + share * sum(error) + 1e-300 for one in error]
        weight = [prior * (min(floor) / one) ** 8 for prior, one in zip(PRIOR_E, floor, strict=True)]
        return [one / sum(weight) for one in weight]

    def settle(self, record: list[float], lr: float, network_n: list[int]) -> None:
        known = [place for place, n in enumerate(network_n) if n > 0]
        for place, horizon in enumerate(HORIZONS):
            if not known:
                continue
            near = min(known, key=lambda i: abs(i - place))
            _, mean, second = self.moments(self.weight[place], record, horizon * lr)
            raw = self.raw(horizon * lr * lr, record[NOISE], float(horizon), mean, second)
            scale = math.exp(0.5 * self.log[near])
            cap = self.peak[near] * max(1.0, horizon / HORIZONS[near]) / raw
            self.scale[place] = cap if self.peak[near] > 0.0 and cap < scale else scale


@functools.cache
def _squares(optimizer: str, momentum: float, steps: float) -> float:
    return float(squared_response_sums(optimizer, momentum, np.asarray(steps)))


def _stream(seed: int, steps: int, every: int, holes: float) -> list[tuple[Present, Array]]:
    """Measurements of three series that drift like 1 / u, with noise, decay, a pause and norms that were not read."""
    generator = np.random.default_rng(seed)
    state_4S, out = np.zeros((4, 3)), []
    for step in range(1, steps):
        lr_S = np.array([0.02, 0.05, 0.03]) * (0.3 if step > steps // 2 else 1.0) * (0.0 if 60 < step < 66 else 1.0)
        drift_S = (1.0 + 0.5 * generator.standard_normal(3)) / (state_4S[TAU] + 0.3)
        taken_S = np.log1p(-0.1 * lr_S)
        state_4S = state_4S + np.stack((lr_S * drift_S + taken_S, lr_S, taken_S, lr_S**2))
        if step % every and generator.uniform() > 0.05:
            continue
        present, averages_AS = Present.empty(step, 3)
        record_RS = present.record_RS
        averages_AS[:AVERAGES] = generator.uniform(0.5, 1.5, (AVERAGES, 3))
        record_RS[:START], record_RS[START] = state_4S, state_4S[TAU] + 0.3
        record_RS[SLOPES] *= 0.05
        if generator.uniform() < holes:
            record_RS[generator.choice([LEVEL, NOISE]), generator.integers(3)] = np.nan
        out.append((present, lr_S))
    return out


@pytest.mark.parametrize(("every", "holes"), [(1, 0.0), (1, 0.05), (4, 0.02)])
@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.9), ("adamw", 0.9)])
def test_learning_at_once_equals_one_after_the_other(every: int, holes: float, optimizer: str, momentum: float) -> None:
    series = _stream(3, 330 if every == 1 else 900, every, holes)
    tracker = Tracker(HORIZONS, PRIOR_E, 3, optimizer, momentum)
    plain_S = [PlainTracker(optimizer, momentum) for _ in range(3)]
    for turn, (present, lr_S) in enumerate(series):
        tracker.update(present, lr_S)
        tracker.make(present, np.zeros((len(HORIZONS), 3)))
        rows_S = [present.record_RS[:, s].tolist() for s in range(3)]
        network = plain_S[-1]
        before = [len(plain.ready) for plain in plain_S]
        for plain, rows in zip(plain_S, rows_S, strict=True):
            plain.mature(present.step, rows)
        fresh = {place for place, *_ in network.ready[before[-1] :]}
        learns = any(network.n[place] < AT_FIRST for place in fresh)
        learns = learns or (bool(network.ready) and present.step - network.ready[0][2] >= PATIENCE - 1)
        for s in (2, 0, 1):  # whether the network, the last, has been scored decides for all
            plain_S[s].update(present.step, rows_S[s], float(lr_S[s]), network.n, learns)
        if turn == 2 * len(series) // 3:
            saved, tracker = tracker.state_dict(), Tracker(HORIZONS, PRIOR_E, 3, optimizer, momentum)
            tracker.load_state_dict(saved)
        if turn % 7 == 0 or turn == len(series) - 1:
            _compare(tracker, plain_S)
    for place in range(len(HORIZONS)):
        for s, plain in enumerate(plain_S):
            for one in [row for row in plain.ready if row[0] == place]:  # the scores have what is yet to be learned
                plain.learn(*one)
            got, rows = tracker.result(place, s), np.array(plain.scores[place])
            assert got.n == len(rows)
            want = rows.mean(axis=0)
            np.testing.assert_allclose((got.mae, got.mae_persistence, got.crps, got.coverage), want[:4], rtol=1e-9)
            np.testing.assert_allclose((got.mae_slope, got.mae_best_slope), (want[6], want[4:].min()), rtol=1e-9)


def _compare(tracker: Tracker, plain_S: list[PlainTracker]) -> None:
    learned = tracker.learned
    for s, plain in enumerate(plain_S):
        assert plain.dropped == tracker.dropped_H
        np.testing.assert_array_equal(tracker.n_HS[:, s], plain.n)
        np.testing.assert_allclose(learned.weight_HES[:, :, s], plain.weight, rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(learned.scale_HS[:, s], plain.scale, rtol=1e-9)
        np.testing.assert_allclose(learned.quantile_HS[:, s], plain.quantile, rtol=1e-9)
