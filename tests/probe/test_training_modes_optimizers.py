"""Updates that are really applied: weight decay of both kinds, clipping, Muon, and optimizers nobody knows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipadvisor.probe import Probe
from lipadvisor.terms import Terms

BATCH = 16
Make = Callable[[nn.Module], torch.optim.Optimizer]


class Signs(torch.optim.Optimizer):
    """An update that no table knows: signs of the gradient's running sum."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        super().__init__(model.parameters(), {"lr": lr})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                total = self.state[p].setdefault("total", torch.zeros_like(p))
                total.mul_(0.5).add_(p.grad)
                p.add_(torch.tanh(30 * total), alpha=-group["lr"])


def muon(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Muon(model.parameters(), lr=0.01, weight_decay=0.1)


MAKERS: dict[str, tuple[Make, float]] = {  # and the decoupled decay in force
    "sgd-l2": (lambda m: torch.optim.SGD(m.parameters(), lr=0.05, weight_decay=0.3, momentum=0.9), 0.0),
    "adam-l2": (lambda m: torch.optim.Adam(m.parameters(), lr=1e-2, weight_decay=0.3), 0.0),
    "adamw": (lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.3), 0.3),
    "amsgrad": (lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.0, amsgrad=True), 0.0),
    "rmsprop": (lambda m: torch.optim.RMSprop(m.parameters(), lr=1e-3), 0.0),
    "muon": (muon, 0.1),
    "signs": (lambda m: Signs(m, 1e-3), 0.0),
}


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(9, 12, bias=False), nn.Tanh(), nn.Linear(12, 11, bias=False), nn.Tanh(),
            nn.Linear(11, 4, bias=False),
        )  # fmt: skip


def data(k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(BATCH, 9, generator=generator, dtype=torch.float64)
    return x.to(dtype), (x @ torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(9, 4)).argmax(1)


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, probe: Probe | None, k: int, decay: float, limit: float | None
) -> Terms | None:
    x, y = data(k, next(model.parameters()).dtype)
    lr = optimizer.param_groups[0]["lr"]
    if probe is not None:
        probe.arm(k)
    nn.functional.cross_entropy(model(x), y).backward()
    if limit is not None:
        nn.utils.clip_grad_norm_(model.parameters(), limit)
    if probe is not None:
        probe.before_update()
    optimizer.step()
    if probe is not None:
        probe.after_update({0: lr}, {0: decay})
    optimizer.zero_grad()
    return None if probe is None else probe.collect(k)


@pytest.mark.parametrize("limit", [None, 0.02])
@pytest.mark.parametrize("name", MAKERS)
def test_the_update_is_the_one_that_is_applied(name: str, limit: float | None) -> None:
    make, decay = MAKERS[name]
    model = network()
    optimizer = make(model)
    lr = optimizer.param_groups[0]["lr"]
    probe = Probe(model, optimizer, interval=1)
    for k in range(6):
        twin = copy.deepcopy(model).double()
        helper = make(twin)
        if k:
            helper.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        old = [layer.weight.detach().double() for layer in probe.layers]
        terms = step(model, optimizer, probe, k, decay, limit)
        step(twin, helper, None, k, decay, limit)
    assert terms is not None
    for index, (layer, W) in enumerate(zip(probe.layers, old, strict=True)):
        U = (twin.get_submodule(layer.name).weight.detach() - (1 - lr * decay) * W) / lr
        left, s, right = torch.linalg.svd(W, full_matrices=False)
        size = float(torch.linalg.svdvals(U)[0] / s[0])
        first = float(left[:, 0] @ U @ right[0] / s[0])
        # Muon's iterations run in bfloat16, whatever the weights
        rel = 2e-2 if name == "muon" else 1e-3
        assert terms.first_L[index] == pytest.approx(first, rel=rel, abs=rel * size)
        assert terms.update_ratio_L[index] == pytest.approx(size, rel=0.15)
        now = torch.linalg.svdvals(layer.weight.detach().double())[0]
        assert terms.change_L[index] == pytest.approx(float((now / s[0]).log()), abs=2e-6)


@pytest.mark.parametrize("name", ["rmsprop", "muon", "signs"])
def test_noise_of_an_unknown_optimizer_is_that_of_its_updates(name: str) -> None:
    """Against the updates that other batches would have made from the same checkpoint."""
    make, decay = MAKERS[name]
    model = network().double()
    optimizer = make(model)
    probe = Probe(model, optimizer, interval=1)
    for k in range(40):
        step(model, optimizer, probe, k, decay, None)
    lr = optimizer.param_groups[0]["lr"] = 1e-7  # from here on the weights stay where they are
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    draws = []
    for k in range(1000, 1300):
        model.load_state_dict(weights)
        optimizer.load_state_dict(copy.deepcopy(state))
        step(model, optimizer, None, k, decay, None)
        row = []
        for layer in probe.layers:
            W = weights[f"{layer.name}.weight"].double()
            left, s, right = torch.linalg.svd(W, full_matrices=False)
            U = (layer.weight.detach().double() - (1 - lr * decay) * W) / lr
            row.append(float(left[:, 0] @ U @ right[0] / s[0]))
        draws.append(row)
    truth_L = np.var(np.array(draws), axis=0)
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    measured = []
    for k in range(2000, 2150):
        terms = step(model, optimizer, probe, k, decay, None)
        assert terms is not None
        measured.append(np.diag(terms.noise_LL))
    assert probe.noise.method == "updates"
    assert terms.batch_size == BATCH
    # a memory of b carries a part of one step's noise into the next one's: the difference sees 1 / (1 + b) of it
    ratio = np.mean(measured, axis=0) / truth_L
    assert (ratio > 0.3).all(), ratio
    assert (ratio < 2.0).all(), ratio


def test_known_classes_do_not_depend_on_their_updates() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=0.3)
    probe = Probe(model, optimizer, interval=1)
    for k in range(6):
        step(model, optimizer, probe, k, 0.0, None)
    assert probe.noise.method == "samples"


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_layer_that_is_never_used_leaves_the_others_their_preconditioner(amsgrad: bool) -> None:
    found = []
    for idle in (False, True):
        model = network().double()
        if idle:
            model.add_module("idle", nn.Linear(12, 11, bias=False).double())
            model.forward = nn.Sequential(*list(model)[:-1]).forward
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, amsgrad=amsgrad)
        probe = Probe(model, optimizer, interval=1)
        for k in range(3):
            terms = step(model, optimizer, probe, k, 0.0, None)
        assert terms is not None
        found.append(terms)
        if idle:
            assert terms.noise_LL[3, 3] == terms.noise_curvature_L[3] == terms.first_L[3] == 0.0
    alone, beside = found
    np.testing.assert_allclose(beside.noise_LL[:3, :3], alone.noise_LL, rtol=1e-9)
    np.testing.assert_allclose(beside.noise_curvature_L[:3], alone.noise_curvature_L, rtol=1e-9)


def truth(options: dict[str, Any], lr: float) -> list[float]:
    """``u' U v / s`` of each layer in the third step, from the difference of weights in float64."""
    model = network().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, **options)
    for k in range(3):
        before = [p.detach().clone() for p in model.parameters()]
        step(model, optimizer, None, k, 0.0, None)
    found = []
    for W, p in zip(before, model.parameters(), strict=True):
        U, s, Vh = torch.linalg.svd(W)
        found.append(float(U[:, 0] @ ((p.detach() - W) / lr) @ Vh[0] / s[0]))
    return found


@pytest.mark.parametrize("loop", ["foreach", "fused", None])
@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.9, "nesterov": True}])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_every_kind_of_sgd_tells_of_steps_that_are_lost_in_rounding(
    loop: str | None, momentum: dict[str, Any], maximize: bool, weight_decay: float
) -> None:
    options = {"maximize": maximize, "weight_decay": weight_decay, "foreach": False, **momentum}
    if loop is not None:
        options |= {"foreach": loop == "foreach", loop: True}
    lr, model = 1e-7, network()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, **options)
    probe = Probe(model, optimizer, interval=1)
    for k in range(3):
        terms = step(model, optimizer, probe, k, 0.0, None)
    assert terms is not None
    np.testing.assert_allclose(terms.first_L, truth(options, lr), rtol=1e-4)
