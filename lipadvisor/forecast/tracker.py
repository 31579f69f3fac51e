"""What is learned from outcomes, for every horizon: which experts to trust, how wide the band must be; and the scores.

A forecast is scored with the clock and the decay that really came, not with those that were planned: the drift is on
trial, not the guess of the schedule. Forecasts are made at most every ``horizon / 20`` steps until 30 of them have been
scored, then about every ``sqrt(horizon / 2)``, in multiples of five, those of all horizons together: closer ones share
their future and would teach little more. What outcomes teach is worked out for several steps' at once, in their order;
until then the experts' weights and the bands stay as they are.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from lipadvisor.forecast.beliefs import moments
from lipadvisor.forecast.cadence import AT_FIRST, Cadence
from lipadvisor.forecast.experts import POWER_E, SMOOTHINGS, advance_integrals
from lipadvisor.forecast.outcome_order import EARLY, GAIN, in_order, in_their_order
from lipadvisor.forecast.outcomes import (
    NOISE,
    START,
    VALUES,
    Learned,
    Matured,
    Outcomes,
    Present,
    Room,
    compared,
    noise_growth,
    raw_variance,
)
from lipadvisor.forecast.result import Score
from lipadvisor.forecast.waiting import dump, load
from lipadvisor.terms import Array

__all__ = ["Tracker"]

_PRIOR_SHARE, _PRIOR_SCORES = 0.1, 5.0  # the experts are equal but for the prior until about five are scored
_QUANTILE_GAIN = 0.02  # per step
_QUANTILE_RANGE = (1.2, 3.0)
_QUANTILE_FROM_STEP = 20
_MISS_RATE = 0.1
_LOG_FLOOR = 0.01
_LOG_MEAN = -1.03  # E ln(z^2 + .01) of a standard normal
_PATIENCE = 32  # steps that an outcome waits for others, once its horizon has had `AT_FIRST`; until then none


class Tracker:
    """Learns, for ``H`` horizons and ``S`` series, which experts to trust and how wide the band must be.

    Attributes:
        n_HS: outcomes learned from.
        dropped_H: forecasts whose outcome came too late to be scored.
        learned: what forecasts are made with now.
        growth_H: of the noise over each horizon, :func:`noise_growth`.
    """

    def __init__(self, horizons: Sequence[int], prior_E: Array, series: int, optimizer: str, momentum: float) -> None:
        self._horizons = tuple(horizons)
        count = len(self._horizons)
        self._horizon_H1 = np.array(self._horizons, dtype=np.float64)[:, None]
        self._cadence = Cadence(self._horizons)
        self._response = (optimizer, momentum)
        self.growth_H: Array = noise_growth(optimizer, momentum, self._horizon_H1[:, 0])
        self._growth = self.growth_H.tolist()
        self._prior_HES = np.broadcast_to(prior_E[:, None], (count, len(POWER_E), series)).copy()
        self._waiting: tuple[deque[tuple[Present, Learned, Array]], ...] = tuple(deque() for _ in self._horizons)
        self._matured: list[Matured] = []
        self._room = Room()
        self._scored: list[float] = [0.0] * count  # outcomes of the network
        self._settled = False  # every horizon has had one
        self._uniform = True  # all series have had the same
        self._late = False  # the quantile learns from every outcome
        self._hurry = False  # something has come that is to be learned from at once
        self._next_ripe: float = math.inf  # step at which the time of a forecast comes
        self.dropped_H = [0] * count
        self._error_HES: Array = np.zeros((count, len(POWER_E), series))
        self._log_HS: Array = np.zeros((count, series))  # of the squared standardised errors
        self._peak_HS: Array = np.zeros((count, series))  # largest absolute error of late, nats
        self._score_CHS: Array = np.zeros((4 + len(SMOOTHINGS), count, series))  # sums, see `Outcomes`
        self.n_HS: Array = np.zeros((count, series))
        self.learned = Learned.empty(count, series)
        self._weigh(self.learned)
        self.learned.scale_HS[:], self.learned.quantile_HS[:] = 1.0, 1.6448536269514722
        self._look()

    def update(self, present: Present, lr_S: Array) -> None:
        """Learn from the forecasts whose time has come.

        Args:
            present: where the series stand.
            lr_S: in force.
        """
        self.mature(present)
        matured = self._matured
        learns = self._hurry or (bool(matured) and present.step - matured[0].now.step >= _PATIENCE - 1)
        if learns:
            self.learn()
        if learns or (not self._settled and any(self._scored[place] == 0 for place in self._cadence.due(present.step))):
            self._settle(present, lr_S)

    def make(self, present: Present, answer_HS: Array) -> None:
        """Make the forecasts that are due.

        Args:
            present: where the series stand.
            answer_HS: what the surplus over the trend is expected to become, nats.
        """
        for place in self._cadence.due(present.step):
            self._waiting[place].append((present, self.learned, answer_HS[place]))
            self._cadence.note(place, present.step)
        self._look_ahead()

    def is_due(self, step: int) -> bool:
        """Return whether there are forecasts to be made."""
        return step >= self._cadence.next_step

    def is_ripe(self, step: int) -> bool:
        """Return whether the time of a forecast has come."""
        return step >= self._next_ripe

    def mature(self, now: Present) -> None:
        """Find the forecasts whose time has come; nothing is learned from them yet.

        Args:
            now: where the series stand; only the rows before ``START`` are looked at.
        """
        step, matured = now.step, self._matured
        for place, (waiting, horizon) in enumerate(zip(self._waiting, self._horizons, strict=True)):
            while waiting and step - waiting[0][0].step >= horizon:
                made, learned, answer_S = waiting.popleft()
                if 2 * (step - made.step) > 3 * horizon:  # measured too sparingly for this horizon
                    self.dropped_H[place] += 1
                else:
                    matured.append(Matured(place, made, learned, answer_S, now))
                    self._hurry = self._hurry or self._scored[place] < AT_FIRST
        self._look_ahead()

    def learn(self) -> None:
        """Learn from all the outcomes that are there."""
        matured = self._matured
        if not matured:
            return
        matured.sort(key=_place)
        found = self._compared()
        counts = [0] * len(self._horizons)
        for one in matured:
            counts[one.place] += 1
        stops = list(itertools.accumulate(counts))
        owns = [slice(stop - count, stop) for stop, count in zip(stops, counts, strict=True)]
        learned = Learned.empty(*self.n_HS.shape)
        learned.scale_HS[:] = self.learned.scale_HS
        self._learn_quantile(found, owns, learned)
        self._learn_errors(found, owns)
        member_HN = np.zeros((len(owns), len(matured)))
        for place, own in enumerate(owns):
            member_HN[place, own] = 1.0
        self._score_CHS += np.matmul(member_HN, found.score_CNS)
        if found.whole:
            self.n_HS += np.array(counts, dtype=np.float64)[:, None]
            self._scored = [n + count for n, count in zip(self._scored, counts, strict=True)]
        else:
            self.n_HS += member_HN @ found.good_NS
        matured.clear()
        self._hurry = False
        self._weigh(learned)
        self.learned = learned
        if not (found.whole and self._settled):
            self._look()
        self._cadence.pace(self._scored)

    def _learn_errors(self, found: Outcomes, owns: Sequence[slice]) -> None:
        """Average the errors, in the order of the outcomes."""
        error_NS, error_ENS = found.score_CNS[0], found.error_ENS
        # The mean of the logarithm: while a run leaves its initial plateau errors are a hundred times what the band
        # says, and a mean of squares would keep it open for the rest of the run.
        log_NS = error_NS / found.raw_NS
        log_NS *= log_NS
        log_NS += _LOG_FLOOR
        np.log(log_NS, out=log_NS)
        log_NS -= _LOG_MEAN
        count, series = error_NS.shape
        width = 1 if self._uniform and found.whole else series
        share_HNS, fade_HNS = np.zeros((2, len(owns), count, width))
        keep_HS, last_HS = np.ones((2, len(owns), width))
        for place, own in enumerate(owns):
            if own.start == own.stop:
                continue
            if width == 1:
                order = in_order(min(self._scored[place], EARLY / GAIN), own.stop - own.start)
            else:
                order = in_their_order(self.n_HS[place], found.good_NS[own])
            share_HNS[place, own], keep_HS[place], fade_HNS[place, own], last_HS[place] = order
        self._peak_HS *= last_HS
        np.maximum(self._peak_HS, np.maximum.reduce(fade_HNS * error_NS, axis=1), out=self._peak_HS)
        self._log_HS *= keep_HS
        self._error_HES *= keep_HS[:, None]
        if width == 1:
            share_HN = share_HNS[:, :, 0]
            self._log_HS += share_HN @ log_NS
            self._error_HES += np.matmul(share_HN, error_ENS).transpose(1, 0, 2)
        else:
            self._log_HS += np.einsum("hns,ns->hs", share_HNS, log_NS)
            self._error_HES += np.einsum("hns,ens->hes", share_HNS, error_ENS)

    def _learn_quantile(self, found: Outcomes, owns: Sequence[slice], learned: Learned) -> None:
        """Widen the bands by what was missed, narrow them by the rest; kept in their range once for all outcomes."""
        miss_NS = (1.0 - _MISS_RATE) - found.score_CNS[3]
        if not found.whole:
            miss_NS *= found.good_NS
        move_HN = np.zeros((len(owns), len(miss_NS)))
        for place, own in enumerate(owns):
            move_HN[place, own] = _QUANTILE_GAIN * self._cadence.early_H[place]
        if not self._late:
            late_N = [one.now.step >= _QUANTILE_FROM_STEP for one in self._matured]
            move_HN *= late_N
            self._late = all(late_N)
        quantile_HS = learned.quantile_HS
        np.matmul(move_HN, miss_NS, out=quantile_HS)
        quantile_HS += self.learned.quantile_HS
        low, high = _QUANTILE_RANGE
        np.maximum(quantile_HS, low, out=quantile_HS)
        np.minimum(quantile_HS, high, out=quantile_HS)

    def _settle(self, present: Present, lr_S: Array) -> None:
        """Set the scale in use of each horizon: its own, or that of the nearest one which has been scored.

        The standard deviation is kept below the largest error of late, in proportion to the horizon if it is another's:
        scales learned while nothing moved would otherwise be far too large once something does.
        """
        if not any(self._scored):
            return
        record_RS = present.record_RS
        first_HPS, second_HPS = moments(self.learned.weight_HES, record_RS[VALUES])
        lr_HS = self._horizon_H1 * lr_S
        start_S = record_RS[START]
        integral_HPS = advance_integrals(start_S + (start_S == 0.0), lr_HS).transpose(1, 0, 2)
        first_HPS *= integral_HPS
        second_HPS *= integral_HPS
        second_HPS *= integral_HPS
        mean_HS, second_HS = np.add.reduce(first_HPS, axis=1), np.add.reduce(second_HPS, axis=1)
        lr_HS *= lr_S
        raw_HS = np.sqrt(raw_variance(lr_HS, record_RS[NOISE], self.growth_H[:, None], mean_HS, second_HS))
        log_HS, peak_HS = self._log_HS, self._peak_HS
        if not self._settled:
            log_HS, peak_HS = log_HS[self._nearest_H], peak_HS[self._nearest_H] * self._stretch_H1
        scale_HS = np.exp(0.5 * log_HS)
        # Where the raw one is not known now, the scale is not capped.
        live_HS = np.where(peak_HS > 0.0, np.fmin(scale_HS, peak_HS / raw_HS), scale_HS)
        self.learned = Learned(self.learned.rows_HRS.copy())
        self.learned.scale_HS[:] = live_HS

    def vouching(self, horizon: int) -> float:
        """Return how many outcomes vouch for the network's band ``horizon`` steps ahead.

        They are those of the longest tracked horizon within it that the measuring can score.
        """
        able = [i for i, n in enumerate(self._scored) if n > 0 or self.dropped_H[i] == 0] or range(len(self._horizons))
        within = [i for i in able if self._horizons[i] <= horizon]
        return self._scored[within[-1] if within else able[0]]

    def result(self, place: int, series: int) -> Score:
        """Return the scores of one series at one horizon, outcomes that nothing was learned from yet included."""
        n, sum_C = float(self.n_HS[place, series]), self._score_CHS[:, place, series].copy()
        if self._matured:
            found = self._compared()
            own = [i for i, one in enumerate(self._matured) if one.place == place and found.good_NS[i, series]]
            n += len(own)
            sum_C += found.score_CNS[:, own, series].sum(axis=1)
        mae, persistence, crps, hits, *slopes = (sum_C / n if n else np.full(len(sum_C), np.nan)).tolist()
        plain = slopes[SMOOTHINGS.index(0.1)]
        return Score(self._horizons[place], int(n), mae, persistence, plain, min(slopes), crps, hits)

    def presents(self) -> Iterator[Present]:
        """Give the measurements that forecasts were made at, or are to be compared with; some more than once."""
        for waiting in self._waiting:
            yield from (present for present, *_ in waiting)
        for one in self._matured:
            yield one.made
            yield one.now

    def forget_waiting(self) -> None:
        """Learn from what has come, and drop what waits: its future will not come."""
        self.learn()
        for waiting in self._waiting:
            waiting.clear()
        self._cadence.restart()
        self._look_ahead()

    def state_dict(self) -> dict[str, Any]:
        """Return everything learned and waiting, as numbers and arrays."""
        state: dict[str, Any] = {name: getattr(self, name).copy() for name in _ARRAYS}
        state |= {
            "learned": self.learned.rows_HRS.copy(),
            "dropped_H": list(self.dropped_H),
            "last_made": list(self._cadence.last_H),
        }
        return state | {"waiting": dump(self._waiting, self._matured)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        for name in _ARRAYS:
            setattr(self, name, np.array(state[name], dtype=np.float64))
        self.learned = Learned(np.array(state["learned"], dtype=np.float64))
        self.dropped_H = list(state["dropped_H"])
        waiting, self._matured = load(state["waiting"], len(self._horizons))
        self._waiting = tuple(deque(own) for own in waiting)
        self._look()
        self._cadence.load(state["last_made"], self._scored)
        self._hurry = any(self._scored[one.place] < AT_FIRST for one in self._matured)
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Note when the time of the next forecast comes."""
        ends = [own[0][0].step + h for own, h in zip(self._waiting, self._horizons, strict=True) if own]
        self._next_ripe = min(ends, default=math.inf)

    def _compared(self) -> Outcomes:
        growth_N = []
        for one in self._matured:
            steps = one.now.step - one.made.step
            exact = steps == self._horizons[one.place]
            growth_N.append(self._growth[one.place] if exact else _growth(*self._response, steps))
        return compared(self._matured, growth_N, self._room)

    def _look(self) -> None:
        """Note what follows from the numbers of outcomes."""
        self._scored = self.n_HS[:, -1].tolist()
        self._settled = min(self._scored) > 0
        self._uniform = bool((self.n_HS == self.n_HS[:, :1]).all())
        known = [place for place, n in enumerate(self._scored) if n > 0] or [0]
        nearest = [min(known, key=lambda i: abs(i - place)) for place in range(len(self._horizons))]
        self._nearest_H = np.array(nearest)
        self._stretch_H1 = np.maximum(1.0, self._horizon_H1 / self._horizon_H1[nearest])

    def _weigh(self, learned: Learned) -> None:
        """Write the experts' weights: past error to the power -8, times the prior; they sum to 1."""
        share_HS = np.maximum(_PRIOR_SHARE, _PRIOR_SCORES / np.maximum(self.n_HS, 1.0))
        share_HS *= np.add.reduce(self._error_HES, axis=1)
        share_HS /= len(POWER_E)
        share_HS += 1e-300  # an expert without error is the best, not a division by zero
        ratio_HES = self._error_HES + share_HS[:, None]
        np.divide(np.minimum.reduce(ratio_HES, axis=1)[:, None], ratio_HES, out=ratio_HES)
        ratio_HES *= ratio_HES  # three squares: the power 8, many times cheaper than pow
        ratio_HES *= ratio_HES
        ratio_HES *= ratio_HES
        ratio_HES *= self._prior_HES
        np.divide(ratio_HES, np.add.reduce(ratio_HES, axis=1)[:, None], out=learned.weight_HES)


def _place(one: Matured) -> int:
    return one.place


@lru_cache(maxsize=256)
def _growth(optimizer: str, momentum: float, steps: int) -> float:
    return float(noise_growth(optimizer, momentum, np.asarray(float(steps))))


_ARRAYS = ("n_HS", "_error_HES", "_log_HS", "_peak_HS", "_score_CHS")
