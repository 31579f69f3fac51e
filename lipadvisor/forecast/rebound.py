"""How much of a weight decay growth takes back.

Where nothing pulls, the drift of the network's log-norm fades like ``k u^-p`` per unit of the clock
``u = tau + tau_c``, because the margins have grown, not because time has passed: as a function of ``Z`` it falls by
``d drift / dZ = -p / u``. Decay that pulls ``Z`` off that path by ``R < 0`` therefore speeds growth up again::

    dR / du = -decay - (p / u) R        R(u) = -u^-p integral of decay(s) s^p ds

``decay`` is what decay takes off per unit of the clock. Decay in force counts like any other: what it has called forth
so far is in the drift as it was observed, what it calls forth from now on is not, since each expert's drift goes on
fading like ``u^-p``. Where decay and growth have come to terms the drift no longer fades; the experts of ``p = 0`` are
believed then, and nothing is added. The first order in ``R``; each log-norm gets back the same share of what it loses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lipadvisor.forecast.experts import POWERS
from lipadvisor.terms import Array

FADING = POWERS[1:]  # the first is 0

__all__ = ["rebound", "steady_share"]


def rebound(log_decay_hS: Array, clock_h: Array, weight_hPS: Array) -> Array:
    """Return the growth that a plan's decay calls forth, by each of ``h`` steps.

    Args:
        log_decay_hS: what each step's decay adds to each log-norm, nats, <= 0.
        clock_h: the network's ``tau + tau_c`` after each step, not falling.
        weight_hPS: how far a drift that fades with p = 1, and with p = 2, is believed, in [0, 1]; one that does not
            fade calls nothing forth.

    Returns:
        Nats, shape ``(h, S)``: the mean over the powers of ``sum_j -log_decay_j (1 - (u_j / u_h)^p)``; 0 where the
        clock stands at 0.
    """
    moving_h1 = np.where(clock_h > 0.0, clock_h, 1.0)[:, None]
    taken_hS = -np.cumsum(log_decay_hS, axis=0)
    answer_hS = np.zeros_like(log_decay_hS)
    for place, power in enumerate(FADING):
        scaled_h1 = moving_h1**power
        called_hS = taken_hS + np.cumsum(log_decay_hS * scaled_h1, axis=0) / scaled_h1
        answer_hS += weight_hPS[:, place] * called_hS
    return np.asarray(np.where(clock_h[:, None] > 0.0, answer_hS, 0.0))


def steady_share(clock: float, lr: float, horizons: Sequence[int]) -> Array:
    """Return what :func:`rebound` is of the decay of one step, under knobs that stay.

    Args:
        clock: the network's ``tau + tau_c`` now.
        lr: what a step adds to it, >= 0.
        horizons: numbers of steps, >= 1.

    Returns:
        By the horizons and p = 1, 2, shape ``(H, 2)``: ``sum_j 1 - (u_j / u_h)^p`` in steps.
    """
    if not clock > 0.0:
        return np.zeros((len(horizons), 2))
    rows = []
    for steps in horizons:  # numbers: a handful of them is faster so than in arrays
        end = clock + lr * steps
        linear = 0.5 * lr * steps * (steps + 1.0)  # sum of j lr
        square = lr * linear * (2.0 * steps + 1.0) / 3.0  # sum of (j lr)^2
        kept = (steps * clock + linear) / end
        rows.append((steps - kept, steps - (clock * (steps * clock + 2.0 * linear) + square) / (end * end)))
    return np.array(rows)
