"""The largest eigenvalue of the Hessian along a training, against the dense Hessian in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from lipadvisor.policies import Status
from lipadvisor.probe.sharpness import LossHessian, Sharpness
from lipadvisor.probe.untouched import untouched


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def data(seed: int = 0, samples: int = 24, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 8, generator=generator, dtype=torch.float64)
    return x.to(dtype), (x[:, :3] + 0.3 * torch.randn(samples, 3, generator=generator)).argmax(1)


def dense_hessian(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    parameters = dict(model.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split(sizes)
        own = {name: part.reshape(p.shape) for (name, p), part in zip(parameters.items(), parts, strict=True)}
        return nn.functional.cross_entropy(functional_call(model, own, (x,)), y)

    flat = torch.cat([p.detach().reshape(-1) for p in parameters.values()])
    return torch.autograd.functional.hessian(loss, flat)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    for step in range(steps):
        x, y = data()
        yield step, x, y
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("seed", range(4))
def test_products_are_those_of_the_dense_hessian(seed: int) -> None:
    model, (x, y) = network(seed), data(seed)
    hessian = LossHessian(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    dense = dense_hessian(model, x, y)
    vector = torch.randn(len(dense), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(hessian.product(vector), dense @ vector, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_a_cold_visit_finds_the_largest_eigenvalue(seed: int) -> None:
    model, (x, y) = network(seed), data(seed)
    hessian = LossHessian(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    found = Sharpness(seed=seed).measure(hessian)
    exact = float(torch.linalg.eigvalsh(dense_hessian(model, x, y))[-1])
    assert found.status is Status.OK
    assert found.residual <= 1e-3
    assert found.value == pytest.approx(exact, rel=1e-3)
    assert found.value <= exact * (1 + 1e-9)  # a Ritz value is a bound
    assert found.products <= 40


@pytest.mark.parametrize("products", [2, 3])
def test_warm_visits_follow_it_along_a_training(products: int) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    tracked, errors, range_of = Sharpness(products=products), [], []
    for step, x, y in train(model, optimizer, 120):
        found = tracked.measure(LossHessian(nn.functional.cross_entropy(model(x), y), list(model.parameters())))
        assert found.products <= (40 if step == 0 else products)
        if step % 5 == 0:
            exact = float(torch.linalg.eigvalsh(dense_hessian(model, x, y))[-1])
            assert found.value <= exact * (1 + 1e-9)
            errors.append(1 - found.value / exact)
            range_of.append(exact)
    assert max(range_of) > 2 * min(range_of)  # there was something to follow
    assert np.quantile(errors, 0.9) < (1e-2 if products == 2 else 1e-3)
    assert max(errors) < (0.2 if products == 2 else 0.02)  # where it doubles within a few steps


def test_preconditioned_is_the_largest_eigenvalue_of_p_times_h() -> None:
    model, (x, y) = network(), data()
    hessian = LossHessian(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    dense = dense_hessian(model, x, y)
    scale = torch.rand(len(dense), generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 100 + 0.1
    found = Sharpness().measure(hessian, scale)
    exact = float(torch.linalg.eigvals(scale[:, None] * dense).real.max())
    assert found.value == pytest.approx(exact, rel=1e-3)


def test_negative_curvature_of_larger_size_is_not_taken_for_sharpness() -> None:
    weight = nn.Parameter(torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64))
    curves = torch.tensor([-9.0, 2.0, 1.0], dtype=torch.float64)
    found = Sharpness().measure(LossHessian(0.5 * (curves * weight**2).sum(), [weight]))
    assert found.value == pytest.approx(2.0, rel=1e-6)


def test_a_loss_without_curvature_and_one_that_is_not_finite() -> None:
    weight, idle = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    assert Sharpness().measure(LossHessian(2.0 * weight.sum(), [weight, idle])).value == 0.0
    tracked = Sharpness()
    assert tracked.measure(LossHessian((weight**2).sum() * float("nan"), [weight])).status is Status.NON_FINITE
    assert tracked.measure(LossHessian((weight**2).sum(), [weight, idle])).value == pytest.approx(2.0)


def test_bad_arguments_are_refused() -> None:
    weight = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"Sharpness\(products=...\) must be at least 2, got 1"):
        Sharpness(products=1)
    with pytest.raises(ValueError, match="scalar"):
        LossHessian(weight**2, [weight])
    with pytest.raises(ValueError, match="without a graph"):
        LossHessian(torch.ones(()), [weight])


def test_a_resumed_tracker_goes_on_the_same() -> None:
    model, (x, y) = network(), data()
    hessian = LossHessian(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    tracked, again = Sharpness(cold_products=4), Sharpness()
    tracked.measure(hessian)
    again.load_state_dict(tracked.state_dict())
    assert tracked.measure(hessian) == again.measure(hessian)


def test_single_precision_is_enough() -> None:
    model = network(dtype=torch.float32)
    x, y = data(dtype=torch.float32)
    found = Sharpness().measure(LossHessian(nn.functional.cross_entropy(model(x), y), list(model.parameters())))
    exact = float(torch.linalg.eigvalsh(dense_hessian(copy.deepcopy(model).double(), x.double(), y))[-1])
    assert found.value == pytest.approx(exact, rel=1e-3)


def test_nothing_of_the_model_is_touched() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3))
    model[0].weight.requires_grad_(False)
    x, y = data(dtype=torch.float32)
    nn.functional.cross_entropy(model(x), y).backward()
    held = {name: (value, value.clone(), value._version) for name, value in model.state_dict(keep_vars=True).items()}
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    states = torch.get_rng_state(), np.random.get_state()[1]
    with untouched(model):
        np.random.rand()
        loss = nn.functional.cross_entropy(model(x), y)
        parameters = [p for p in model.parameters() if p.requires_grad]
        Sharpness().measure(LossHessian(loss, parameters))
    now = model.state_dict(keep_vars=True)
    for name, (tensor, value, version) in held.items():
        assert now[name] is tensor
        assert torch.equal(tensor, value)
        assert tensor._version == version
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True, True]
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])
    assert model.training
    assert int(model[1].num_batches_tracked) == 1


class Once(torch.autograd.Function):
    """Twice the input, with a backward that cannot be differentiated: torch leaves it out in silence."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @once_differentiable
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return 2 * grad


def test_an_operation_that_would_drop_out_of_the_second_derivative_is_noticed() -> None:
    model, (x, y) = network(), data()
    loss = nn.functional.cross_entropy(Once.apply(model(x)), y)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        LossHessian(loss, list(model.parameters()))
