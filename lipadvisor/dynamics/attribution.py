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
from typing import TYPE_CHECKING

import numpy as np

from lipadvisor.dynamics.coefficients import log_decay
from lipadvisor.dynamics.response import own_response
from lipadvisor.terms import Array, Terms

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PARTS", "Attribution", "attribute", "attribute_recorded", "attributed_growth"]

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
        steps = max(0, after.step - terms.step)  # below 0 weights were put back
        square_L = terms.lr_L**2
        # Of its own batch's noise a step takes the share that the optimizer lets in at once.
        noise_L = square_L * own_response(terms.optimizer, terms.momentum, terms.optimizer_step) ** 2
        kappa_L = np.nan_to_num(0.5 * noise_L * terms.noise_curvature_L)
        ito_L = np.nan_to_num(-0.5 * noise_L * np.diagonal(terms.noise_LL))
        second_L = np.nan_to_num(0.5 * square_L * (terms.curvature_L - terms.first_L**2))
        parts_L["drift"] += steps * np.nan_to_num(terms.lr_L * terms.first_L)
        parts_L["noise_curvature"] += steps * kappa_L
        parts_L["diffusion"] += steps * ito_L
        parts_L["finite_step"] += steps * (second_L - kappa_L - ito_L)
        parts_L["decay"] += steps * log_decay(terms.lr_L, terms.weight_decay_L)
    growth_L = series[-1].log_norm_L - series[0].log_norm_L
    growth = series[-1].network_log_norm - series[0].network_log_norm
    return _closed(parts_L, growth_L, growth, series[-1].composition_L)


def attribute_recorded(observations: pd.DataFrame, last: int | None = None) -> Attribution:
    """Split the growth of the log-norms over a recorded run, or over its last steps.

    ``attribute_recorded(advisor.trajectory.observations, last=200)`` while the training goes on, or with the frame of
    ``load_run(...)``. A recorded row holds the log-norms after its last step, and that step's rates; steps between two
    rows are taken to be like those of the earlier one (of the later one, where the earlier is the start). What is not
    finite, and what weights that were put back or rescaled have lost, is in the remainder.

    Args:
        observations: of one trial, as ``Advisor.trajectory`` or ``load_run(...)`` has them; two observations at least.
        last: steps back from the last observation, >= 1; the interval begins at the last observation that is as old.
            ``None``: all.

    Raises:
        ValueError: there are fewer than two observations, or several trials, or ``last`` is out of range.
    """
    seen = _Recorded.read(observations, "attribute_recorded")
    first = seen.first_within(last)
    parts_L = {name: change_TL[first:].sum(axis=0) for name, change_TL in seen.change_TL.items()}
    growth_L = seen.log_norm_TL[-1] - seen.log_norm_TL[first]
    return _closed(parts_L, growth_L, float(seen.level_T[-1] - seen.level_T[first]), seen.weight_L)


def attributed_growth(observations: pd.DataFrame) -> pd.DataFrame:
    """Return the parts of the network's growth from the start of a recorded run to each of its observations.

    Args:
        observations: as for :func:`attribute_recorded`.

    Returns:
        Columns ``step``, ``growth`` and the parts, nats; the parts of a row add up to its growth.

    Raises:
        ValueError: there are fewer than two observations, or several trials.
    """
    import pandas as pd

    seen = _Recorded.read(observations, "attributed_growth")
    table = {"step": seen.step_T, "growth": seen.level_T - seen.level_T[0]}
    for name, change_TL in seen.change_TL.items():
        table[name] = np.concatenate([[0.0], np.cumsum(change_TL @ seen.weight_L)])
    table["remainder"] = table["growth"] - np.sum([table[name] for name in seen.change_TL], axis=0)
    return pd.DataFrame(table)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A recorded run: ``T`` observations, and the parts of what happened between each two of them."""

    step_T: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    log_norm_TL: Array
    level_T: Array  # of the network
    weight_L: Array  # composition weights, of the last observation
    change_TL: dict[str, Array]  # by part, nats; T - 1 rows

    @classmethod
    def read(cls, observations: pd.DataFrame, owner: str) -> _Recorded:
        """Read the frame of one trial; the public functions tell what it must be."""
        if "trial" in observations and observations["trial"].nunique() > 1:
            raise ValueError(f"{owner}(observations) must be of one trial; see Run.trial(name).")
        network = observations[observations["layer"] == "*"].sort_values("step")
        if len(network) < 2:
            raise ValueError(f"{owner}(observations) must have at least 2 observations, got {len(network)}.")
        names = observations.loc[observations["layer"] != "*", "layer"].unique()

        def table(column: str) -> Array:
            wide = observations.pivot(index="step", columns="layer", values=column)[names]
            return np.asarray(wide.to_numpy(dtype=np.float64))

        step_T = network["step"].to_numpy(dtype=np.int64)
        lr_TL = table("lr")
        kappa_TL, ito_TL = np.nan_to_num(table("noise_curvature")), np.nan_to_num(-0.5 * table("diffusion") ** 2)
        rates_TL = {
            "drift": table("drift"),
            "noise_curvature": kappa_TL,
            "diffusion": ito_TL,
            "finite_step": table("finite_step") - kappa_TL - ito_TL,
            "decay": table("decay"),
        }
        between_T1 = (np.diff(step_T) - 1.0)[:, None]  # steps of which nothing was measured
        change_TL = {}
        for name, rate_TL in rates_TL.items():
            with np.errstate(over="ignore"):  # of a run that was lost
                now_TL = np.nan_to_num(lr_TL * rate_TL, posinf=0.0, neginf=0.0)
            earlier_TL = now_TL[:-1].copy()
            if step_T[0] == 0:
                earlier_TL[0] = now_TL[1]
            change_TL[name] = now_TL[1:] + between_T1 * earlier_TL
        level_T = network["log_norm"].to_numpy(dtype=np.float64)
        return cls(step_T, table("log_norm"), level_T, table("composition_weight")[-1], change_TL)

    def first_within(self, last: int | None) -> int:
        """Return the place of the last observation that is ``last`` steps old, or of the first of all."""
        if last is None:
            return 0
        if not isinstance(last, int) or isinstance(last, bool) or last < 1:
            raise ValueError(f"attribute_recorded(last=...) must be an integer >= 1 or None, got {last!r}.")
        first = int(np.searchsorted(self.step_T, max(int(self.step_T[-1]) - last, -1), side="right")) - 1
        return min(max(first, 0), len(self.step_T) - 2)


def _closed(parts_L: dict[str, Array], growth_L: Array, growth: float, weight_L: Array) -> Attribution:
    """Return the parts with what they leave as remainder.

    The network's parts take the composition weights ``weight_L`` of the last measurement.
    """
    parts_L["remainder"] = growth_L - np.sum([parts_L[name] for name in PARTS if name != "remainder"], axis=0)
    parts = {name: float(weight_L @ parts_L[name]) for name in PARTS}
    parts["remainder"] += growth - float(weight_L @ growth_L)
    return Attribution(growth, parts, growth_L, parts_L)
