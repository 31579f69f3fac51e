"""Learning rate from the median of three measures of an update's relative size: one wrong constant is outvoted.

Each measure is a norm of the update over the same norm of the weight, root sum of squares over the layers, and has a
wanted size of its own. The three are the spectral norm (2 -> 2: how far any output can move; see
:mod:`lipadvisor.policies.spectral_rate`), the Frobenius norm (You et al. 2017 take it for each layer), and the largest
norm of a row (2 -> infinity: how far any one unit can move; Liu et al. 2021 take each unit's own). They rank updates
much alike, so that where all constants are right the median is hardly another rule; where one of them is wrong by any
factor, it lies between the two that are right.

A spectral norm stands for the whole update where a few directions make it. An update whose spectrum is flatter than the
weight's, as an orthogonalised one's is (Muon: all singular values equal), moves all the other directions as far as its
largest, most of them by noise: what the Frobenius ratio exceeds the spectral one by, the step is the smaller. In a
plain chain, where each layer hands on what it is given and no branch goes around it, it is half of that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from lipadvisor.policies.checks import require_positive
from lipadvisor.policies.contract import Decision, Observation
from lipadvisor.policies.spectral_rate import SpectralRate, SpectralRateState, counted_layers, log_size, start_factors

__all__ = ["MedianRate"]


@dataclass(frozen=True, slots=True)
class MedianRate:
    """One learning rate for all groups: the median of those at which each measure has its wanted size.

    A measure that a layer of the network's sum lacks, while its spectral size is known, has no vote: with two votes
    their geometric mean counts, with one that vote, which is :class:`SpectralRate` itself. So observations that hold
    ``update_ratio`` alone are served as before. Where the Frobenius size exceeds the spectral one, constants left
    aside, the step is as much smaller, down to half; in a plain chain most of whose updates so far
    were like that it is half of this.

    Args:
        rate: the spectral vote, and what is done with the median: warmup, memory, run length.
        frobenius_step: wanted root sum of squares over the layers of ``lr |U|_F / |W|_F``, in a run of
            ``rate.reference_steps``, > 0.
        row_step: the same of the largest row norms, > 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    rate: SpectralRate = field(default_factory=SpectralRate)
    frobenius_step: float = 0.088
    row_step: float = 0.114

    def __post_init__(self) -> None:
        require_positive("MedianRate", "frobenius_step", self.frobenius_step)
        require_positive("MedianRate", "row_step", self.row_step)

    @property
    def name(self) -> str:
        """Short name."""
        return "median_rate"

    def init(self) -> SpectralRateState:
        """Return the state before the first observation."""
        return self.rate.init()

    def decide(self, observation: Observation, state: SpectralRateState) -> tuple[Decision, SpectralRateState]:
        """Return the learning rate of step ``observation.step``."""
        rate = self.rate
        if observation.step <= 0:
            return self._own(*rate.listen(observation, state))
        counted = counted_layers(observation.layers)
        if not counted:
            return self._own(*rate.repeat(observation, state))
        ratios = [layer.update_ratio for layer in counted]
        sizes: tuple[list[float], ...] = ([x.frobenius_ratio for x in counted], [x.row_ratio for x in counted])
        factors = start_factors(counted)
        if factors is not None:
            ratios = [ratio * factor for ratio, factor in zip(ratios, factors, strict=True)]
            sizes = tuple([r * f for r, f in zip(size, factors, strict=True)] for size in sizes)
        largest = max(ratios)
        spectral = log_size(ratios)
        votes = [spectral]
        frobenius, row = total_size(sizes[0]), total_size(sizes[1])
        for size, step in ((frobenius, self.frobenius_step), (row, self.row_step)):
            if size is not None:
                votes.append(size + math.log(rate.relative_step / step))
        voted = median(votes)
        if frobenius is not None:
            flatness = frobenius - spectral
            if state.flat is not None:
                counted_so_far = state.flat + (1 if flatness > 0.0 else -1)
                state = replace(state, flat=max(-MOST_COUNTED, min(counted_so_far, MOST_COUNTED)))
            voted += smaller_step(flatness, state.flat)
        read = (
            ("total_ratio", math.exp(min(spectral, 700.0))),
            (f"ratio[{counted[ratios.index(largest)].name}]", largest),
            ("median_over_spectral", math.exp(max(-700.0, min(voted - spectral, 700.0)))),
        )
        return rate.follow(observation, state, voted, read, self.name)

    def _own(self, made: Decision, after: SpectralRateState) -> tuple[Decision, SpectralRateState]:
        return Decision(made.step, self.name, made.reason, made.knobs, read=made.read), after


def total_size(ratios: list[float]) -> float | None:
    """Return ``ln sqrt(sum ratio^2)``; ``None`` where a layer lacks it: what one lacks, none can vote by."""
    total = math.hypot(*ratios) if all(ratios) else 0.0
    return math.log(total) if 0.0 < total < math.inf else None  # false for nan


LARGEST_FLATNESS = math.log(2.0)  # a wrong measurement must not cost more than half the step
IN_CHAIN = math.log(2.0)
MOST_COUNTED = 50  # updates: what an optimizer does can change


def smaller_step(flatness: float, flat: int | None) -> float:
    """Return ``ln`` of the factor by which the step is made smaller, >= 0.

    Args:
        flatness: ``ln`` of the Frobenius size over the spectral one.
        flat: in a plain chain, how many more updates were flat so far than were not; single ones prove nothing.
    """
    in_chain = IN_CHAIN if flat is not None and flat > 0 else 0.0
    return max(0.0, min(flatness, LARGEST_FLATNESS)) + in_chain


def median(votes: list[float]) -> float:
    """Return the middle one of three; of two, or one, the mean."""
    if len(votes) == 3:
        return sorted(votes)[1]
    return sum(votes) / len(votes)
