"""How the noise of a training was measured, for those who want to know."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NoiseReport"]


@dataclass(frozen=True, slots=True)
class NoiseReport:
    """How the noise was measured last, and what its checks said so far.

    Attributes:
        method: "samples"; "differences" of successive gradients; "updates" for those of the updates of an optimizer
            whose use of a gradient is not known; "none" before the first measurement.
        coupled_by: layers that coupled the samples at the last measured step.
        factor: by which the captured gradients had to be multiplied to give the optimizer's: 1/S under a loss scale S.
        unmatched: measured steps at which a layer's samples did not add up to its gradient, by name; none if never.
        pairs: successive differences taken in so far.
        ratio: running ratio of the variance from differences to that from samples; nan where it is not known.
        compared: pairs that entered the ratio.
        disagreements: of these, how many found the ratio out of bounds (3, either way, after 40 pairs).
    """

    method: str
    coupled_by: tuple[str, ...]
    factor: float
    unmatched: tuple[tuple[str, int], ...]
    pairs: int
    ratio: float
    compared: int
    disagreements: int
