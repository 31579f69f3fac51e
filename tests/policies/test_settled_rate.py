"""After the first fifth of a run the rate follows a shrinking update with a power of the shrinkage, not in full."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from lipadvisor.policies import Knobs, Layer, Lipschitz, Observation, SpectralRate, replay

STEPS = 400
NETWORK = Layer("*", "network", (), -1, 1.0, 0.0, 0.1, 0.0)


def rates(
    rate: SpectralRate, ratio: Callable[[int], float], steps: int | None = STEPS, every: int = 1, until: int = STEPS
) -> list[float]:
    """Return the learning rates of a run whose update ratio at step ``t`` is ``ratio(t)``."""
    run = [
        Observation(
            t, steps, 0.0, "sgd", 0.9, (Knobs(0, 0.01, 0.0),), NETWORK,
            (Layer("a", "linear", (64, 64), 0, 1.0, 0.0, 0.1, 0.0, update_ratio=ratio(t)),),
            measured_step=max(t - 1, 0),
        )
        for t in range(0, until, every)
    ]  # fmt: skip
    found = [decision.knobs[0].lr for decision in replay(rate, run)]
    return [lr for lr in found if lr is not None]


@pytest.mark.parametrize("power", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("steps", [STEPS, None])
def test_dying_gradients_raise_the_rate_by_a_power_of_their_shrinkage(power: float, steps: int | None) -> None:
    found = rates(SpectralRate(later_power=power, smoothing=0.0), lambda t: 5.0 if t <= 100 else 5.0e-3, steps)
    assert found[100] == pytest.approx(0.12 / 5.0)
    assert found[-1] / found[100] == pytest.approx(1e3**power)


@pytest.mark.parametrize("seed", range(10))
def test_the_rate_falls_in_full_and_lies_between_the_two_extremes(seed: int) -> None:
    source = random.Random(seed)
    logs = [1.0]
    for _ in range(STEPS):
        logs.append(logs[-1] + source.gauss(-0.02, 0.2))

    def ratio(t: int) -> float:
        return math.exp(logs[t])

    full, half, none = (rates(SpectralRate(later_power=p, highest_lr=1e9), ratio) for p in (1.0, 0.5, 0.0))
    settled = STEPS // 5 + 2  # the first decision after the share is the last of the old kind
    top = max(full[:settled])
    assert half[:settled] == full[:settled]
    for a, b, c in zip(full, half, none, strict=True):
        assert c == pytest.approx(min(a, top))
        assert b == pytest.approx(a if a <= top else math.sqrt(a * top))


def test_a_warmup_that_lasts_longer_is_not_cut_short() -> None:
    found = rates(SpectralRate(settling=0.01, later_power=0.0), lambda t: 5.0, steps=20_000, every=40, until=2_000)
    wanted = SpectralRate().size(Observation(0, 20_000, 0.0, "sgd", 0.9, (), NETWORK, ())) / 5.0
    assert found[6] < 0.5 * wanted  # step 240, beyond the settling share: still on its way
    assert found[-1] == pytest.approx(wanted)


@pytest.mark.parametrize("bad", [{"settling": 0.0}, {"settling": 1.5}, {"later_power": -0.1}, {"later_power": 1.1}])
def test_shares_outside_their_range_are_refused(bad: dict[str, float]) -> None:
    name = next(iter(bad))
    with pytest.raises(ValueError, match=rf"SpectralRate\({name}=\.\.\.\)"):
        SpectralRate(**bad)
    with pytest.raises(ValueError, match=name):
        Lipschitz(**bad)
