"""The median of three measures of a step: agreement, one wrong constant, one wrong measurement, and what is missing."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from lipadvisor.policies import Knobs, Layer, Lipschitz, MedianRate, Observation, SpectralRate, as_json, replay

STEPS = (0.12, 0.088, 0.114)
RATE = MedianRate(SpectralRate(STEPS[0]), *STEPS[1:])


def layer(name: str, ratios: tuple[float, float, float], weight: float = 1.0) -> Layer:
    sizes = {"update_ratio": ratios[0], "frobenius_ratio": ratios[1], "row_ratio": ratios[2]}
    return Layer(name, "linear", (64, 64), 0, weight, 0.0, 0.1, 0.0, **sizes)


def run_of(rate: MedianRate, flat: list[bool], start: str = "chain") -> list[float]:
    """Return the learning rates of steps whose updates are flat, or not; all of one spectral size."""
    knobs, rates, state = (Knobs(0, 0.01, 0.0),), [], rate.init()
    for step, one in enumerate([False, *flat]):
        network = Layer("*", "network" if step else start, (), -1, 1.0, 0.0, 0.1, 0.0)
        layers = (layer("a", (5.0, 5.5 if one else 4.0, 5.0)),)
        shown = Observation(step, 400, 0.0, "muon", 0.9, knobs, network, layers, measured_step=max(step - 1, 0))
        decision, state = rate.decide(shown, state)
        rates.append(decision.knobs[0].lr or 0.0)
    return rates[1:]


def test_a_single_flat_update_does_not_halve_the_step_of_a_chain() -> None:
    single = [step == 60 for step in range(100)]
    assert run_of(RATE, single) == run_of(RATE, single, "network")
    always = run_of(RATE, [True] * 100)[-1]
    assert always == pytest.approx(0.5 * run_of(RATE, [True] * 100, "network")[-1])


def settled(rate: MedianRate | SpectralRate, layers: list[Layer], steps: int = 40, start: str = "network") -> float:
    """Return the learning rate after ``steps`` equal observations of a run of 400; ``start``: what step 0 shows."""
    first, later = (Layer("*", kind, (), -1, 1.0, 0.0, 0.1, 0.0) for kind in (start, "network"))
    knobs = (Knobs(0, 0.01, 0.0),)
    run = [
        Observation(
            step, 400, 0.0, "adamw", 0.9, knobs, later if step else first, tuple(layers), measured_step=max(step - 1, 0)
        )
        for step in range(steps)
    ]
    found = replay(rate, run)[-1].knobs[0].lr
    assert found is not None
    return found


def totals(layers: list[Layer]) -> list[float]:
    """Return the root sum of squares of each size over the layers."""
    sizes = ("update_ratio", "frobenius_ratio", "row_ratio")
    return [math.sqrt(sum(getattr(x, size) ** 2 for x in layers)) for size in sizes]


def proposals(layers: list[Layer]) -> list[float]:
    """Return what each measure alone asks for, by its definition."""
    return [step / total for step, total in zip(STEPS, totals(layers), strict=True)]


def flatter(layers: list[Layer]) -> float:
    """Return the factor that a spectrum flatter than the weights' takes off the step, by its definition."""
    spectral, frobenius, _ = totals(layers)
    return min(max(frobenius / spectral, 1.0), 2.0)


@pytest.mark.parametrize("seed", range(20))
def test_the_rate_is_the_median_of_three(seed: int) -> None:
    source = random.Random(seed)
    layers = [
        layer(str(k), tuple(math.exp(source.gauss(2.0, 1.0)) for _ in range(3)))  # type: ignore[arg-type]
        for k in range(source.randint(1, 6))
    ]
    assert settled(RATE, layers) == pytest.approx(sorted(proposals(layers))[1] / flatter(layers))


@pytest.mark.parametrize(("frobenius", "share"), [(2.0, 1.0), (5.0, 1.0), (7.5, 1 / 1.5), (10.0, 0.5), (50.0, 0.5)])
def test_a_spectrum_flatter_than_the_weights_takes_a_smaller_step(frobenius: float, share: float) -> None:
    layers = [layer("a", (3.0, 0.6 * frobenius, 4.0)), layer("b", (4.0, 0.8 * frobenius, 3.0))]
    assert settled(RATE, layers) == pytest.approx(sorted(proposals(layers))[1] * share)
    in_chain = settled(RATE, layers, start="chain")
    assert in_chain == pytest.approx(settled(RATE, layers) * (0.5 if frobenius > 5.0 else 1.0)), "half of that"


@pytest.mark.parametrize("field", ["relative_step", "frobenius_step", "row_step"])
@pytest.mark.parametrize("factor", [1e-6, 1 / 8, 8.0, 1e6])
def test_a_wrong_constant_moves_the_rate_no_further_than_to_the_nearest_right_one(field: str, factor: float) -> None:
    layers = [layer("a", (5.0, 3.4, 4.9)), layer("b", (20.0, 16.0, 18.0))]
    three = sorted(proposals(layers))
    if field == "relative_step":
        wrong = replace(RATE, rate=SpectralRate(STEPS[0] * factor))
    else:
        wrong = replace(RATE, **{field: getattr(RATE, field) * factor})
    assert three[0] * (1 - 1e-9) <= settled(wrong, layers) <= three[2] * (1 + 1e-9)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_a_wrong_measurement_is_outvoted(place: int, factor: float) -> None:
    right = (5.0, 4.0, 5.0)
    wrong = tuple(ratio * (factor if k == place else 1.0) for k, ratio in enumerate(right))
    three = proposals([layer("a", right)])
    found = settled(RATE, [layer("a", wrong)])  # type: ignore[arg-type]
    assert 0.5 * min(three) * (1 - 1e-9) <= found <= max(three) * (1 + 1e-9)  # half: as if the spectrum were flat


def test_all_three_scaled_scale_the_rate() -> None:
    layers = [layer("a", (5.0, 3.4, 4.9))]
    tripled = MedianRate(SpectralRate(3 * STEPS[0]), 3 * STEPS[1], 3 * STEPS[2])
    assert settled(tripled, layers) == pytest.approx(3 * settled(RATE, layers))
    policy = Lipschitz().scaled(3.0)
    for field in ("relative_step", "frobenius_step", "row_step"):
        assert getattr(policy, field) == pytest.approx(3 * getattr(Lipschitz(), field))


@pytest.mark.parametrize("missing", [0.0, math.nan, math.inf])
def test_what_was_not_measured_has_no_vote(missing: float) -> None:
    without_rows = [layer("a", (5.0, 3.4, 4.9)), layer("b", (20.0, 16.0, missing))]
    spectral, frobenius = proposals([layer("a", (5.0, 3.4, 1.0)), layer("b", (20.0, 16.0, 1.0))])[:2]
    assert settled(RATE, without_rows) == pytest.approx(math.sqrt(spectral * frobenius))
    spectral_alone = [layer("a", (5.0, missing, missing)), layer("b", (20.0, 16.0, 18.0))]
    assert settled(RATE, spectral_alone) == settled(SpectralRate(STEPS[0]), spectral_alone)


def test_what_stands_beside_the_network_has_no_say() -> None:
    layers = [layer("a", (5.0, 3.4, 4.9))]
    beside = layer("table", (1e3, 2e3, 0.0), weight=0.0)
    assert settled(RATE, [*layers, beside]) == settled(RATE, layers)


def test_the_record_tells_how_far_the_median_is_from_the_spectral_vote() -> None:
    seen = layer("a", (5.0, 4.0, 6.0))
    network = Layer("*", "network", (), -1, 1.0, 0.0, 0.1, 0.0)
    observation = Observation(7, 400, 0.0, "adamw", 0.9, (Knobs(0, 0.01),), network, (seen,), measured_step=6)
    decision, state = RATE.decide(observation, RATE.init())
    three = sorted(proposals([seen]))
    assert dict(decision.read)["median_over_spectral"] == pytest.approx(STEPS[0] / 5.0 / three[1])
    assert as_json(state)["log_ratio"] == pytest.approx(math.log(STEPS[0] / three[1]))


@pytest.mark.parametrize("field", ["frobenius_step", "row_step"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_impossible_constants_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"MedianRate\({field}=...\) must be a finite number > 0"):
        MedianRate(**{field: value})
    with pytest.raises(ValueError, match=field):
        Lipschitz(**{field: value})
    with pytest.raises(ValueError, match="factor"):
        Lipschitz().scaled(value)


def test_a_layer_that_starts_at_zero_does_not_hold_down_the_others() -> None:
    """Its ratio counts as if its gain were 0.05: a zero matrix's says how many steps were taken, and nothing else."""
    grown, small = layer("a", (2.0, 1.5, 2.0)), layer("b", (4000.0, 3000.0, 4000.0))
    started = replace(small, log_gain=math.log(5e-5))
    counted = layer("b", (4.0, 3.0, 4.0))
    assert settled(RATE, [grown, started]) == pytest.approx(settled(RATE, [grown, counted]))
    assert settled(RATE.rate, [grown, started]) == pytest.approx(settled(RATE.rate, [grown, counted]))
    assert settled(RATE, [grown, replace(small, log_gain=math.log(0.06))]) < 0.01 * settled(RATE, [grown, counted])
    nothing = replace(small, log_gain=-math.inf)  # the ratio of a finite update to no weight at all is not finite
    assert settled(RATE, [grown, replace(nothing, update_ratio=math.inf)]) == settled(RATE, [grown])
    assert math.isfinite(settled(RATE, [grown, nothing]))
