"""Where past growth came from: the parts of the change of a log-norm, which add up to it.

The realised change over measured steps is first-order response (drift and one draw of the noise together), curvature
along the step and decay. The expected noise parts are taken out of the realised ones, so that the parts mean what the
SDE means by them: ``drift`` is the first-order response, ``noise_curvature`` what batch noise adds in the mean,
``finite_step`` the rest of the second order, ``decay`` the weight decay's. What is left (higher orders, and, between
measurements, what was not seen) is ``remainder``: it closes the sum exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lipadvisor.dynamics.coefficients import log_decay
from lipadvisor.terms import Array, Terms

__all__ = ["PARTS", "Attribution", "attribute"]

PARTS = ("drift", "noise_curvature", "diffusion", "finite_step", "decay", "remainder")


@dataclass(frozen=True, slots=True)
class Attribution:
    """Parts of the growth between the first measurement and the last, nats; they add up to ``growth``.

    ``diffusion`` is the logarithm's share of the noise, ``-lr^2 C / 2``.
    """

    growth: float
    parts: dict[str, float]  # of the network, by PARTS
    growth_L: Array
    parts_L: dict[str, Array]

    def shares(self) -> dict[str, float]:
        """Return each part over the growth: they add up to 1; ``nan`` where nothing grew."""
        scale = self.growth if self.growth != 0.0 else float("nan")
        return {name: value / scale for name, value in self.parts.items()}


def attribute(measured: Iterable[Terms]) -> Attribution:
    """Split the growth of the log-norms over a series of measurements.

    A measurement stands for the steps up to the next one. Values that are not finite count as zero, and end up in the
    remainder.

    Args:
        measured: in order; at least two, of the same layers.

    Raises:
        ValueError: there are fewer than two.
    """
    series = list(measured)
    if len(series) < 2:
        raise ValueError(f"attribute(measured) must have at least 2 measurements, got {len(series)}.")
    count = len(series[0].names)
    parts_L = {name: np.zeros(count) for name in PARTS}
    for terms, after in itertools.pairwise(series):
        steps = after.step - terms.step
        square_L = terms.lr_L**2
        kappa_L = np.nan_to_num(0.5 * square_L * terms.noise_curvature_L)
        ito_L = np.nan_to_num(-0.5 * square_L * np.diagonal(terms.noise_LL))
        second_L = np.nan_to_num(0.5 * square_L * (terms.curvature_L - terms.first_L**2))
        parts_L["drift"] += steps * np.nan_to_num(terms.lr_L * terms.first_L)
        parts_L["noise_curvature"] += steps * kappa_L
        parts_L["diffusion"] += steps * ito_L
        parts_L["finite_step"] += steps * (second_L - kappa_L - ito_L)
        parts_L["decay"] += steps * log_decay(terms.lr_L, terms.weight_decay_L)
    growth_L = series[-1].log_norm_L - series[0].log_norm_L
    known_L = np.sum([parts_L[name] for name in PARTS if name != "remainder"], axis=0)
    parts_L["remainder"] = growth_L - known_L
    # The network's parts: with the composition weights of the last measurement; what these leave is remainder.
    weight_L = series[-1].composition_L
    growth = series[-1].network_log_norm - series[0].network_log_norm
    parts = {name: float(weight_L @ parts_L[name]) for name in PARTS}
    parts["remainder"] += growth - float(weight_L @ growth_L)
    return Attribution(growth, parts, growth_L, parts_L)
