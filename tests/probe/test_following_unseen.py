"""Sizes of maps that no hook of this process sees: inside of compiled models, and on the other ranks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gloo_ranks import on_ranks
from layer_twins import dense
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lipadvisor import Advisor
from lipadvisor.probe import Probe
from lipadvisor.probe.following import SEEN
from lipadvisor.probe.inside import IN_A_ROW, LOOKS
from lipadvisor.terms import Terms

BACKEND = "aot_eager"


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        return nn.Sequential(
            first, nn.Tanh(), second, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )


def batch(side: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 2, side, side, generator=generator), torch.randint(0, 3, (8,), generator=generator)


def train(run: Any, probe: Probe, optimizer: torch.optim.Optimizer, sides: list[int], start: int = 0) -> list[Terms]:
    records = []
    for step, side in enumerate(sides, start=start):
        x, y = batch(side, step)
        probe.arm(step)
        nn.functional.cross_entropy(run(x), y).backward()
        probe.before_update()
        optimizer.step()
        probe.after_update({0: 0.01}, {0: 0.0})
        optimizer.zero_grad()
        terms = probe.collect(step)
        assert terms is not None
        records.append(terms)
    return records


def exact_log_norms(probe: Probe) -> list[float]:
    matrices = [dense(probe, index, layer.value().double()) for index, layer in enumerate(probe.layers)]
    return [float(torch.linalg.matrix_norm(matrix, 2).log()) for matrix in matrices]


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("way", ["whole", "part"])
def test_a_new_size_inside_of_a_compiled_model_is_followed(way: str, fresh_compiler: None) -> None:
    """The weights are those of a twin without a probe, and nothing is compiled but for the new size."""
    sides = [8] * 4 + [14] * (IN_A_ROW + SEEN + 4)
    weights, frames = [], []
    for measured in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = network()
        if way == "part":
            model[2].compile(backend=BACKEND)
        run = torch.compile(model, backend=BACKEND) if way == "whole" else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        if measured:
            probe = Probe(run, optimizer, interval=1, example_input=batch(8, 0)[0])
            records = train(run, probe, optimizer, sides)
        else:
            for step, side in enumerate(sides):
                x, y = batch(side, step)
                nn.functional.cross_entropy(run(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
        weights.append([p.detach().clone() for p in model.parameters()])
        frames.append(torch._dynamo.utils.counters["frames"]["ok"])
        assert not torch._dynamo.utils.counters["graph_break"]
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
    assert frames[1] <= frames[0] + 2
    taken = [record.input_sizes[0][1] for record in records].index(14)
    assert 4 + SEEN <= taken <= 4 + IN_A_ROW + SEEN + 1
    assert records[taken].status_L[:2] == ("not_converged", "not_converged")
    assert "not_converged" not in records[-1].status_L
    assert records[-1].input_sizes == ((2, 14, 14), (4, 14, 14), ())
    np.testing.assert_allclose(records[-1].log_norm_after_L, exact_log_norms(probe), atol=1e-4)


def test_a_look_comes_before_what_others_do_at_the_models_entrance(fresh_compiler: None) -> None:
    """``fully_shard`` gathers weights there. A look in its midst let go of them, and the pass that followed failed."""
    model, entered = network(), list[bool]()
    model[2].compile(backend="eager")
    probe = Probe(model, optimizer := torch.optim.SGD(model.parameters(), lr=0.01), level="norms", interval=1)
    probe.trace(batch(8, 0)[0])
    model.register_forward_pre_hook(lambda *_: entered.append(torch.is_grad_enabled()), prepend=True)
    for step in range(IN_A_ROW + 2):
        entered.clear()
        train(model, probe, optimizer, [10], step)
        if len(entered) > 1:
            break
    assert entered == [False, True]


def test_inputs_of_any_size_are_looked_at_a_few_times_only(fresh_compiler: None) -> None:
    model = network()
    run = torch.compile(model, backend="eager", dynamic=True)
    probe = Probe(run, optimizer := torch.optim.SGD(model.parameters(), lr=0.01), level="norms", interval=1)
    inside = probe.following.inside
    assert inside is not None
    train(run, probe, optimizer, [side for side in range(6, 6 + 2 * LOOKS) for _ in range(2)])
    assert len(inside.known) <= 2
    assert probe.following.restarts == 0


def test_an_advisor_of_a_resumed_compiled_model_looks_before_it_believes(fresh_compiler: None) -> None:
    model = network()
    run = torch.compile(model, backend="eager", dynamic=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probe = Probe(run, optimizer, level="norms", interval=1, example_input=batch(8, 0)[0])
    train(run, probe, optimizer, [8] * 3)
    resumed = Probe(run, optimizer, level="norms", interval=1)
    resumed.load_state_dict(probe.state_dict())
    records = train(run, resumed, optimizer, [12] * (SEEN + 4), start=3)
    assert records[0].input_sizes[0] == (2, 8, 8)
    assert records[-1].input_sizes[0] == (2, 12, 12)


def followed(rank: int) -> list[Any]:
    """All ranks come to see one size, after different ones in the first step."""
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probe = Probe(model, optimizer, level="drift", interval=1)
    records = train(model, probe, optimizer, [(8, 10)[rank], 8, 8, *[14] * (SEEN + 3)])
    log_norms = [record.log_norm_after_L.tolist() for record in records]
    return [[record.input_sizes[0] for record in records], log_norms, probe.following.restarts, exact_log_norms(probe)]


def apart(rank: int) -> list[Any]:
    """Each rank sees a size of its own."""
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Advisor(model, optimizer, mode="shadow", interval=1, on_error="raise") as advisor:
        for step in range(SEEN + 3):
            x, y = batch((8, 14)[rank] if step else 8, 2 * step + rank)
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            advisor.step(loss)
        found = advisor.trajectory.observations
        return [advisor.input_sizes, found["log_norm"].tolist(), found["input_size"].tolist()]


def on_a_rank(rank: int, folder: str) -> list[Any]:
    logging.disable(logging.CRITICAL)
    return [followed(rank), apart(rank)]


@pytest.mark.slow
def test_ranks_follow_a_size_that_all_of_them_see_and_no_other(tmp_path: Path) -> None:
    one, other = on_ranks(2, tmp_path, on_a_rank)
    assert one == other
    (sizes, log_norms, restarts, exact), (stayed, _, column) = one
    assert sizes == [(2, 10, 10)] * (3 + SEEN) + [(2, 14, 14)] * 3  # it began with the largest that any of them saw
    assert restarts == 2
    np.testing.assert_allclose(log_norms[-1], exact, atol=1e-4)
    assert stayed == {"0": (2, 8, 8), "2": (4, 8, 8)}
    assert set(column) == {"2x8x8", "4x8x8", ""}
