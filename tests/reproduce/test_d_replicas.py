"""Stacked replicas against torch's own optimizers, norms against dense SVDs, variances against plain loops."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lipadvisor.experiments.reproduce.convnet import conv_net
from lipadvisor.experiments.reproduce.full_batch import full_batch_terms, gradient_variance
from lipadvisor.experiments.reproduce.linear_response import SecondMoment, Update, response_variance
from lipadvisor.experiments.reproduce.norms import bound_covector, input_shapes, log_norms
from lipadvisor.experiments.reproduce.replicas import Replicas
from lipadvisor.experiments.reproduce.sharpness import sharpness
from lipadvisor.experiments.reproduce.training import make_optimizer
from lipadvisor.probe import Probe


def problem(seed: int = 0, conv: bool = False) -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = conv_net((1, 8, 8), 3, width=3) if conv else nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    shape = (24, 1, 8, 8) if conv else (24, 5)
    return model, torch.randn(shape, generator=generator), torch.randint(0, 3, (24,), generator=generator)


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adamw"])
def test_full_batches_follow_the_optimizer(kind: str) -> None:
    model, inputs, targets = problem()
    model = model.double()
    optimizer = make_optimizer(model, kind, 0.05)  # type: ignore[arg-type]

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs.double()), targets).backward()
        optimizer.step()

    for _ in range(3):
        step()
    replicas = Replicas(model, optimizer, 2, inputs, targets, 3, seed=1)
    for _ in range(4):
        replicas.step(24, 0.05)
        step()
    for name, parameter in model.named_parameters():
        for replica in replicas.weights[name]:
            torch.testing.assert_close(replica, parameter.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("conv", [False, True])
def test_log_norms_are_those_of_the_dense_operator(conv: bool) -> None:
    model, inputs, _ = problem(conv=conv)
    optimizer = make_optimizer(model, "sgd", 0.1)
    layers = Probe(model, optimizer).layers
    for layer, shape in zip(layers, input_shapes(model, layers, inputs[:2]), strict=True):
        kernels = layer.weight.detach().double() + 0.02 * torch.randn(
            4, *layer.weight.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64
        )
        operator = layer.operator(shape)
        assert operator is not None
        basis = torch.eye(operator.inputs, dtype=torch.float64)
        dense = [float(torch.linalg.matrix_norm(operator.apply(kernel, basis), 2)) for kernel in kernels]
        np.testing.assert_allclose(log_norms(layer, shape, kernels), np.log(dense), atol=1e-8)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_control_variate_has_mean_zero(kind: str) -> None:
    model, inputs, targets = problem(conv=True)
    optimizer = make_optimizer(model, kind, 0.01)  # type: ignore[arg-type]
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    layers = Probe(model, optimizer).layers
    replicas = Replicas(model, optimizer, 400, inputs, targets, 3, seed=2)
    control = replicas.noise_responses(model, layers, input_shapes(model, layers, inputs[:2]), 6, 0.01)
    z = control.mean(0) / (control.std(0, ddof=1) / np.sqrt(len(control)))
    assert np.abs(z).max() < 4.0
    assert control.std() > 0.0


def test_gradient_variance_is_that_of_a_loop() -> None:
    model, inputs, targets = problem()
    model, inputs = model.double(), inputs.double()
    target = functional.one_hot(targets, 3).double()
    rows = []
    for one, label in zip(inputs, targets, strict=True):
        model.zero_grad()
        functional.cross_entropy(model(one[None]), label[None]).backward()
        rows.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for name, found in gradient_variance(model, inputs, target).items():
        torch.testing.assert_close(found, torch.stack([row[name] for row in rows]).var(0), rtol=1e-9, atol=1e-14)


def test_full_batch_terms_know_the_checkpoint_and_leave_it_alone() -> None:
    model, inputs, targets = problem()
    optimizer = make_optimizer(model, "momentum", 0.1)
    before = copy.deepcopy(model.state_dict())
    terms = full_batch_terms(model, optimizer, inputs, targets, 3, 0.1)
    assert terms.batch_size == 24
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    norms = [float(torch.linalg.matrix_norm(model[i].weight.detach().double(), 2)) for i in (0, 2)]  # type: ignore[index]
    np.testing.assert_allclose(terms.log_norm_L, np.log(norms), rtol=1e-10)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_the_response_is_that_of_dense_matrices(momentum: float, second: bool) -> None:
    """Push each step's noise forward through the linearised update map, entry by entry."""
    model, inputs, targets = problem()
    model, inputs = model.double(), inputs.double()
    target = functional.one_hot(targets, 3).double()
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    sizes = [p.numel() for p in model.parameters()]

    def unflat(flat: Tensor) -> dict[str, Tensor]:
        return {n: part.reshape(s) for n, part, s in zip(names, flat.split(sizes), shapes, strict=True)}

    def losses(flat: Tensor) -> Tensor:
        output = torch.func.functional_call(model, unflat(flat), (inputs,))
        return functional.cross_entropy(output, targets, reduction="none")

    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    covector = bound_covector(model, inputs[:2])
    end = torch.cat(
        [covector.get(n, torch.zeros(s, dtype=torch.float64)).reshape(-1) for n, s in zip(names, shapes, strict=True)]
    )
    generator = torch.Generator().manual_seed(1)
    lr, steps, share = 0.3, 4, 0.5
    path, states = [], []
    for _ in range(steps):
        flat = flat + 0.05 * torch.randn(flat.shape, generator=generator, dtype=torch.float64)
        scale = torch.rand(flat.shape, generator=generator, dtype=torch.float64) + 0.5
        gain, bend = 0.2 * torch.randn(2, len(flat), generator=generator, dtype=torch.float64) * float(second)
        moment = SecondMoment(0.9, unflat(gain), unflat(bend)) if second else None
        path.append(Update(unflat(flat), lr, momentum, share, unflat(scale), moment))
        hessian = torch.func.hessian(lambda at: losses(at).mean())(flat)
        noise = torch.cov(torch.func.jacrev(losses)(flat).T)
        states.append((hessian, noise, scale, gain, bend))
    size = len(flat)
    covariance = torch.zeros(3 * size, 3 * size, dtype=torch.float64)
    one, none = torch.eye(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    for hessian, noise, scale, gain, bend in states:
        first = torch.cat([share * hessian, momentum * one, none], 1)  # m' of (W, m, v)
        later = torch.cat([gain[:, None] * hessian, none, 0.9 * one], 1)  # v'
        weights = torch.cat([one, none, none], 1) - lr * scale[:, None] * first + lr * bend[:, None] * later
        step = torch.cat([weights, first, later])
        push = torch.cat([torch.diag(-lr * share * scale + lr * bend * gain), share * one, torch.diag(gain)])
        covariance = step @ covariance @ step.T + push @ noise @ push.T
    expected = float(end @ covariance[:size, :size] @ end)
    assert response_variance(model, covector, path, inputs, target) == pytest.approx(expected, rel=1e-8)


def test_adam_s_step_answers_to_its_gradient_as_autograd_says() -> None:
    """To first order, through both moments."""
    model, inputs, targets = problem()
    model = model.double()
    optimizer = make_optimizer(model, "adamw", 0.01)
    for _ in range(4):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs.double()), targets).backward()
        optimizer.step()
    states = {name: {k: v.clone() for k, v in optimizer.state[p].items()} for name, p in model.named_parameters()}
    replica = Replicas(model, optimizer, 1, inputs, targets, 3, 0)
    gradients = {name: value[0] for name, value in replica._gradients(torch.arange(24).expand(1, -1), 1).items()}
    (update,) = replica.rehearse(1, 0.01, 0.0)
    assert update.second is not None
    assert update.scales is not None
    for name, gradient in gradients.items():
        state = states[name]

        def step(g: Tensor, state: dict[str, Tensor] = state) -> Tensor:
            first, second = 0.9 * state["exp_avg"] + 0.1 * g, 0.999 * state["exp_avg_sq"] + 0.001 * g**2
            return -0.01 * first / (1 - 0.9**5) / ((second / (1 - 0.999**5)).sqrt() + 1e-8)

        slope = torch.autograd.functional.jacobian(lambda g: step(g).sum(), gradient)
        own = -update.lr * (update.share * update.scales[name] - update.second.gain[name] * update.second.bend[name])
        torch.testing.assert_close(own, slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_sharpness_is_the_largest_eigenvalue(kind: str) -> None:
    model, inputs, targets = problem()
    optimizer = make_optimizer(model, kind, 0.01)  # type: ignore[arg-type]
    for _ in range(5):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    names, shapes = [n for n, _ in model.named_parameters()], [p.shape for p in model.parameters()]
    sizes = [p.numel() for p in model.parameters()]

    def loss(flat: Tensor) -> Tensor:
        parts = {n: part.reshape(s) for n, part, s in zip(names, flat.split(sizes), shapes, strict=True)}
        return functional.cross_entropy(torch.func.functional_call(model, parts, (inputs,)), targets)

    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    hessian = torch.func.hessian(loss)(flat)
    scale = torch.ones_like(flat)
    if kind == "adamw":
        states = [optimizer.state[p] for p in model.parameters()]
        scale = torch.cat([1 / ((s["exp_avg_sq"] / (1 - 0.999**5)).sqrt() + 1e-8).reshape(-1) for s in states])
    eigenvalues = torch.linalg.eigvals(scale[:, None] * hessian).real
    expected = float(eigenvalues[eigenvalues.abs().argmax()])
    assert sharpness(model, optimizer, inputs, targets, 3, iterations=200) == pytest.approx(expected, rel=0.02)
