"""The guards on a plan: by the relative update, which is always measured, and by the loss's curvature, where known.

A layer that one step moves by a good part of its own norm is about to break. For a rate above the present one the
average relative update of some hundred steps counts: what one batch does says little of what the batches after a jump
will do. Where the loss is told, that average counts by the square root of the loss over the first one: gradients shrink
about so, and come back with the loss. Then the sum over the layers counts as well: in a deep network all layers feed
one another's gradients, and a step that moves the log of the bound by more than a nat, once the loss is back where it
began, brings the next one on. That takes an optimizer whose steps grow with the gradient, and a run that is not kept in
bounds by its own edge of stability.

The relative update sees a jump to an unstable rate late when gradients are small. The largest eigenvalue of ``P H``
(preconditioner times Hessian) sees it before: the update map expands where ``lr * eigenvalue`` passes the optimizer's
limit, 2 for SGD, 3.8 with momentum .9, 38 for Adam.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lipadvisor.dynamics import stability_limit
from lipadvisor.terms import Array

__all__ = ["REFUSE_LOAD", "WARN_LOAD", "LossLevel", "UpdateRatio", "feeds_itself", "is_refused", "stability_load"]

REFUSE_LOAD = 0.7  # of the limit: the eigenvalue goes on rising after the change

_GAIN = 0.005  # per step, of the average relative update
_LIMIT = 0.15  # of the relative update s_1(lr U) / s_1(W) of the last step, at the present rate or a lower one ...
_RISE_LIMIT = 0.20  # ... and of the average one, at a rate that rises
WARN_LOAD = 0.53  # of a limit: worth a word
_TOLD_LIMIT = 0.5  # ... where the loss is told: of the average over the root of the loss over the first one
_NETWORK_LIMIT = 1.15  # ... and the same of what one batch's part of it, summed over the layers, does to the network
_EDGE_SHARE = 0.3  # of finite steps in the growth: with more the run is at the edge of stability already
_LOSS_GAIN = 0.02  # per step, of the average loss
_ONE = np.array(1.0)


class UpdateRatio:
    """Relative updates ``s_1(U) / s_1(W)`` of ``L`` layers, per unit of learning rate: the last and the average."""

    def __init__(self, count: int) -> None:
        self.last_L: Array = np.zeros(count)
        self._mean_L: Array = np.zeros(count)
        self._mass_L: Array = np.zeros(count)

    def update(self, ratio_L: Array, steps: float) -> None:
        """Take in a measurement that stands for ``steps`` steps; what is not finite is left out."""
        gain = 1.0 - (1.0 - _GAIN) ** steps
        if math.isfinite(ratio_L.dot(ratio_L)):
            self.last_L = ratio_L.copy()
            share = np.array(gain)  # numpy takes it in half the time of a number
            self._mean_L += share * (ratio_L - self._mean_L)
            self._mass_L += share * (_ONE - self._mass_L)
            return
        known_L = np.isfinite(ratio_L)
        self.last_L = np.where(known_L, ratio_L, self.last_L)
        gain_L = gain * known_L
        self._mean_L += gain_L * (self.last_L - self._mean_L)
        self._mass_L += gain_L * (1.0 - self._mass_L)

    def load_L(self, lr_L: Array, planned_L: Array, shrunk: float | None = None) -> Array:
        """Return the relative update to expect at planned learning rates, over its limit: above 1 is too much.

        Args:
            lr_L: in force.
            planned_L: the largest of the plan.
            shrunk: by how much gradients have shrunk (:attr:`LossLevel.shrunk`); ``None`` where that is not known.
        """
        mean_L = self._mean_L / np.maximum(self._mass_L, 1e-300)
        limit = _RISE_LIMIT if shrunk is None else _TOLD_LIMIT * shrunk
        risen_L = np.maximum(mean_L * planned_L / limit, self.last_L * lr_L / _LIMIT)
        return np.where(planned_L > lr_L, risen_L, self.last_L * planned_L / _LIMIT)

    def network_load(self, planned_L: Array, composition_L: Array, momentum: float, shrunk: float) -> float:
        """Return how far one batch may move the network's log-norm at planned learning rates, over its limit.

        By Weyl's inequality a layer's log-norm moves by its relative update at most; of an update with momentum ``b``
        the part of ``sqrt(1 - b^2)`` is one batch's, where noise dominates.

        Args:
            planned_L: the largest learning rates of the plan.
            composition_L: weights of the layers in the network's log-norm.
            momentum: ``b``, of SGD.
            shrunk: by how much gradients have shrunk.
        """
        mean_L = self._mean_L / np.maximum(self._mass_L, 1e-300)
        part = math.sqrt(1.0 - momentum * momentum)
        return part * float(composition_L @ (mean_L * planned_L)) / (_NETWORK_LIMIT * shrunk)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages as arrays."""
        return {name: value.copy() for name, value in vars(self).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        for name in vars(self):
            setattr(self, name, np.array(state[name], dtype=np.float64))


class LossLevel:
    """The training loss of some fifty steps, over the first one that was told.

    Attributes:
        first: the first one; 0 before any was told.
    """

    def __init__(self) -> None:
        self.first = 0.0
        self._mean = 0.0
        self._mass = 0.0

    def update(self, loss: float | None, steps: float) -> None:
        """Take in the loss at a measurement that stands for ``steps`` steps, if it is a positive number."""
        if loss is None or not (math.isfinite(loss) and loss > 0.0):
            return
        self.first = self.first or loss
        gain = 1.0 - (1.0 - _LOSS_GAIN) ** steps
        self._mean += gain * (loss - self._mean)
        self._mass += gain * (1.0 - self._mass)

    @property
    def shrunk(self) -> float | None:
        """Square root of the loss over the first one, in (0, 1]; ``None`` before any was told."""
        if self._mass == 0.0:
            return None
        return math.sqrt(min(1.0, self._mean / self._mass / self.first))

    def state_dict(self) -> dict[str, float]:
        """Return the averages."""
        return {"first": self.first, "mean": self._mean, "mass": self._mass}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.first, self._mean, self._mass = float(state["first"]), float(state["mean"]), float(state["mass"])


def feeds_itself(optimizer: str, finite_share: float) -> bool:
    """Return whether larger gradients mean larger steps, with nothing that keeps them in bounds.

    Adam's steps are bounded; at the edge of stability (a finite-step share of a third and more) rises are made up for.

    Args:
        optimizer: ``"sgd"``, with or without momentum, or any other.
        finite_share: :attr:`StepShare.share`, at the present rate.
    """
    return optimizer == "sgd" and finite_share < _EDGE_SHARE


def stability_load(optimizer: str, momentum: float, lr: float, eigenvalue: float) -> float:
    """Return ``lr * eigenvalue`` over the limit above which the update map expands; 0 for a negative eigenvalue.

    Args:
        optimizer: ``"sgd"``, ``"adam"``, ``"adamw"``; any other is taken to have no memory.
        momentum: coefficient of the first moment, in [0, 1).
        lr: the largest planned learning rate, >= 0.
        eigenvalue: largest of ``P H`` at the present weights, per unit of ``tau``.

    Raises:
        ValueError: ``momentum`` is out of range, or ``lr`` is negative.
    """
    if not lr >= 0.0:
        raise ValueError(f"stability_load(lr=...) must not be negative, got {lr!r}.")
    return max(0.0, lr * eigenvalue) / stability_limit(optimizer, momentum)


def is_refused(load: float) -> bool:
    """Return whether a plan of this load is to be refused; one that is not a number is."""
    return math.isnan(load) or load > REFUSE_LOAD
