"""What a run's own updates, finite steps and loss say of a plan: how much of what the run bears it takes.

The measures are those of :mod:`lipadvisor.forecast.guard` and :mod:`lipadvisor.forecast.step_share`; here the largest
of them decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lipadvisor.dynamics import Coefficients
from lipadvisor.forecast.guard import LossLevel, UpdateRatio, feeds_itself
from lipadvisor.forecast.step_share import StepShare
from lipadvisor.terms import Array, Terms

__all__ = ["PlanGuard"]


class PlanGuard:
    """Follows a run and judges plans for it.

    Args:
        names: of the layers.
        optimizer: ``"sgd"``, with or without momentum, or any other.
        momentum: coefficient of the first moment, in [0, 1).

    Attributes:
        share: of finite steps in the growth.
    """

    def __init__(self, names: Sequence[str], optimizer: str, momentum: float) -> None:
        self._names, self._optimizer, self._momentum = names, optimizer, momentum
        self.share = StepShare()
        self._ratio = UpdateRatio(len(names))
        self._level = LossLevel()

    @property
    def first_loss(self) -> float:
        """The first loss that was told; 0 before any was."""
        return self._level.first

    def update(self, terms: Terms, rates: Coefficients, loss: float | None, steps: float) -> None:
        """Take in a measurement that stands for ``steps`` steps, and the loss there."""
        self._ratio.update(terms.update_ratio_L, steps)
        self.share.update(rates, steps)
        self._level.update(loss, steps)

    def present_load(self, lr_L: Array) -> float:
        """Return how much of what a layer bears the last update took at the rates in force, at most over the layers."""
        return float(np.max(self._ratio.load_L(lr_L, lr_L)))

    def load(self, lr_L: Array, planned_L: Array, composition_L: Array) -> tuple[float, str]:
        """Return how much of what the run bears a plan takes, above 1 too much, and what it does, in words.

        Args:
            lr_L: in force.
            planned_L: the largest of the plan.
            composition_L: weights of the layers in the network's log-norm.
        """
        shrunk = self._level.shrunk
        load_L = self._ratio.load_L(lr_L, planned_L, shrunk)
        worst = int(np.argmax(load_L))
        moves, edge, whole = float(load_L[worst]), 0.0, 0.0
        if shrunk is None:  # what the loss says of a rise, the share of finite steps says worse
            edge = self.share.load(lr_L, planned_L)
        elif (planned_L > lr_L).any() and feeds_itself(self._optimizer, self.share.share):
            whole = self._ratio.network_load(planned_L, composition_L, self._momentum, shrunk)
        return max(
            (moves, f"moves layer {self._names[worst]!r} by {moves:.2f} of what it bears"),
            (edge, f"takes finite steps to {edge:.2f} of the growth's share that is foreseeable"),
            (whole, f"moves the whole network by {whole:.2f} of what it bears"),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the averages: numbers and arrays."""
        return {
            "ratio": self._ratio.state_dict(),
            "share": self.share.state_dict(),
            "loss": self._level.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._ratio.load_state_dict(state["ratio"])
        self.share.load_state_dict(state["share"])
        self._level.load_state_dict(state["loss"])
