"""What the experts say together: their averages, weighted as each of them is believed, by the power of their fading.

``E`` experts, ``P`` powers, ``H`` horizons, ``S`` series.
"""

from __future__ import annotations

import numpy as np

from lipadvisor.forecast.experts import POWER_E, POWERS, SMOOTHINGS
from lipadvisor.terms import Array

__all__ = ["expected_rate", "fading", "moments"]

_BY_POWER = (np.arange(len(POWERS))[:, None] == POWER_E).astype(np.float64)  # sums over the experts of one power


def moments(weight_HES: Array, value_ES: Array) -> tuple[Array, Array]:
    """Return the weighted sums, by power, of the experts' averages and of their squares, shapes ``(H, P, S)``."""
    shape = (len(weight_HES), len(POWERS), len(SMOOTHINGS), -1)
    weighted_HES = weight_HES * value_ES
    first_HPS = np.add.reduce(weighted_HES.reshape(shape), axis=2)
    weighted_HES *= value_ES
    return first_HPS, np.add.reduce(weighted_HES.reshape(shape), axis=2)


def fading(weight_HES: Array) -> Array:
    """Return how far drifts that fade are believed, the sums of weights with p = 1 and p = 2, shape ``(H, 2, S)``."""
    shape = (len(weight_HES), len(POWERS) - 1, len(SMOOTHINGS), -1)
    return np.asarray(np.add.reduce(weight_HES[:, len(SMOOTHINGS) :].reshape(shape), axis=2))


def expected_rate(weight_ES: Array, value_ES: Array, clock_S: Array) -> Array:
    """Return the growth that is expected next, nats per unit of ``tau``, shape ``(S,)``.

    Args:
        weight_ES: of one horizon.
        value_ES: the experts' averages.
        clock_S: ``tau + tau_c``.
    """
    weighted_ES = weight_ES * value_ES
    first_PS = _BY_POWER.dot(weighted_ES)
    if np.count_nonzero(clock_S) < len(clock_S):
        clock_S = np.where(clock_S > 0.0, clock_S, np.inf)
    rate_S = first_PS[2] / clock_S
    rate_S += first_PS[1]
    rate_S /= clock_S
    rate_S += first_PS[0]
    return np.asarray(rate_S)
