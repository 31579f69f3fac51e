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

import numpy as np

from lipadvisor.forecast.experts import POWERS
from lipadvisor.terms import Array

__all__ = ["rebound", "steady_rebound"]


def rebound(log_decay_hS: Array, clock_h: Array, weight_hPS: Array) -> Array:
    """Return the growth that a plan's decay calls forth, by each of ``h`` steps.

    Args:
        log_decay_hS: what each step's decay adds to each log-norm, nats, <= 0.
        clock_h: the network's ``tau + tau_c`` after each step, not falling.
        weight_hPS: how far each power ``p`` of the fading is believed, in [0, 1].

    Returns:
        Nats, shape ``(h, S)``: the mean over the powers of ``sum_j -log_decay_j (1 - (u_j / u_h)^p)``; 0 where the
        clock stands at 0.
    """
    moving_h1 = np.where(clock_h > 0.0, clock_h, 1.0)[:, None]
    taken_hS = -np.cumsum(log_decay_hS, axis=0)
    answer_hS = np.zeros_like(log_decay_hS)
    for place, power in enumerate(POWERS):
        if power > 0.0:
            scaled_h1 = moving_h1**power
            called_hS = taken_hS + np.cumsum(log_decay_hS * scaled_h1, axis=0) / scaled_h1
            answer_hS += weight_hPS[:, place] * called_hS
    return np.asarray(np.where(clock_h[:, None] > 0.0, answer_hS, 0.0))


def steady_rebound(log_decay_S: Array, clock: float, lr: float, steps_H: Array, weight_HPS: Array) -> Array:
    """Return :func:`rebound` under knobs that stay, after some numbers of steps.

    Args:
        log_decay_S: what decay adds in a step, nats, <= 0.
        clock: the network's ``tau + tau_c`` now.
        lr: what a step adds to it, >= 0.
        steps_H: numbers of steps, >= 1.
        weight_HPS: how far each power of the fading is believed after them.

    Returns:
        Nats, shape ``(H, S)``.
    """
    end_H = clock + lr * steps_H
    if not clock > 0.0:
        return np.zeros((len(steps_H), len(log_decay_S)))
    first_H = 0.5 * steps_H * (steps_H + 1.0)  # sum of j
    second_H = first_H * (2.0 * steps_H + 1.0) / 3.0  # sum of j^2
    sums_PH = (
        steps_H,
        steps_H * clock + lr * first_H,
        steps_H * clock**2 + 2.0 * clock * lr * first_H + lr**2 * second_H,
    )
    kept_HP = np.stack([sums_H / end_H**power for power, sums_H in zip(POWERS, sums_PH, strict=True)], axis=1)
    return np.asarray(-log_decay_S * np.einsum("hp,hps->hs", steps_H[:, None] - kept_HP, weight_HPS))
