"""Early warning of divergence: two of three signs within a few steps of each other.

The signs: a ten-step forecast of the network's log-norm was off by more than its band allows; the loss, smoothed,
stands above its own minimum; the largest relative update is past what runs survive, and past what the acting policy
wants. One set of thresholds for all optimizers. It warns of a divergence that builds up (a learning rate that rises); a
jump to an unstable rate diverges within a few steps, and only the guard on the plan helps there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["LEAD_STEPS", "Alarm", "DivergenceWarning"]

SIGNS = ("forecast", "loss", "update")
LEAD_STEPS = (40, 192, 390)  # least, median, largest on ramps of the learning rate (`lipadvisor bars divergence`)
_CADENCE = 5  # steps between the forecasts that are judged: a run measured at every step is not asked more often
_LATE = 2.0  # times its horizon: a forecast that no measurement came to judge by then is dropped
_NEVER = -(10**9)


@dataclass(frozen=True, slots=True)
class Alarm:
    """What the signs say at one step.

    Args:
        step: optimizer steps taken.
        raised: at least two signs within the window.
        signs: those seen within the window: ``"forecast"``, ``"loss"``, ``"update"``.
        read: of each of these what was last seen and its limit: error of the forecast in standard deviations, rise of
            the loss over the first loss, relative update.
    """

    step: int
    raised: bool
    signs: tuple[str, ...]
    read: tuple[tuple[str, float, float], ...] = ()

    def describe(self) -> str:
        """Return a sentence for people: what was seen, and how long it took where the loss was lost afterwards."""
        if not self.raised:
            return f"no alarm at step {self.step}"
        words = {
            "forecast": "a ten-step forecast of the log-norm was off by {:.1f} standard deviations (limit {:.1f})",
            "loss": "the smoothed loss stands {:.2f} of the first loss above its minimum (limit {:.2f})",
            "update": "the largest relative update is {:.3f} (limit {:.3f})",
        }
        seen = "; ".join(words[sign].format(value, limit) for sign, value, limit in self.read)
        least, median, largest = LEAD_STEPS
        return (
            f"step {self.step}: the run may be about to diverge. {seen}. Where a rising learning rate ended in a lost "
            f"run, this came {median} steps before (median; {least} to {largest})"
        )


class DivergenceWarning:
    """Watches a run, one call a measurement.

    Args:
        z_limit: standardised error of the forecast that counts as a sign, > 0.
        loss_limit: rise of the smoothed loss above its minimum that counts, share of the first loss, > 0.
        ratio_limit: relative update ``max_l s_1(lr U_l) / s_1(W_l)`` that counts, > 0.
        window: steps within which two signs must be seen, >= 1.
        smoothing: gain of the loss's moving average, per step, in (0, 1].
        settle: steps at the start during which nothing counts, >= 0: the way off the initial plateau has large updates
            and forecasts that miss in healthy runs too.
        wanted_factor: where the acting policy holds the relative update at a size of its own, an update counts only
            beyond that size by this factor, >= 1.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        z_limit: float = 2.2,
        loss_limit: float = 0.083,
        ratio_limit: float = 0.057,
        window: int = 15,
        smoothing: float = 0.1,
        settle: int = 100,
        wanted_factor: float = 1.5,
    ) -> None:
        for name, value in (("z_limit", z_limit), ("loss_limit", loss_limit), ("ratio_limit", ratio_limit)):
            if not _number(value) or not value > 0.0:
                raise ValueError(f"DivergenceWarning({name}=...) must be a number > 0, got {value!r}.")
        for name, count, least in (("window", window, 1), ("settle", settle, 0)):
            if not isinstance(count, int) or isinstance(count, bool) or count < least:
                raise ValueError(f"DivergenceWarning({name}=...) must be an integer >= {least}, got {count!r}.")
        if not _number(smoothing) or not 0.0 < smoothing <= 1.0:
            raise ValueError(f"DivergenceWarning(smoothing=...) must be in (0, 1], got {smoothing!r}.")
        if not _number(wanted_factor) or not wanted_factor >= 1.0:
            raise ValueError(f"DivergenceWarning(wanted_factor=...) must be a number >= 1, got {wanted_factor!r}.")
        self.z_limit, self.loss_limit, self.ratio_limit = z_limit, loss_limit, ratio_limit
        self.window, self.smoothing, self.settle, self.wanted_factor = window, smoothing, settle, wanted_factor
        self._loss = self._first = math.nan
        self._least = math.inf
        self._step = 0
        self._seen = dict.fromkeys(SIGNS, _NEVER)  # step at which each sign was last seen
        self._read = dict.fromkeys(SIGNS, (math.nan, math.nan))  # what it was then, and its limit
        self._waiting: list[tuple[int, int, float, float, float]] = []  # target, made at, log-norm then, mean, std

    def update(
        self,
        step: int,
        loss: float | None,
        log_norm: float,
        update_ratio: float,
        forecast: tuple[int, float, float] | None = None,
        wanted: float | None = None,
    ) -> Alarm:
        """Take in one measurement and say whether the run is in danger.

        What is not finite is itself a sign: of the loss, of the forecast, of the update.

        Args:
            step: optimizer steps taken; not falling.
            loss: training loss; ``None`` leaves that sign out.
            log_norm: of the network, nats, now.
            update_ratio: largest ``s_1(lr U) / s_1(W)`` over the layers.
            forecast: step, mean and standard deviation (nats) of a new forecast of ``log_norm``. It is judged at the
                first measurement from that step on, and dropped where none comes within twice its horizon; of
                forecasts made less than 5 steps apart the first is judged.
            wanted: relative update that the acting policy holds, root sum of squares over the layers; ``None``: none.
        """
        steps = max(1, step - self._step)
        self._step = step
        if loss is not None:
            self._judge_loss(step, loss, steps)
        if self._waiting:
            self._judge_forecasts(step, log_norm)
        if forecast is not None and not (self._waiting and step - self._waiting[-1][1] < _CADENCE):
            self._waiting.append((forecast[0], step, log_norm, forecast[1], forecast[2]))
        limit = self.ratio_limit if wanted is None else max(self.ratio_limit, self.wanted_factor * wanted)
        if not update_ratio <= limit:
            self._note("update", step, update_ratio, limit)
        since = step - self.window
        signs = tuple([sign for sign in SIGNS if self._seen[sign] > since])
        if not signs:
            return Alarm(step, False, ())
        return Alarm(step, len(signs) >= 2, signs, tuple([(sign, *self._read[sign]) for sign in signs]))

    def forget_forecasts(self) -> None:
        """Drop the forecasts that wait to be judged: the weights are no longer those that they started from."""
        self._waiting.clear()

    def restart(self) -> None:
        """Forget what was seen: the weights have been put back. What the first loss was stays known."""
        self.forget_forecasts()
        self._seen = dict.fromkeys(SIGNS, _NEVER)
        self._loss, self._least = math.nan, math.inf

    def state_dict(self) -> dict[str, Any]:
        """Return what a restart needs: numbers, strings and lists."""
        return {
            "loss": self._loss,
            "first": self._first,
            "least": self._least,
            "step": self._step,
            "seen": dict(self._seen),
            "read": {sign: list(pair) for sign, pair in self._read.items()},
            "waiting": [list(one) for one in self._waiting],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._loss, self._least, self._step = float(state["loss"]), float(state["least"]), int(state["step"])
        self._first = float(state["first"])
        self._seen = {sign: int(state["seen"][sign]) for sign in SIGNS}
        self._read = {sign: (float(state["read"][sign][0]), float(state["read"][sign][1])) for sign in SIGNS}
        self._waiting = [
            (int(target), int(made), float(start), float(mean), float(std))
            for target, made, start, mean, std in state["waiting"]
        ]

    def _note(self, sign: str, step: int, value: float, limit: float) -> None:
        if step >= self.settle:
            self._seen[sign], self._read[sign] = step, (value, limit)

    def _judge_loss(self, step: int, loss: float, steps: int) -> None:
        if not math.isfinite(loss):
            self._note("loss", step, loss, self.loss_limit)
            return
        if math.isnan(self._loss):
            self._loss = loss
            self._first = max(abs(loss), 1e-300) if math.isnan(self._first) else self._first
        elif self.smoothing == 1.0:
            self._loss = loss
        else:
            self._loss += (1.0 - (1.0 - self.smoothing) ** steps) * (loss - self._loss)
        self._least = min(self._least, self._loss)
        rise = (self._loss - self._least) / self._first
        if rise > self.loss_limit:
            self._note("loss", step, rise, self.loss_limit)

    def _judge_forecasts(self, step: int, log_norm: float) -> None:
        while self._waiting and self._waiting[0][0] <= step:
            target, made, start, mean, std = self._waiting.pop(0)
            share = (step - made) / (target - made) if target > made else 1.0
            if share > _LATE:
                continue
            # A mean moves with the steps, a spread with their root.
            off = abs(log_norm - start - share * (mean - start))
            allowed = std * math.sqrt(share)
            if not off <= self.z_limit * allowed:
                self._note("forecast", step, off / allowed if allowed > 0.0 else math.inf, self.z_limit)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
