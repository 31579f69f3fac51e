"""Early warning of divergence: two of three signs within a few steps of each other.

The signs: a ten-step forecast of the network's log-norm was off by more than its band allows; the loss, smoothed,
stands above its own minimum; the largest relative update is past what runs survive. One set of thresholds for all
optimizers. It warns of a divergence that builds up (a learning rate that rises); a jump to an unstable rate diverges
within a few steps, and only the guard on the plan helps there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Alarm", "DivergenceWarning"]

_SIGNS = ("forecast", "loss", "update")


@dataclass(frozen=True, slots=True)
class Alarm:
    """What the signs say at one step."""

    step: int
    raised: bool  # at least two signs within the window
    signs: tuple[str, ...]  # those seen within the window: "forecast", "loss", "update"


class DivergenceWarning:
    """Watches a run, one call a measurement.

    Args:
        z_limit: standardised error of the forecast that counts as a sign, > 0.
        loss_limit: rise of the smoothed loss above its minimum that counts, nats, > 0.
        ratio_limit: relative update ``max_l s_1(lr U_l) / s_1(W_l)`` that counts, > 0.
        window: steps within which two signs must be seen, >= 1.
        smoothing: gain of the loss's moving average, per step, in (0, 1].
        settle: steps at the start during which nothing counts, >= 0.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        z_limit: float = 2.2,
        loss_limit: float = 0.19,
        ratio_limit: float = 0.057,
        window: int = 15,
        smoothing: float = 0.1,
        settle: int = 50,
    ) -> None:
        for name, value in (("z_limit", z_limit), ("loss_limit", loss_limit), ("ratio_limit", ratio_limit)):
            if not value > 0.0:
                raise ValueError(f"DivergenceWarning({name}=...) must be > 0, got {value!r}.")
        if window < 1:
            raise ValueError(f"DivergenceWarning(window=...) must be at least 1, got {window!r}.")
        if not 0.0 < smoothing <= 1.0:
            raise ValueError(f"DivergenceWarning(smoothing=...) must be in (0, 1], got {smoothing!r}.")
        if settle < 0:
            raise ValueError(f"DivergenceWarning(settle=...) must not be negative, got {settle!r}.")
        self.z_limit, self.loss_limit, self.ratio_limit = z_limit, loss_limit, ratio_limit
        self.window, self.smoothing, self.settle = window, smoothing, settle
        self._loss = math.nan
        self._least = math.inf
        self._step = 0
        self._seen = dict.fromkeys(_SIGNS, -(10**9))  # step at which each sign was last seen
        self._waiting: list[tuple[int, float, float]] = []  # target step, mean, std of forecasts that wait

    def update(
        self,
        step: int,
        loss: float | None,
        log_norm: float,
        update_ratio: float,
        forecast: tuple[int, float, float] | None = None,
    ) -> Alarm:
        """Take in one measurement and say whether the run is in danger.

        What is not finite is itself a sign: of the loss, of the forecast, of the update.

        Args:
            step: optimizer steps taken; not falling.
            loss: training loss, nats; ``None`` leaves that sign out.
            log_norm: of the network, nats, now.
            update_ratio: largest ``s_1(lr U) / s_1(W)`` over the layers.
            forecast: step, mean and standard deviation (nats) of a new forecast of ``log_norm``, to be judged then.
        """
        steps = max(1, step - self._step)
        self._step = step
        if loss is not None:
            self._judge_loss(step, loss, steps)
        self._judge_forecasts(step, log_norm)
        if forecast is not None:
            self._waiting.append(forecast)
        if not update_ratio <= self.ratio_limit:
            self._note("update", step)
        signs = tuple(sign for sign in _SIGNS if step - self._seen[sign] < self.window)
        return Alarm(step, len(signs) >= 2, signs)

    def state_dict(self) -> dict[str, Any]:
        """Return what a restart needs: numbers, strings and lists."""
        return {
            "loss": self._loss,
            "least": self._least,
            "step": self._step,
            "seen": dict(self._seen),
            "waiting": [list(one) for one in self._waiting],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._loss, self._least, self._step = float(state["loss"]), float(state["least"]), int(state["step"])
        self._seen = {sign: int(state["seen"][sign]) for sign in _SIGNS}
        self._waiting = [(int(target), float(mean), float(std)) for target, mean, std in state["waiting"]]

    def _note(self, sign: str, step: int) -> None:
        if step >= self.settle:
            self._seen[sign] = step

    def _judge_loss(self, step: int, loss: float, steps: int) -> None:
        if not math.isfinite(loss):
            self._note("loss", step)
            return
        gain = 1.0 - (1.0 - self.smoothing) ** steps
        self._loss = loss if math.isnan(self._loss) else self._loss + gain * (loss - self._loss)
        self._least = min(self._least, self._loss)
        if self._loss - self._least > self.loss_limit:
            self._note("loss", step)

    def _judge_forecasts(self, step: int, log_norm: float) -> None:
        for target, mean, std in [one for one in self._waiting if one[0] <= step]:
            if target == step and not abs(log_norm - mean) <= self.z_limit * std:
                self._note("forecast", step)
        self._waiting = [one for one in self._waiting if one[0] > step]
