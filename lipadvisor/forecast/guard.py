"""The guard on a plan where the loss's curvature is known: how close a learning rate is to an expanding update map.

The relative update, by which every forecast judges its plan, sees a jump to an unstable rate late or not at all when
gradients are small. The largest eigenvalue of ``P H`` (preconditioner times Hessian) sees it before: the map expands
where ``lr * eigenvalue`` passes the optimizer's limit, 2 for SGD, 3.8 with momentum .9, 38 for Adam.
"""

from __future__ import annotations

import math

from lipadvisor.dynamics import stability_limit

__all__ = ["REFUSE_LOAD", "is_refused", "stability_load"]

REFUSE_LOAD = 0.7  # of the limit: the eigenvalue goes on rising after the change


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
