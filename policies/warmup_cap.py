"""No rise above the warmup's learning rate before anything has been learnt: for steps that shrink with the gradient.

Under plain gradient steps an update becomes small with its gradient. That is a reason for a larger rate once the loss
has come down; before, it says that the gradients vanish for another reason, such as units that die, and larger steps
make it worse. So the largest rate of the warmup is kept as an upper limit until the training loss has fallen. The
warmup is over when the wanted size of an update has been reached once, however long that takes: a warmup that has not
got anywhere yet limits nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipadvisor.policies.contract import Observation
from lipadvisor.policies.quick_record import quick_record

__all__ = ["WarmupCap"]

WINDOW = 12  # steps after the wanted size was first reached that count as the warmup: single measurements fluctuate
LEARNT = 0.7  # share of the first loss below which something has been learnt
MEMORY = 0.05  # of the training loss, share of the run; at least as long as the window


@quick_record
@dataclass(frozen=True, slots=True)
class WarmupCap:
    """What is known of the warmup and of the loss since; a state, for one run."""

    reached_step: int | None = None  # when an update had the wanted size for the first time
    log_lr: float | None = None  # ln of the largest learning rate of the warmup
    first_loss: float | None = None  # training loss, smoothed: its highest in the warmup
    loss: float = 0.0  # smoothed
    loss_step: int = 0
    learnt: bool = False

    def limit(self, step: int) -> float | None:
        """Return ``ln`` of the learning rate not to be exceeded at ``step``; ``None``: none, or no loss is known."""
        heard = self.first_loss is not None
        return self.log_lr if heard and not self.learnt and not self._warms(step) else None

    def heard(self, observation: Observation, run_steps: int) -> WarmupCap:
        """Return what is known after one more training loss, in a run of ``run_steps``."""
        fresh, step = observation.loss, observation.step
        if fresh is None or not 0.0 < fresh < math.inf:
            return self
        if self.first_loss is None:
            return WarmupCap(self.reached_step, self.log_lr, fresh, fresh, step)
        memory = max(float(WINDOW), MEMORY * run_steps)
        loss = self.loss + (1.0 - math.exp(min(0, self.loss_step - step) / memory)) * (fresh - self.loss)
        first = max(self.first_loss, loss) if self._warms(step) else self.first_loss
        return WarmupCap(self.reached_step, self.log_lr, first, loss, step, loss <= LEARNT * first)

    def decided(self, step: int, log_lr: float, rising: bool) -> WarmupCap:
        """Return what is known after a decision: its rate, and whether the wanted one was still out of reach."""
        if not self._warms(step):
            return self
        reached = step if self.reached_step is None and not rising else self.reached_step
        highest = log_lr if self.log_lr is None else max(self.log_lr, log_lr)
        return WarmupCap(reached, highest, self.first_loss, self.loss, self.loss_step, self.learnt)

    def _warms(self, step: int) -> bool:
        return self.reached_step is None or step < self.reached_step + WINDOW
