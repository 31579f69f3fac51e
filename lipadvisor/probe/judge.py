"""Which noise counts, and what must be said of it: the host's side of :class:`lipadvisor.probe.meter.NoiseMeter`.

Shapes: ``L`` layers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lipadvisor.policies import Status
from lipadvisor.probe import optimizers
from lipadvisor.probe.agreement import DISAGREE, Differences, Spread, common_factor
from lipadvisor.probe.kinds import TrackedLayer
from lipadvisor.probe.noise_report import NoiseReport
from lipadvisor.probe.record import Readings
from lipadvisor.terms import Array

__all__ = ["NoiseJudge"]

LOOK_AGAIN = 64  # measurements after which samples that could not be used are looked at once more
_log = logging.getLogger("lipadvisor")


class NoiseJudge:
    """Decides from the readings; state of one run.

    Attributes:
        curved: whether the noise's curvature is asked for, beside its covariance.
        coupled: names of the layers that couple the samples of the step under way.
        captured: whether samples were seen in it.
        rough: whether they are known to half the digits.
        by_updates: it is not known how the optimizer uses a gradient; what fluctuates is the update itself.
        differences: running average of what successive steps give.
        spread: of them against the samples.
        usable: whether the samples could be used when they were last looked at.
        looked: whether samples were wanted in the step under way.
        gaps: layers beside the network's sum had no samples; differences fill in for them alone.
        factor: between captured gradients and the optimizer's.
        method: see :class:`NoiseReport`.
    """

    def __init__(self, layers: Sequence[TrackedLayer], optimizer: Any, independent_samples: bool | None) -> None:
        """Nothing is known yet.

        Args:
            layers: in the probe's order.
            optimizer: of their weights.
            independent_samples: None finds out; True and False say so.
        """
        self.curved = True
        self.coupled: tuple[str, ...] = ()
        self.captured, self.rough = False, False
        self.by_updates = optimizers.optimizer_name(optimizer) == "unknown"
        self.differences, self.spread = Differences(), Spread()
        self.usable, self.gaps, self.looked = True, False, True
        self._settled = 0
        self.factor, self.method = 1.0, "none"
        self._independent, self._optimizer = independent_samples, type(optimizer).__name__
        self._names = [layer.name for layer in layers]
        self._beside_L = np.array([layer.composition == 0.0 for layer in layers], dtype=np.bool_)
        self._opened_variance_L: Array | None = None
        self._unmatched = dict.fromkeys(self._names, 0)
        self._said: set[str] = set()

    @property
    def by_pairs(self) -> bool:
        """Whether successive differences are what counts."""
        if self.by_updates:
            return True
        if self._independent is not None:
            return not self._independent
        return bool(self.coupled) or not self.usable

    @property
    def wants_samples(self) -> bool:
        """Whether the next measured step is to record what the layers see."""
        if self.by_updates or (self.coupled and self._independent is None):
            return False
        again = self._independent is None and self._settled % LOOK_AGAIN == 0
        return not (self.by_pairs and self.differences.enough) or again

    @property
    def report(self) -> NoiseReport:
        """How the noise was measured last, and what its checks said."""
        unmatched = tuple((name, count) for name, count in self._unmatched.items() if count)
        spread = self.spread
        return NoiseReport(
            self.method,
            self.coupled,
            self.factor,
            unmatched,
            self.differences.pairs,
            spread.ratio,
            spread.pairs,
            spread.disagreements,
        )

    def settle(self, readings: Readings) -> tuple[Readings, tuple[Status | None, ...]]:
        """Return the readings with the noise that counts, and what each layer's status must say of it.

        Args:
            readings: of this step, with the noise from samples as captured.
        """
        columns = readings.columns
        gradient_L = columns["gradient"]
        self._compare(columns)
        noise_LL, curvature_L = readings.noise_LL, columns["noise_curvature"]
        agreed_L = np.zeros(len(gradient_L), dtype=np.bool_)
        if self.captured and not self.by_updates:
            self.factor, agreed_L = common_factor(columns["share"], columns["square"], gradient_L, self.rough)
            noise_LL, curvature_L = noise_LL * self.factor**2, curvature_L * self.factor**2
        # A layer of zeros (LoRA) has no logarithm that could be noisy.
        sound_L = np.isfinite(gradient_L) & (columns["s_1"] > 0.0)
        known_L = agreed_L & np.isfinite(np.diag(noise_LL)) & (np.isfinite(curvature_L) | (not self.curved))
        self._settled += 1
        if sound_L.any() and (self.captured or self.looked):
            self.usable = bool((known_L | ~sound_L | self._beside_L).all())
            self.gaps = bool((sound_L & ~known_L & self._beside_L).any())
            if self.captured and not self.coupled and not self.by_updates:
                self._count(sound_L & ~agreed_L & np.isfinite(columns["share"]))
        self._opened_variance_L = np.diag(noise_LL).copy() if self.captured and self.usable else None
        doubts: list[Status | None] = [None] * len(gradient_L)
        self.method = "samples"
        if self.by_pairs or not self.captured:
            self._say_why()
            if self.differences.enough and self.differences.noise_LL is not None:
                assert self.differences.curvature_L is not None
                self.method = "updates" if self.by_updates else "differences"
                still_L = columns["gradient"] == 0.0  # a layer that this step did not use
                noise_LL = np.where(still_L[:, None] | still_L[None, :], 0.0, self.differences.noise_LL)
                curvature_L = np.where(still_L, 0.0, self.differences.curvature_L)
            else:
                doubts = [Status.TOO_FEW_POINTS] * len(doubts)
        elif not self.usable:
            doubts = [None if known else Status.UNCALIBRATED for known in known_L | ~sound_L]
        elif self.gaps:
            gap_L = sound_L & ~known_L
            filled = self.differences if self.differences.enough else Differences()
            noise_LL, curvature_L = noise_LL.copy(), curvature_L.copy()
            across_LL = gap_L[:, None] | gap_L[None, :]
            noise_LL[across_LL] = np.nan if filled.noise_LL is None else filled.noise_LL[across_LL]
            curvature_L[gap_L] = np.nan if filled.curvature_L is None else filled.curvature_L[gap_L]
            missing_L = gap_L & ~np.isfinite(np.diag(noise_LL))
            doubts = [Status.NOT_MEASURED if missing else None for missing in missing_L]
        if not self.curved:
            curvature_L = np.full_like(curvature_L, np.nan)
        return replace(readings, columns=columns | {"noise_curvature": curvature_L}, noise_LL=noise_LL), tuple(doubts)

    def _compare(self, columns: Mapping[str, Array]) -> None:
        half_L = columns["pair"]
        form_L = columns["pair_curvature"] if self.curved else np.where(np.isfinite(half_L), 0.0, np.nan)
        self.differences.add(half_L, form_L, self.curved)
        if self._opened_variance_L is None or self.by_pairs:
            return
        if self.spread.add(half_L, self._opened_variance_L):
            self._say(
                "spread",
                logging.WARNING,
                "the noise from successive steps is %.2g times that from the samples (over %d pairs of steps, allowed "
                "is a factor of %g): does the loss or a layer couple the samples? independent_samples=False measures "
                "from successive steps alone",
                self.spread.ratio,
                self.spread.pairs,
                DISAGREE,
            )

    def _count(self, off_L: Any) -> None:
        names = [self._names[int(index)] for index in np.flatnonzero(off_L)]
        for name in names:
            self._unmatched[name] += 1
        if names:
            self._say(
                "unmatched",
                logging.WARNING,
                "the captured samples do not add up to the gradient of %s (and %d more): a weight used outside its "
                "layer, a penalty in the loss, or a gradient that was written to",
                names[0],
                len(names) - 1,
            )

    def _say_why(self) -> None:
        if self.by_updates:
            text = "how %s uses a gradient is not known: noise is measured from the updates of successive steps"
            self._say("updates", logging.INFO, text, self._optimizer)
        elif self._independent is False:
            return
        elif self.coupled:
            text = "%s couples the samples of a batch (%d such layers): noise is measured from successive steps"
            self._say("coupled", logging.INFO, text, self.coupled[0], len(self.coupled))
        elif self.looked and not self.captured:
            text = (
                "no sample could be seen at the layers (a compiled model, passes within the optimizer's step, batches "
                "of several sizes in one loss?): noise is measured from successive steps"
            )
            self._say("captured", logging.INFO, text)

    def _say(self, topic: str, level: int, text: str, *values: Any) -> None:
        if topic not in self._said:
            self._said.add(topic)
            _log.log(level, text + " (said once)", *values)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        differences, variance_L = self.differences, self._opened_variance_L
        return {
            "pairs": differences.pairs,
            "noise": None if differences.noise_LL is None else differences.noise_LL.tolist(),
            "curvature": None if differences.curvature_L is None else differences.curvature_L.tolist(),
            "spread": self.spread.state_dict(),
            "usable": self.usable,
            "gaps": self.gaps,
            "coupled": list(self.coupled),
            "factor": self.factor,
            "settled": self._settled,
            "unmatched": dict(self._unmatched),
            "variance": None if variance_L is None else variance_L.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        noise, curvature, variance = state["noise"], state["curvature"], state["variance"]
        self.differences = Differences(
            int(state["pairs"]),
            None if noise is None else np.array(noise, dtype=np.float64),
            None if curvature is None else np.array(curvature, dtype=np.float64),
        )
        self.spread.load_state_dict(state["spread"])
        self.usable, self.gaps = bool(state["usable"]), bool(state["gaps"])
        self.coupled, self.factor = tuple(state["coupled"]), float(state["factor"])
        self._settled = int(state["settled"])
        self._unmatched = {name: int(count) for name, count in state["unmatched"].items()}
        self._opened_variance_L = None if variance is None else np.array(variance, dtype=np.float64)
