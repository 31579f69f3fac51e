"""How much of a new weight decay growth takes back.

Where nothing pulls, the drift of the network's log-norm fades like ``p / u`` of itself per unit of the clock
``u = tau + tau_c``, because the margins have grown, not because time has passed: as a function of ``Z`` it falls by
``d drift / dZ = -p / u``. Decay that pulls ``Z`` off that path by ``R < 0`` therefore speeds growth up again::

    dR / du = -excess - (p / u) R        R(u) = -(1 / u) integral of excess(s) s ds  for p = 1

``excess`` is what decay takes off per unit of the clock, beyond the decay in force, whose answer is in the drift as it
was observed. The first order in ``R``; each log-norm gets back the same share of what it loses.
"""

from __future__ import annotations

import numpy as np

from lipadvisor.terms import Array

__all__ = ["rebound"]


def rebound(excess_hS: Array, clock_h: Array) -> Array:
    """Return the growth that decay beyond that in force calls forth, by each of ``h`` steps.

    Args:
        excess_hS: what each step's decay takes off each log-norm, less that of the decay in force, nats; negative where
            the plan has less decay.
        clock_h: the network's ``tau + tau_c`` after each step, not falling.

    Returns:
        Nats, shape ``(h, S)``: ``sum_j excess_j (1 - u_j / u_h)``; 0 where the clock stands at 0.
    """
    moving_h = np.where(clock_h > 0.0, clock_h, 1.0)[:, None]
    weighted_hS = np.cumsum(excess_hS * clock_h[:, None], axis=0) / moving_h
    return np.asarray(np.where(clock_h[:, None] > 0.0, np.cumsum(excess_hS, axis=0) - weighted_hS, 0.0))
