"""Two processes that train one model: one answer on both, and it is that of the whole batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gloo_ranks import on_ranks
from per_sample import adam_scale, noise, sample_gradients
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lipadvisor import Advisor, rehearse
from lipadvisor.probe import Probe
from lipadvisor.probe.ranks import ALONE, ranks_of

RANKS, BATCH, STEPS = 2, 16, 8
FIELDS = ("log_norm_L", "first_L", "curvature_L", "change_L", "noise_LL", "noise_curvature_L", "log_norm_after_L")


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(7, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4)).double()


def data(k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(BATCH, 7, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 4, (BATCH,), generator=generator)


def measured_on(rank: int, accumulate: bool) -> list[Any]:
    model = DistributedDataParallel(network())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    probe = Probe(model, optimizer, interval=1)
    records = []
    for k in range(STEPS):
        x, y = (part.chunk(RANKS)[rank] for part in data(k))
        probe.arm(k)
        if accumulate:
            with model.no_sync():
                (nn.functional.cross_entropy(model(x[:4]), y[:4]) / 2).backward()
            (nn.functional.cross_entropy(model(x[4:]), y[4:]) / 2).backward()
        else:
            nn.functional.cross_entropy(model(x), y).backward()
        probe.before_update()
        optimizer.step()
        probe.after_update({0: 1e-3}, {0: 0.01})
        optimizer.zero_grad()
        terms = probe.collect(k)
        assert terms is not None
        records.append({name: torch.tensor(getattr(terms, name)) for name in FIELDS} | {"M": terms.batch_size})
    report = probe.noise
    return [records, report.factor, report.method, len(report.unmatched)]


def advised_on(rank: int) -> dict[str, Any]:
    model = DistributedDataParallel(network().float())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    advisor = Advisor(model, optimizer, 60, max_overhead=0.2, on_error="raise")
    for k in range(60):
        x, y = (part.chunk(RANKS)[rank] for part in data(k))
        loss = nn.functional.cross_entropy(model(x.float()), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        advisor.step(loss)
        if rank == 1 and k % 7 == 0:
            sum(range(200_000))  # the ranks' clocks differ, their choices must not
    frames, refused = advisor.trajectory, ""
    try:
        rehearse(advisor, lambda: loss, 20)
    except ValueError as error:
        refused = str(error)
    advisor.close()
    return {
        "weights": torch.cat([p.detach().flatten() for p in model.parameters()]),
        "steps": sorted(set(map(int, frames.observations.step))),
        "lr": [float(x) for x in frames.decisions.lr_applied],
        "names": sorted(set(frames.observations.layer)),
        "refused": refused,
    }


def all_on(rank: int, folder: str) -> dict[str, Any]:
    return {"whole": measured_on(rank, False), "accumulated": measured_on(rank, True), "advised": advised_on(rank)}


@pytest.fixture(scope="module")
def on_each(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(RANKS, tmp_path_factory.mktemp("parallel"), all_on)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [False, True])
def test_moments_are_those_of_the_global_batch(on_each: list[dict[str, Any]], accumulate: bool) -> None:
    found = [one["accumulated" if accumulate else "whole"] for one in on_each]
    for one, other in zip(found[0][0], found[1][0], strict=True):
        for name in FIELDS:
            assert torch.equal(one[name], other[name]), name
    assert found[0][1:] == [pytest.approx(1 / RANKS), "samples", 0]

    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    probe = Probe(model, optimizer, interval=1)
    for k in range(STEPS):
        old = [layer.weight.detach().clone() for layer in probe.layers]
        shares = sample_gradients(model, nn.functional.cross_entropy, *data(k))
        x, y = data(k)
        probe.arm(k)
        nn.functional.cross_entropy(model(x), y).backward()
        probe.before_update()
        optimizer.step()
        probe.after_update({0: 1e-3}, {0: 0.01})
        optimizer.zero_grad()
        terms = probe.collect(k)
        assert terms is not None
        both = found[0][0][k]
        assert both["M"] == BATCH
        for name in ("log_norm_L", "first_L", "curvature_L", "change_L", "noise_LL", "log_norm_after_L"):
            np.testing.assert_allclose(both[name], getattr(terms, name), rtol=1e-6, atol=1e-12, err_msg=name)
        # the curvature's samples are centred on each rank
        scales: list[Tensor | None] = [adam_scale(optimizer, layer.weight) for layer in probe.layers]
        halves = []
        for half in range(RANKS):
            own = [shares[f"{layer.name}.weight"].chunk(RANKS)[half] / BATCH for layer in probe.layers]
            halves.append(noise(probe, old, own, scales).curvature_L)
        np.testing.assert_allclose(both["noise_curvature_L"], sum(halves), rtol=1e-6)


@pytest.mark.slow
def test_an_advisor_on_every_rank_decides_the_same(on_each: list[dict[str, Any]]) -> None:
    one, other = (found["advised"] for found in on_each)
    assert torch.equal(one["weights"], other["weights"])
    assert one["steps"] == other["steps"]
    assert len(one["steps"]) > 5
    assert one["lr"] == other["lr"]
    assert one["refused"] == f"rehearse(advisor=...) must be of a training in one process, got one in {RANKS}."
    assert one["names"] == ["*", "0", "2", "4"]


def test_a_model_that_is_not_wrapped_is_alone() -> None:
    model: Any = network()
    assert ranks_of(model) is ALONE
    assert ALONE.largest(3, 4) == (3, 4)
    assert ALONE.mean(2.5) == 2.5
