"""Passes through the model that are not the step's own: what was zeroed, asked for by hand, or transformed."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from layer_twins import build
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from lipadvisor import Advisor
from lipadvisor.probe import Probe
from lipadvisor.terms import Terms

Aside = Callable[[nn.Module, torch.optim.Optimizer, Tensor], None]


def matrices() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))


def maps() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))


def train(make: Callable[[], nn.Module], aside: Aside | None, adam: bool = False) -> tuple[Terms, Probe]:
    model = build(make)
    kind = torch.optim.AdamW if adam else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=0.01)
    probe = Probe(model, optimizer, interval=1)
    data = torch.Generator().manual_seed(1)
    for step in range(5):
        x = torch.randn(12, 6, dtype=torch.float64, generator=data)
        probe.arm(step)
        if aside is not None:
            aside(model, optimizer, x)
        loss(model, x).backward()
        probe.before_update()
        optimizer.step()
        probe.after_update({0: 0.01}, {0: 0.01 if adam else 0.0})
        terms = probe.collect(step)
        optimizer.zero_grad()
    assert terms is not None
    return terms, probe


def monitored(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    for one in x[:3]:
        torch.autograd.grad(loss(model, one[None]), list(model.parameters()))


def generated(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    loss(model, x[:7] * 2.0).backward()
    optimizer.zero_grad()


def filled(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    for part in x[:6].chunk(2):
        loss(model, part * 2.0).backward()
    optimizer.zero_grad(set_to_none=False)


def transformed(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    values = {name: p.detach() for name, p in model.named_parameters()}

    def one(values: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(model, values, (row[None],)).square().sum()

    vmap(grad(one), (None, 0))(values, x)
    jvp(lambda y: functional_call(model, values, (y,)), (x,), (x,))


@pytest.mark.parametrize("make", [matrices, maps])
@pytest.mark.parametrize("aside", [monitored, generated, filled, transformed])
def test_passes_that_leave_no_gradient_are_no_part_of_the_step(make: Callable[[], nn.Module], aside: Aside) -> None:
    adam = aside is filled
    (plain, _), (seen, probe) = train(make, None, adam), train(make, aside, adam)
    for name in ("log_norm_L", "first_L", "noise_LL", "noise_curvature_L"):
        np.testing.assert_allclose(getattr(seen, name), getattr(plain, name), rtol=1e-9, atol=1e-13, err_msg=name)
    assert probe.noise.method == "samples"
    assert probe.noise.factor == 1.0
    assert not probe.noise.unmatched
    assert seen.batch_size == plain.batch_size == 12


@pytest.mark.parametrize("zero", [True, False])
def test_the_second_pass_of_sam_is_the_step(zero: bool) -> None:
    def train(twin: bool) -> Terms:
        model = build(matrices)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        probe = Probe(model, optimizer, interval=1)
        data = torch.Generator().manual_seed(1)
        for step in range(4):
            x = torch.randn(12, 6, dtype=torch.float64, generator=data)
            probe.arm(step)
            first = copy.deepcopy(model) if twin else model
            loss(first, x).backward()
            climb = [0.05 * p.grad for p in first.parameters() if p.grad is not None]
            optimizer.zero_grad(set_to_none=zero)
            with torch.no_grad():
                torch._foreach_add_(list(model.parameters()), climb)
            loss(model, x).backward()
            with torch.no_grad():
                torch._foreach_sub_(list(model.parameters()), climb)
            probe.before_update()
            optimizer.step()
            probe.after_update({0: 0.05}, {0: 0.0})
            terms = probe.collect(step)
            optimizer.zero_grad(set_to_none=zero)
        assert terms is not None
        assert probe.noise.factor == 1.0
        return terms

    one, two = train(True), train(False)
    assert two.batch_size == 12
    np.testing.assert_allclose(two.noise_LL, one.noise_LL, rtol=1e-9)
    np.testing.assert_allclose(two.noise_curvature_L, one.noise_curvature_L, rtol=1e-9)


def test_a_layer_that_is_frozen_for_a_while_is_at_rest_and_takes_no_blame() -> None:
    model = build(matrices)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    probe = Probe(model, optimizer, interval=1)
    found = []
    for step in range(6):
        model[0].requires_grad_(step not in (2, 3))
        x = torch.randn(12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        probe.arm(step)
        loss(model, x).backward()
        probe.before_update()
        optimizer.step()
        probe.after_update({0: 0.05}, {0: 0.0})
        found.append(probe.collect(step))
        optimizer.zero_grad()
    assert not probe.noise.unmatched
    for step, terms in enumerate(found):
        assert terms is not None
        assert (terms.noise_LL[0, 0] > 0.0) == (terms.first_L[0] != 0.0) == (step not in (2, 3))
        assert terms.noise_LL[1, 1] > 0.0


def test_a_first_pass_within_a_transformation_starts_nothing() -> None:
    model = build(matrices)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with Advisor(model, optimizer, mode="shadow", interval=1, on_error="raise") as advisor:
        for step in range(3):
            x = torch.randn(12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
            transformed(model, optimizer, x)
            value = loss(model, x)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            assert advisor.step(value) is not None
        assert advisor.measurements == 3


@pytest.mark.parametrize("map_", ["matrix_exp", "cayley", "householder"])
def test_an_orthogonal_weight_leaves_the_others_their_samples(map_: str, caplog: pytest.LogCaptureFixture) -> None:
    def make() -> nn.Module:
        wrapped = nn.utils.parametrizations.orthogonal(nn.Linear(6, 6), orthogonal_map=map_)
        return nn.Sequential(wrapped, nn.Tanh(), nn.Linear(6, 3))

    with torch.random.fork_rng(), caplog.at_level(logging.WARNING):
        torch.manual_seed(0)
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        probe = Probe(model, optimizer, interval=1)
        for step in range(6):
            probe.arm(step)
            loss(model, torch.randn(12, 6)).backward()
            probe.before_update()
            optimizer.step()
            probe.after_update({0: 0.05}, {0: 0.0})
            probe.collect(step)
            optimizer.zero_grad()
    assert probe.noise.method == "samples"
    assert not probe.noise.unmatched
    assert not caplog.records
