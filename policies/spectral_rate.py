"""Learning rate from the size of the update relative to the weight, in spectral norm.

Weyl: no singular value moves further in a step than ``lr s_1(U)``, so ``lr s_1(U) / s_1(W)`` bounds how far a layer's
log-norm moves. Holding the root sum of squares of these over the layers at a constant is a trust region in the norm
that the Lipschitz bound is made of (Luo et al. 2025; Qi et al. 2023), and gives the scale of the learning rate without
the user's. The constant falls with the square root of the run's length, as the step size of stochastic gradient
methods does (Nemirovski et al. 2009): the same network trained longer takes smaller steps.

A direction shrinks for two reasons that look alike from outside: it has become mostly noise, which averages out, or its
gradients vanish, because the loss has been learnt or because units have died. Holding the relative size then means a
rate that rises without limit while less and less is known about where to go. So the relative size is held in full only
while the run settles; from then on the rate rises with a power of the shrinkage, and the relative size falls with the
rest. The power lies between those of the two extremes, a constant rate (0) and a constant relative size (1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lipadvisor.policies.checks import (
    require_above,
    require_at_least_one,
    require_fraction,
    require_fraction_below_one,
    require_positive,
)
from lipadvisor.policies.contract import Decision, Layer, Observation, hold
from lipadvisor.policies.quick_record import quick_record
from lipadvisor.policies.schedules import same_knobs
from lipadvisor.policies.warmup_cap import WarmupCap

__all__ = ["SpectralRate", "SpectralRateState"]

NO_CAP = WarmupCap()


@quick_record
@dataclass(frozen=True, slots=True)
class SpectralRateState:
    """Memory of :class:`SpectralRate`. ``None``: nothing yet."""

    log_ratio: float | None = None  # smoothed ln of the largest update ratio
    measured_step: int = -1
    measurements: int = 0
    step: int = 0  # of the last decision
    log_lr: float | None = None  # ln of the last learning rate proposed
    settled: float | None = None  # ln of the largest learning rate proposed while the run settled
    settling: bool = True
    cap: WarmupCap = NO_CAP  # under SGD
    flat: int | None = None  # of a plain chain: updates with a flat spectrum so far, less those without


@dataclass(frozen=True, slots=True)
class SpectralRate:
    """One learning rate for all groups: ``relative_step / sqrt(sum_l update_ratio_l^2)``, less in longer runs.

    The measurement is one step old when it is used, so the larger of the present and the smoothed ratio counts. The
    rate may fall at once; it rises at most by ``rise`` per step, which makes a warmup by itself: the first step, before
    any gradient is seen, is a *listening* step, so small that it harms no network. After the first fifth of the run a
    rate rises above its largest value until then only with a power of the ratio's fall. Under SGD it does not rise
    above the warmup's before the training loss has fallen (:class:`WarmupCap`).

    Args:
        relative_step: wanted size of an update, root sum of squares over the layers of ``lr s_1(U) / s_1(W)``, in a run
            of ``reference_steps``, > 0.
        reference_steps: run length that ``relative_step`` is given for, >= 1.
        horizon_power: the size falls with this power of the run's length, in [0, 1]. Where the length is unknown, the
            steps taken so far stand for it once they exceed ``reference_steps``.
        listening_share: size of the first step relative to ``relative_step``, in (0, 1], for the largest direction
            that Adam can give (a matrix of signs, ``s_1 <= sqrt(m n)``).
        rise: largest factor by which the rate rises per step, > 1.
        rise_steps: steps after the last decision that count for ``rise``, >= 1: a sparing probe must not jump.
        smoothing: memory of the ratio's mean per step, in [0, 1); at first the mean is over all that was measured.
        memory: the same as a time constant, share of the run's length, > 0; the shorter of the two counts. In a short
            run the large ratios of the first steps must not hold the rate down until it is half over.
        highest_lr: learning rate that is never exceeded, > 0.
        settling: share of the run in which the rate follows the ratio in full, in (0, 1]; longer where the warmup is.
        later_power: power of the ratio by which the rate rises afterwards above its largest value until then, in
            [0, 1]; 1 is to follow in full, 0 not to rise any more. To fall it always follows in full.

    Raises:
        ValueError: an argument is out of its range.
    """

    relative_step: float = 0.12
    reference_steps: int = 400
    horizon_power: float = 0.5
    listening_share: float = 0.01
    rise: float = 4.0
    rise_steps: int = 3
    smoothing: float = 0.98
    memory: float = 0.09
    highest_lr: float = 100.0
    settling: float = 0.2
    later_power: float = 0.7

    def __post_init__(self) -> None:
        require_positive("SpectralRate", "relative_step", self.relative_step)
        require_at_least_one("SpectralRate", "reference_steps", self.reference_steps)
        require_fraction("SpectralRate", "horizon_power", self.horizon_power)
        require_positive("SpectralRate", "listening_share", self.listening_share)
        require_fraction("SpectralRate", "listening_share", self.listening_share)
        require_above("SpectralRate", "rise", self.rise, 1.0)
        require_at_least_one("SpectralRate", "rise_steps", self.rise_steps)
        require_fraction_below_one("SpectralRate", "smoothing", self.smoothing)
        for argument in ("memory", "highest_lr", "settling"):
            require_positive("SpectralRate", argument, getattr(self, argument))
        for argument in ("settling", "later_power"):
            require_fraction("SpectralRate", argument, getattr(self, argument))

    @property
    def name(self) -> str:
        """Short name."""
        return "spectral_rate"

    def init(self) -> SpectralRateState:
        """Return the state before the first observation."""
        return SpectralRateState()

    def decide(self, observation: Observation, state: SpectralRateState) -> tuple[Decision, SpectralRateState]:
        """Return the learning rate of step ``observation.step``."""
        if observation.step <= 0:
            return self.listen(observation, state)
        layer, log_ratio = total_ratio(observation.layers)
        if layer is None:
            return self.repeat(observation, state)
        read = (
            ("total_ratio", math.exp(min(log_ratio, 700.0))),
            (f"ratio[{layer.name}]", layer.update_ratio),
        )
        return self.follow(observation, state, log_ratio, read)

    def follow(
        self,
        observation: Observation,
        state: SpectralRateState,
        log_ratio: float,
        read: tuple[tuple[str, float], ...],
        name: str = "spectral_rate",
    ) -> tuple[Decision, SpectralRateState]:
        """Return the learning rate for updates of the relative size ``exp(log_ratio)`` per unit of it.

        Args:
            observation: of step 1 or later.
            state: the memory.
            log_ratio: ln of the size by which ``relative_step`` is divided, finite.
            read: what led to it.
            name: of the policy that decides.
        """
        smooth = self._smooth(log_ratio, observation, state)
        size = self.size(observation)
        target = math.log(size) - max(log_ratio, smooth)
        reason = "spectral:ratio" if log_ratio >= smooth else "spectral:smoothed"
        settled = state.settled
        if settled is not None and not state.settling and target > settled:
            target, reason = settled + self.later_power * (target - settled), "spectral:settled"
        cap = state.cap
        waits = observation.optimizer == "sgd" and not cap.learnt
        if waits:
            cap = cap.heard(observation, self._run_steps(observation))
            limit = cap.limit(observation.step)
            if limit is not None and target > limit:
                target, reason = limit, "spectral:nothing_learnt"
        rising = False
        if state.log_lr is not None:
            highest = state.log_lr + self._rise(observation, state)
            if target > highest:
                target, reason, rising = highest, "spectral:rise", True
        target, reason = self._within(target, reason)
        count = state.measurements + (observation.measured_step > state.measured_step)
        settling = state.settling and (rising or observation.step <= self._settling_steps(observation))
        if state.settling and (settled is None or target > settled):
            settled = target
        if waits:
            cap = cap.decided(observation.step, target, rising)
        read = (*read, ("relative_step", size))
        after = SpectralRateState(
            smooth, observation.measured_step, count, observation.step, target, settled, settling, cap, state.flat
        )
        knobs = same_knobs(observation, math.exp(target), None)
        return Decision(observation.step, name, reason, knobs, (), (), False, False, False, read), after

    def size(self, observation: Observation) -> float:
        """Return the wanted size of an update in a run of this length."""
        steps = observation.total_steps
        if steps is None:
            steps = max(observation.step, self.reference_steps)
        longer: float = self.reference_steps / max(steps, 1)
        return self.relative_step * math.exp(self.horizon_power * math.log(longer))

    def _run_steps(self, observation: Observation) -> int:
        steps = observation.total_steps
        return self.reference_steps if steps is None else steps

    def _settling_steps(self, observation: Observation) -> float:
        return self.settling * self._run_steps(observation)

    def _rise(self, observation: Observation, state: SpectralRateState) -> float:
        """Return by how much ``ln lr`` may rise: what will not be looked at for long must not be raised by much."""
        gap = observation.measured_step - state.measured_step
        if gap <= 0:  # nothing new is known
            return 0.0
        if gap > SPARSE:
            return math.log(SPARSE_RISE)
        steps = min(max(observation.step - state.step, 1), self.rise_steps)
        return steps * math.log(self.rise)

    def _smooth(self, log_ratio: float, observation: Observation, state: SpectralRateState) -> float:
        if state.log_ratio is None:
            return log_ratio
        steps = observation.measured_step - state.measured_step
        if steps <= 0:  # the same measurement as last time
            return state.log_ratio
        steps = min(steps, SPARSE)  # late in a run one batch's ratio differs tenfold from the next's
        memory: float = self.smoothing**steps
        if observation.total_steps is not None:
            memory = min(memory, math.exp(-steps / max(1.0, self.memory * observation.total_steps)))
        kept = min(memory, state.measurements / (state.measurements + 1.0))
        return log_ratio + kept * (state.log_ratio - log_ratio)

    def listen(self, observation: Observation, state: SpectralRateState) -> tuple[Decision, SpectralRateState]:
        """Return the first learning rate: no gradient has been seen, only the weights."""
        state = replace(state, flat=0 if observation.network.kind == "chain" else None)
        logs = [
            layer.log_norm - 0.5 * sum(math.log(max(size, 1)) for size in layer.shape)
            for layer in observation.layers
            if math.isfinite(layer.log_norm) and layer.shape and layer.composition_weight != 0.0
        ]
        if not logs:
            return hold(observation, self.name, "no_norm"), state
        target = math.log(self.listening_share * self.size(observation)) + min(logs)
        target, reason = self._within(target, "spectral:listen")
        read = (("smallest_norm_per_size", math.exp(min(min(logs), 700.0))),)
        after = replace(state, step=observation.step, log_lr=target)
        return self._decision(observation, target, reason, read), after

    def repeat(self, observation: Observation, state: SpectralRateState) -> tuple[Decision, SpectralRateState]:
        """Return the last learning rate once more: nothing new is known."""
        if state.log_lr is None:
            return hold(observation, self.name, "no_ratio"), state
        after = replace(state, step=observation.step)
        return self._decision(observation, state.log_lr, "hold:no_ratio", ()), after

    def _within(self, log_lr: float, reason: str) -> tuple[float, str]:
        highest, lowest = math.log(self.highest_lr), math.log(LOWEST_LR)
        if lowest <= log_lr <= highest:
            return log_lr, reason
        return min(max(log_lr, lowest), highest), f"{reason}:limit"

    def _decision(
        self, observation: Observation, log_lr: float, reason: str, read: tuple[tuple[str, float], ...]
    ) -> Decision:
        knobs = same_knobs(observation, math.exp(log_lr), None)
        return Decision(observation.step, self.name, reason, knobs, read=read)


SPARSE = 11  # steps between measurements beyond which the rate is raised, and the ratio forgotten, by measurements
LOG_LEAST_GAIN = math.log(0.05)  # a tenth of PyTorch's default: what is scaled down by ten is taken at its word
SPARSE_RISE = 2.0  # factor at each of these
LOWEST_LR = 1e-12  # a learning rate must stay above zero


def total_ratio(layers: tuple[Layer, ...]) -> tuple[Layer | None, float]:
    """Return the layer with the largest update ratio that can be used, and ``ln sqrt(sum ratio^2)`` over all."""
    counted = counted_layers(layers)
    if not counted:
        return None, -math.inf
    ratios = [layer.update_ratio for layer in counted]
    factors = start_factors(counted)
    if factors is not None:
        ratios = [ratio * factor for ratio, factor in zip(ratios, factors, strict=True)]
    return counted[ratios.index(max(ratios))], log_size(ratios)


def counted_layers(layers: tuple[Layer, ...]) -> list[Layer]:
    """Return the layers of the network's sum whose update ratio can be used.

    What stands beside the sum (tables, gains) has no say.
    """
    highest = math.inf
    return [x for x in layers if 0.0 < x.update_ratio < highest and x.composition_weight != 0.0]  # false for nan


def start_factors(layers: list[Layer]) -> list[float] | None:
    """Return by what the ratio of each layer counts less; ``None``: none does.

    A layer that starts at zero (the second matrix of LoRA, the last one of a residual branch) is made of its own
    updates alone: what one of them is relative to it says how many there were, and nothing of how far it moves an
    output. Taken at its word it would hold down the rate of the whole network. So what has a gain below 0.05
    counts as if it had that.
    """
    gains = [layer.log_gain for layer in layers]
    if min(gains) >= LOG_LEAST_GAIN:  # as good as always
        return None
    return [math.exp(max(-700.0, min(gain - LOG_LEAST_GAIN, 0.0))) for gain in gains]


def log_size(ratios: list[float]) -> float:
    """Return ``ln sqrt(sum ratio^2)`` of positive, finite numbers, of which there is at least one."""
    total = math.hypot(*ratios)
    if not 1e-300 < total < math.inf:  # in units of the largest nothing overflows
        largest = max(ratios)
        return math.log(largest) + math.log(math.hypot(*[r / largest for r in ratios]))
    return math.log(total)
