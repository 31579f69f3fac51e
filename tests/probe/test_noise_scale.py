"""The gradient noise scale against the exact covariance of per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lipadvisor.policies import Status
from lipadvisor.probe.noise_scale import NoiseScale, PartGradients, batch_size, part_gradients, split_batch

SAMPLES = 64


def network(kind: str = "linear") -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "linear":
            return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        return nn.Sequential(
            nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
        ).double()


def data(samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 6, generator=generator, dtype=torch.float64)
    return x, x[:, :3].argmax(1)


def per_sample(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    own = {name: p.detach() for name, p in model.named_parameters()}

    def loss(at: dict[str, Tensor], xi: Tensor, yi: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, at, (xi[None],)), yi[None])

    found = vmap(grad(loss), (None, 0, 0))(own, x, y)
    return torch.cat([g.flatten(1) for g in found.values()], 1)


def loss_of(model: nn.Module, reduction: str = "mean") -> Callable[[tuple[Tensor, Tensor]], Tensor]:
    return lambda part: nn.functional.cross_entropy(model(part[0]), part[1], reduction=reduction)


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_parts_of_one_sample_give_the_exact_unbiased_estimates(kind: str, reduction: str) -> None:
    model, (x, y) = network(kind), data(20)
    g_BP = per_sample(model, x, y)
    seen = part_gradients(loss_of(model, reduction), (x, y), list(model.parameters()), parts=20)
    assert seen is not None
    noise = NoiseScale(decay=0.0)
    noise.update(seen)
    trace = float(torch.cov(g_BP.T).trace())
    square = float(g_BP.mean(0).square().sum()) - trace / 20
    assert noise.trace == pytest.approx(trace, rel=1e-10)
    assert noise.square == pytest.approx(square, rel=1e-10)
    assert noise.value == pytest.approx(trace / square, rel=1e-9)


@pytest.mark.parametrize("parts", [2, 4])
def test_few_parts_are_unbiased_and_their_average_is_the_noise_scale_of_the_data(parts: int) -> None:
    model, (x, y) = network(), data()
    g_NP = per_sample(model, x, y)
    mean_P = g_NP.mean(0)
    trace = float((g_NP - mean_P).square().sum() / SAMPLES)
    square = float(mean_P.square().sum())
    generator = torch.Generator().manual_seed(0)
    noise, traces, squares = NoiseScale(decay=0.99), [], []
    for _ in range(600):
        index = torch.randint(0, SAMPLES, (16,), generator=generator)
        seen = part_gradients(loss_of(model), (x[index], y[index]), list(model.parameters()), parts)
        assert seen is not None
        alone = NoiseScale(decay=0.0)
        alone.update(seen)
        traces.append(alone.trace)
        squares.append(alone.square)
        noise.update(seen)
    for found, exact in ((traces, trace), (squares, square)):
        error = np.std(found) / len(found) ** 0.5
        assert abs(np.mean(found) - exact) < 3.5 * error
        assert error < 0.1 * exact
    assert noise.value == pytest.approx(trace / square, rel=0.15)


def test_the_average_starts_at_the_first_visit_and_not_at_zero() -> None:
    seen = PartGradients(4, 16, part_square=3.0, whole_square=1.5)
    once, often = NoiseScale(), NoiseScale()
    once.update(seen)
    for _ in range(50):
        often.update(seen)
    assert once.value == pytest.approx(often.value)
    assert once.value == pytest.approx((1.5 / (1 / 4 - 1 / 16)) / ((16 * 1.5 - 4 * 3.0) / 12))


def test_noise_that_hides_the_gradient_is_said_and_bad_visits_are_left_out() -> None:
    noise = NoiseScale()
    assert np.isnan(noise.value)
    assert noise.status is Status.TOO_FEW_POINTS
    assert noise.update(PartGradients(1, 2, 10.0, 1.0)) is Status.TOO_FEW_POINTS
    assert noise.value == float("inf")
    before = noise.state_dict()
    assert noise.update(PartGradients(1, 2, float("nan"), 1.0)) is Status.NON_FINITE
    assert noise.state_dict() == before
    again = NoiseScale()
    again.load_state_dict(before)
    assert again == noise
    with pytest.raises(ValueError, match="decay"):
        NoiseScale(decay=1.0)


def test_batches_are_cut_whatever_their_structure() -> None:
    x, table = torch.arange(14.0).reshape(7, 2), torch.ones(3)
    assert batch_size({"x": x}) == 7
    assert batch_size("text") == 0
    parts = split_batch({"x": x, "more": (x[:, 0], table), "flag": True}, 3)
    assert [part["x"].shape[0] for part in parts] == [2, 2, 2]
    assert torch.equal(torch.cat([part["more"][0] for part in parts]), x[:6, 0])
    assert all(part["more"][1] is table and part["flag"] for part in parts)
    assert part_gradients(lambda part: part.sum(), torch.ones(1, 2), []) is None
