"""What a forecast gives back."""

from __future__ import annotations

from dataclasses import dataclass

from lipadvisor.policies import Status
from lipadvisor.terms import Array

__all__ = ["BandSeries", "Forecast", "Score"]


@dataclass(frozen=True, slots=True)
class BandSeries:
    """One log-norm over the coming steps: nats; entry j is j + 1 steps ahead; arrays of length ``horizon``."""

    mean: Array
    std: Array  # calibrated, never falling with the horizon
    lower: Array  # 90 % band
    upper: Array


@dataclass(frozen=True, slots=True)
class Forecast:
    """Forecast of the network's and of each layer's log-norm under one plan."""

    network: BandSeries
    layers: dict[str, BandSeries]
    status: Status
    horizon: int
    start_step: int  # optimizer steps taken where it starts; entry j belongs to start_step + j + 1
    warnings: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> BandSeries:
        """Return the series of layer ``name``, or of the network under the name ``"*"``.

        Raises:
            KeyError: there is no such layer.
        """
        return self.network if name == "*" else self.layers[name]


@dataclass(frozen=True, slots=True)
class Score:
    """How the forecasts of one series at one horizon have done so far; nats. ``nan`` before the first is scored."""

    horizon: int
    n: int
    mae: float
    mae_persistence: float  # of "nothing changes"
    mae_slope: float  # of a plain smoothed slope per step (smoothing .1)
    mae_best_slope: float  # of the smoothed slope with the best smoothing in hindsight: nobody has it online
    crps: float  # Gaussian, calibrated
    coverage: float  # of the 90 % band, in [0, 1]; aim .9
