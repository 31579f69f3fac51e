"""Tells at the measurements of a training that it is in danger of diverging: once in the log, always in the record."""

from __future__ import annotations

import logging
import math
from collections import deque

from lipadvisor.forecast import Alarm, wanted_update
from lipadvisor.observe import endangered
from lipadvisor.policies import Decision, Observation
from lipadvisor.prediction import Prediction
from lipadvisor.terms import Terms

__all__ = ["EarlyWarning"]

_log = logging.getLogger("lipadvisor")
_ALARMS = 1000  # kept in memory


class EarlyWarning:
    """The alarms of one training.

    Attributes:
        alarms: the last thousand; each the first of those in a row.
        raised: whether the last measurement was under alarm.
    """

    def __init__(self) -> None:
        self.alarms: deque[Alarm] = deque(maxlen=_ALARMS)
        self.raised = False

    def ask(
        self, prediction: Prediction, terms: Terms, seen: Observation, level: float | None, held: Decision | None
    ) -> tuple[Observation, str]:
        """Return what was seen, marked where the run is in danger of diverging, and the signs of that.

        Args:
            prediction: knows what was expected.
            terms: the measurement.
            seen: what became of it.
            level: the smoothed loss.
            held: the decision that acts on the run, if one does: updates that it wants are no sign.
        """
        loss = None if seen.loss is None else level if math.isfinite(seen.loss) else seen.loss
        alarm = prediction.watch(terms, seen, loss, None if held is None else wanted_update(held.read))
        before, self.raised = self.raised, alarm.raised
        if not alarm.raised:
            return seen, ""
        if not before:
            self.alarms.append(alarm)
            if len(self.alarms) == 1:  # once is a warning, often is noise; all of them are recorded
                _log.warning("early warning: %s; later ones are only recorded", alarm.describe())
        return endangered(seen), " ".join(alarm.signs)
