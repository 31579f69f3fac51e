"""Parts of past growth add up, and mean what they say on series of known law."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lipadvisor.dynamics import PARTS, attribute, attribute_recorded, coefficients
from lipadvisor.policies import Constant, per_group
from lipadvisor.terms import Terms


def made(step: int, log_norm_L: np.ndarray, **given: object) -> Terms:
    count = len(log_norm_L)
    zeros = np.zeros(count)
    values: dict[str, object] = {
        "step": step,
        "names": tuple(f"l{i}" for i in range(count)),
        "kinds": ("linear",) * count,
        "shapes": ((4, 4),) * count,
        "groups": (0,) * count,
        "lr_L": np.full(count, 0.1),
        "weight_decay_L": zeros,
        "composition_L": np.ones(count),
        "log_norm_L": log_norm_L,
        "gap_L": zeros,
        "log_gain_L": zeros,
        "first_L": zeros,
        "curvature_L": zeros,
        "change_L": zeros,
        "update_ratio_L": zeros,
        "noise_LL": np.zeros((count, count)),
        "noise_curvature_L": zeros,
        "network_log_norm": float(log_norm_L.sum()),
        "batch_size": 8,
        "optimizer": "sgd",
        "momentum": 0.0,
        "optimizer_step": step,
        "status_L": ("ok",) * count,
    }
    return Terms(**{**values, **given})  # type: ignore[arg-type]


def random_series(seed: int, length: int = 30) -> list[Terms]:
    generator = np.random.default_rng(seed)
    series, level = [], generator.normal(size=3)
    for step in range(0, 2 * length, 2):
        noise = generator.normal(size=(3, 5))
        terms = made(
            step,
            level.copy(),
            weight_decay_L=np.full(3, 0.02),
            composition_L=generator.uniform(0.2, 1.0, 3),
            first_L=generator.normal(size=3),
            curvature_L=generator.uniform(0.0, 2.0, 3),
            noise_LL=noise @ noise.T,
            noise_curvature_L=generator.uniform(0.0, 1.0, 3),
        )
        series.append(replace(terms, network_log_norm=float(terms.composition_L @ level)))
        level = level + generator.normal(scale=0.1, size=3)
    return series


@pytest.mark.parametrize("seed", range(5))
def test_parts_add_up(seed: int) -> None:
    series = random_series(seed)
    found = attribute(series)
    assert set(found.parts) == set(PARTS)
    assert found.growth == pytest.approx(series[-1].network_log_norm - series[0].network_log_norm, abs=1e-12)
    assert sum(found.parts.values()) == pytest.approx(found.growth, abs=1e-9)
    np.testing.assert_allclose(sum(found.parts_L.values()), found.growth_L, atol=1e-9)
    assert sum(found.shares().values()) == pytest.approx(1.0)


def test_each_part_is_its_own_cause() -> None:
    level = np.zeros(1)
    cases = {
        "drift": {"first_L": np.array([2.0]), "curvature_L": np.array([4.0])},
        "decay": {"weight_decay_L": np.array([0.5])},
        "finite_step": {"curvature_L": np.array([3.0])},
    }
    growth = {"drift": 0.2, "decay": np.log(0.95), "finite_step": 0.5 * 0.01 * 3.0}
    for name, given in cases.items():
        series = [made(0, level, **given), made(1, level + growth[name])]
        parts = attribute(series).parts
        assert parts[name] == pytest.approx(growth[name], abs=1e-12)
        for other in PARTS:
            if other != name:
                assert parts[other] == pytest.approx(0.0, abs=1e-12)


def test_noise_is_taken_out_of_the_second_order_it_was_measured_in() -> None:
    # A batch's own curvature q(U) holds the expected noise part: with pure noise nothing is left to the finite step.
    given = {"noise_curvature_L": np.array([3.0]), "curvature_L": np.array([3.0])}
    parts = attribute([made(0, np.zeros(1), **given), made(1, np.array([0.015]))]).parts
    assert parts["noise_curvature"] == pytest.approx(0.015)
    assert parts["finite_step"] == pytest.approx(0.0, abs=1e-12)


def test_what_is_not_finite_goes_to_the_remainder() -> None:
    bad = made(0, np.zeros(1), first_L=np.array([np.nan]), noise_LL=np.full((1, 1), np.nan))
    found = attribute([bad, made(1, np.array([0.3]))])
    assert found.parts["remainder"] == pytest.approx(0.3)


def test_one_measurement_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        attribute([made(0, np.zeros(1))])


def test_adam_lets_a_tenth_of_its_own_noise_in_at_once() -> None:
    given = {"noise_curvature_L": np.array([3.0]), "noise_LL": np.array([[2.0]])}
    adam = {"optimizer": "adamw", "momentum": 0.9, "optimizer_step": 10_000}
    series = [made(0, np.zeros(1), **given, **adam), made(1, np.zeros(1), **given, **adam)]
    parts, rates = attribute(series).parts, coefficients(series[0])
    assert parts["noise_curvature"] == pytest.approx(0.1 * rates.noise_curvature) == pytest.approx(1.5e-4)
    assert parts["diffusion"] == pytest.approx(-0.1 * rates.ito) == pytest.approx(-1e-4)


def test_weights_that_were_put_back_are_in_the_remainder() -> None:
    given = {"first_L": np.array([2.0])}
    found = attribute([made(step, np.zeros(1), **given) for step in (0, 5, 3, 4)])
    assert found.parts["drift"] == pytest.approx(6 * 0.1 * 2.0)
    assert sum(found.parts.values()) == pytest.approx(0.0)


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adamw"])
def test_a_recorded_run_is_split_and_little_is_left(kind: str) -> None:
    torch = pytest.importorskip("torch")
    from lipadvisor import Advisor

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 8, generator=generator)
    targets = inputs[:, :3].argmax(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters())}]
    momentum = 0.9 if kind == "momentum" else 0.0
    optimizer = torch.optim.AdamW(groups) if kind == "adamw" else torch.optim.SGD(groups, momentum=momentum)
    first, second = (3e-3, 1e-3) if kind == "adamw" else (0.05, 0.02)
    policy = per_group({0: Constant(lr=first, weight_decay=0.1), 1: Constant(lr=second, weight_decay=0.1)})
    with Advisor(model, optimizer, 60, policy=policy, interval=1) as advisor:
        for step in range(60):
            rows = slice(16 * (step % 16), 16 * (step % 16) + 16)
            loss = torch.nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            advisor.step(loss)
        recorded = advisor.trajectory.observations
    found = attribute_recorded(recorded)
    levels = recorded[recorded.layer == "*"].log_norm
    assert found.growth == pytest.approx(levels.iloc[-1] - levels.iloc[0])
    assert sum(found.shares().values()) == pytest.approx(1.0)
    assert found.parts["decay"] == pytest.approx(60 * (np.log1p(-0.1 * first) + np.log1p(-0.1 * second)), rel=1e-6)
    assert abs(found.parts["drift"]) > 0.01
    moved = sum(abs(value) for value in found.parts.values())
    assert abs(found.parts["remainder"]) < 0.02 * moved
    with pytest.raises(ValueError, match="at least 2 observations, got 1"):
        attribute_recorded(recorded[recorded.step == 0])
