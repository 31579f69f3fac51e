"""Compiled models: results as without a probe, no graph break, noise from successive steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipadvisor import Advisor

BACKEND = "aot_eager"
STEPS = 14


def network(conv: bool) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if conv:
            return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)
        )


def wrapped(model: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    run = torch.compile(model, backend=BACKEND)
    return run, run


def outside(model: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    return model, torch.compile(model, backend=BACKEND)


def in_place(model: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    model.compile(backend=BACKEND)
    return model, model


def a_part(model: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    next(m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))).compile(backend=BACKEND)
    return model, model


def none(model: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    return model, model


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def train(
    way: Callable[[nn.Module], tuple[nn.Module, Callable[[Tensor], Tensor]]], conv: bool, advised: bool
) -> tuple[list[Tensor], dict[str, int], Any]:
    model = network(conv)
    watched, run = way(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    advisor = Advisor(watched, optimizer, mode="shadow", interval=2, on_error="raise") if advised else None
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x, y = torch.randn(32, 1, 8, 8, generator=generator), torch.randint(0, 10, (32,), generator=generator)
        loss = nn.functional.cross_entropy(run(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if advisor is not None:
            advisor.step(loss)
    counters = torch._dynamo.utils.counters
    compiled = {"frames": counters["frames"]["ok"], "breaks": sum(counters["graph_break"].values())}
    return [p.detach().clone() for p in model.parameters()], compiled, advisor


@pytest.mark.slow
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("way", [wrapped, outside, in_place, a_part])
def test_a_compiled_model_is_left_as_it_is(way: Any, conv: bool) -> None:
    plain, without, _ = train(way, conv, advised=False)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    advised, with_advisor, advisor = train(way, conv, advised=True)
    if not (conv and way in (outside, in_place)):  # where one step ran uncompiled, to learn the maps' sizes
        assert all(torch.equal(a, b) for a, b in zip(plain, advised, strict=True))
    for a, b in zip(plain, advised, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert with_advisor["breaks"] == without["breaks"] == 0
    assert with_advisor["frames"] <= without["frames"] + 2
    assert advisor.noise.method == "differences"
    names = [layer.name for layer in advisor._probe.layers]
    assert names == [name for name, m in network(conv).named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]

    torch._dynamo.reset()
    _, _, reference = train(none, conv, advised=True)
    one, other = (a.trajectory.observations for a in (advisor, reference))
    last = one.step == STEPS - 1
    assert set(one[last].status) <= {"ok", "gap_limited"}
    for column in ("log_norm", "drift"):
        np.testing.assert_allclose(one[last][column], other[other.step == STEPS - 1][column], rtol=1e-3, atol=1e-5)
    assert np.isfinite(one[last].diffusion).all()
    assert (one[last].diffusion > 0).all()


@pytest.mark.slow
def test_the_real_compiler_is_not_slowed_down() -> None:
    """One more compilation at most (inductor)."""
    model = network(False)
    run = torch.compile(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with Advisor(run, optimizer, mode="shadow", interval=1, on_error="raise") as advisor:
        for k in range(6):
            generator = torch.Generator().manual_seed(k)
            loss = run(torch.randn(32, 1, 8, 8, generator=generator)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            advisor.step(loss)
        assert advisor.noise.method == "differences"
        assert advisor.errors == 0
    assert torch._dynamo.utils.counters["frames"]["ok"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
