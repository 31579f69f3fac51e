"""Reads training losses without waiting for the device, and watches them between measurements."""

from __future__ import annotations

import math

import torch

__all__ = ["LossReader", "LossWatch"]

RATE = 0.05  # of the running mean and spread of ln loss
JUMP = 1.5  # nats above the mean that are always ordinary
SPREADS = 5.0  # mean absolute deviations above it that are
SMALLEST = 1e-30  # loss
RISE = 0.083  # of the first loss: a smoothed loss that far above its minimum is a sign of the early warning
LOOK_AGAIN = 10  # steps after which a risen loss is looked at again, twice as many each further time


class LossReader:
    """Turns losses into numbers; on an accelerator one step late, when the copy has long arrived."""

    def __init__(self) -> None:
        self._pending: torch.Tensor | None = None

    def read(self, loss: torch.Tensor | float | None) -> float | None:
        """Return ``loss`` as a number; the previous step's for a tensor on an accelerator, ``None`` at first."""
        if not isinstance(loss, torch.Tensor):
            return None if loss is None else float(loss)
        if loss.device.type == "cpu":
            return float(loss.item())
        late, self._pending = self._pending, loss.detach().to("cpu", non_blocking=True)
        return None if late is None else float(late)


class LossWatch:
    """Says when a loss leaves its own range: what was measured before says little about the steps to come.

    The running mean follows the loss, so that a lasting change is unusual for some dozens of steps only. A loss that
    climbs slowly never leaves that range: so one whose level stands well above its minimum is told too, once, after ten
    steps and then ever more rarely, until it has come half of the way back.
    """

    def __init__(self) -> None:
        self._mean: float | None = None
        self._spread = 0.0
        self._plain: float | None = None  # mean of the losses themselves
        self._signed = False  # some were not above 0
        self._first = 0.0  # size of the first loss
        self._least = math.inf  # level
        self._risen = 0  # steps since the level rose
        self._look = 1  # number of these steps at which to look

    def unusual(self, loss: float) -> bool:
        """Take in the loss of the next step; return whether it is far above those before it."""
        if not math.isfinite(loss):
            return True
        self._signed = self._signed or loss <= 0.0
        self._plain = loss if self._plain is None else self._plain + RATE * (loss - self._plain)
        log_loss = math.log(loss) if loss > SMALLEST else math.log(SMALLEST)
        if self._mean is None:
            self._mean, self._first = log_loss, abs(loss)
            return False
        off = log_loss - self._mean
        jumped = off > JUMP and off > SPREADS * self._spread
        self._mean += RATE * off
        self._spread += RATE * (abs(off) - self._spread)
        return self._climbed() or jumped

    def _climbed(self) -> bool:
        """Count the steps since the level rose; return whether to look now."""
        level = self.level
        if level is None:
            return False
        self._least = min(self._least, level)
        limit = RISE * self._first
        if level - self._least <= (limit if self._risen == 0 else 0.5 * limit):
            self._risen, self._look = 0, 1
            return False
        self._risen += 1
        if self._risen < self._look:
            return False
        self._look = LOOK_AGAIN + 1 if self._look == 1 else 2 * self._look - 1
        return True

    @property
    def level(self) -> float | None:
        """The loss, smoothed over some twenty steps; ``None`` before any was seen.

        It is smoothed in its logarithm, which forgives single steps, unless one was 0 or below.
        """
        if self._mean is None or self._signed:
            return self._plain
        return math.exp(min(self._mean, 700.0))

    def state_dict(self) -> dict[str, float | None]:
        """Return running means and spread."""
        return {
            "mean": self._mean,
            "spread": self._spread,
            "plain": self._plain,
            "signed": float(self._signed),
            "first": self._first,
            "least": self._least,
            "risen": float(self._risen),
            "look": float(self._look),
        }

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        """Go on from :meth:`state_dict`."""
        self._mean, self._spread = state["mean"], float(state["spread"] or 0.0)
        # None of these is in checkpoints of earlier versions.
        self._plain, self._signed = state.get("plain", self.level), bool(state.get("signed"))
        self._first, self._least = state.get("first") or 0.0, _or(state.get("least"), math.inf)
        self._risen, self._look = int(state.get("risen") or 0), int(state.get("look") or 1)


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
