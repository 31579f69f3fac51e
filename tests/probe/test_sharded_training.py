"""FSDP2: two processes that hold half of each weight measure what one process measures that holds all of them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from gloo_ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lipadvisor.probe import Probe
from lipadvisor.probe.probe import NOISY

RANKS, BATCH, STEPS, MANY = 2, 16, 3, 40
EXACT = ("log_norm_L", "gap_L", "log_gain_L", "first_L", "curvature_L", "change_L", "update_ratio_L", "noise_LL")
SIZES = ("frobenius_ratio_L", "row_ratio_L")
FIELDS = (*EXACT, "noise_curvature_L", "log_norm_after_L", "gap_after_L", "frobenius_L", *SIZES)
RATES = {"sgd": 0.02, "momentum": 0.02, "nesterov": 0.02, "adamw": 1e-3}
CASES = [(kind, name) for kind in ("mlp", "convnet") for name in ("sgd", "momentum", "adamw")]
CASES += [("patches", "momentum"), ("patches", "adamw")]


def network(kind: str) -> nn.Sequential:
    """Rows that no two processes share evenly: 13, 41, 5, 3, and one that leaves a process with none."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "mlp":
            sides = (7, 13, 12, 1, 3)
            parts = [part for n, m in pairwise(sides) for part in (nn.Linear(n, m), nn.Tanh())]
        elif kind == "patches":  # convolutions that repeat a matrix
            parts = [
                nn.Conv2d(2, 5, 2, stride=2), nn.Tanh(), nn.Conv2d(5, 9, 1), nn.Tanh(),
                nn.ConvTranspose2d(9, 3, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(108, 3),
            ]  # fmt: skip
        else:
            parts = [
                nn.Conv2d(2, 5, 3, padding=1), nn.Tanh(), *(nn.Conv2d(5, 5, 3, padding=1) for _ in range(2)), nn.Tanh(),
                nn.Conv2d(5, 6, 3, stride=2, padding=1, padding_mode="circular"), nn.Tanh(),
                nn.ConvTranspose2d(6, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(75, 3),
            ]  # fmt: skip
        return nn.Sequential(*parts).double()


def data(kind: str, k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(k)
    shape = (7,) if kind == "mlp" else (2, 7, 7)
    x = torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (BATCH,), generator=generator)


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=RATES[name])
    momentum = 0.0 if name == "sgd" else 0.9
    return torch.optim.SGD(model.parameters(), lr=RATES[name], momentum=momentum, nesterov=name == "nesterov")


def sharded(model: nn.Sequential, mesh: Any, **options: Any) -> nn.Sequential:
    for part in model:
        if next(part.parameters(), None) is not None:
            fully_shard(part, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def train(
    model: nn.Module, kind: str, name: str, rank: int | None, level: str | None = "full", steps: int = STEPS
) -> list[dict[str, Any]]:
    """Return the measurements of every step; none with no level."""
    optimizer = optimizer_of(name, model)
    probe = None if level is None else Probe(model, optimizer, level, interval=1)
    records = []
    for k in range(steps):
        x, y = data(kind, k) if rank is None else (part.chunk(RANKS)[rank] for part in data(kind, k))
        if probe is not None:
            probe.arm(k)
        nn.functional.cross_entropy(model(x), y).backward()
        if probe is not None:
            probe.before_update()
        optimizer.step()
        if probe is not None:
            probe.after_update({0: RATES[name]}, {0: 0.01 if name == "adamw" else 0.0})
        optimizer.zero_grad()
        if probe is not None:
            terms = probe.collect(k)
            assert terms is not None
            records.append({field: torch.tensor(getattr(terms, field)) for field in FIELDS})
            records[-1]["batch"] = terms.batch_size
            records[-1]["status"] = list(terms.status_L)
            records[-1]["method"] = probe.noise.method if level in NOISY else ""
    return records


def weights(model: nn.Module) -> list[Tensor]:
    return [p.full_tensor().detach() if hasattr(p, "full_tensor") else p.detach() for p in model.parameters()]


def measured_on(rank: int, folder: str) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (RANKS,))
    found: dict[str, Any] = {}
    for kind, name in CASES:
        model = sharded(network(kind), mesh, reshard_after_forward=name != "sgd")
        records = train(model, kind, name, rank)
        plain = sharded(network(kind), mesh)
        train(plain, kind, name, rank, level=None)
        found[f"{kind} {name}"] = [records, weights(model), weights(plain)]
    for level in ("norms", "drift", "noise"):
        found[level] = train(sharded(network("mlp"), mesh), "mlp", "adamw", rank, level)
    torch.manual_seed(5)
    wide = sharded(
        nn.Sequential(nn.Linear(7, 41), nn.Tanh(), nn.Linear(41, 40), nn.Tanh(), nn.Linear(40, 3)).double(), mesh
    )
    found["wide"] = train(wide, "mlp", "adamw", rank, steps=8)
    found["many"] = train(sharded(network("convnet"), mesh), "convnet", "momentum", rank, steps=MANY)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(RANKS, tmp_path_factory.mktemp("sharded"), measured_on)


pytestmark = pytest.mark.slow


LOOSE = {"change_L": 1e-8, "update_ratio_L": 0.05}  # a prediction in nats; a bound, of few channels 5 % low


def agree(one: dict[str, Any], other: dict[str, Any], fields: tuple[str, ...], rtol: float) -> None:
    for name in fields:
        ours, theirs = one[name].numpy(), other[name].numpy()
        largest = float(np.abs(np.nan_to_num(theirs)).max(initial=0.0))
        atol = max(0.1 * rtol * largest, LOOSE["change_L"] if name == "change_L" else 0.0)
        np.testing.assert_allclose(ours, theirs, rtol=max(rtol, LOOSE.get(name, 0.0)), atol=atol, err_msg=name)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_sharded_training_is_measured_as_one_process_measures_it(found: Any, kind: str, name: str) -> None:
    records = found[0][f"{kind} {name}"][0]
    alone = train(network(kind), kind, name, None)
    assert len(records) == len(alone) == STEPS
    for one, other in zip(records, alone, strict=True):
        assert one["batch"] == BATCH
        assert one["status"] == other["status"]
        assert one["method"] == "samples"
        agree(one, other, (*EXACT, "log_norm_after_L", "gap_after_L", "frobenius_L"), 1e-6)
        if kind == "mlp":  # of a convolution it is an estimate
            agree(one, other, ("noise_curvature_L",), 1e-6)


def test_the_ranks_have_one_answer_to_the_last_bit(found: Any) -> None:
    for key in (*(f"{kind} {name}" for kind, name in CASES), "wide", "many", "norms", "drift", "noise"):
        ours, theirs = (one[key][0] if " " in key else one[key] for one in found)
        for one, other in zip(ours, theirs, strict=True):
            for field in FIELDS:
                assert torch.equal(one[field].nan_to_num(), other[field].nan_to_num()), (key, field)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_measuring_changes_no_bit_of_the_training(found: Any, kind: str, name: str) -> None:
    for rank in range(RANKS):
        _, probed, plain = found[rank][f"{kind} {name}"]
        assert all(torch.equal(one, other) for one, other in zip(probed, plain, strict=True))


@pytest.mark.parametrize("level", ["norms", "drift", "noise"])
def test_lower_levels_give_their_share_of_it(found: Any, level: str) -> None:
    fields = ("log_norm_L", "gap_L", "frobenius_L", "log_norm_after_L", "log_gain_L")
    fields += () if level == "norms" else ("first_L", "curvature_L", "change_L", "update_ratio_L", *SIZES)
    fields += ("noise_LL",) if level == "noise" else ()
    for one, full in zip(found[0][level], found[0]["mlp adamw"][0], strict=True):
        agree(one, full, fields, 1e-9)


def test_matrices_that_are_not_decomposed_whole_follow_too(found: Any) -> None:
    torch.manual_seed(5)
    alone = nn.Sequential(nn.Linear(7, 41), nn.Tanh(), nn.Linear(41, 40), nn.Tanh(), nn.Linear(40, 3)).double()
    records = train(alone, "mlp", "adamw", None, steps=8)
    for one, other in list(zip(found[0]["wide"], records, strict=True))[4:]:  # other start vectors: not at once
        agree(one, other, ("log_norm_L", "log_norm_after_L", "frobenius_L"), 1e-6)
        agree(one, other, ("first_L", "noise_LL", "curvature_L", "noise_curvature_L", "change_L"), 2e-3)


def test_the_curvature_of_a_convolutions_noise_has_the_right_mean(found: Any) -> None:
    alone = train(network("convnet"), "convnet", "momentum", None, steps=MANY)
    ours, theirs = (
        torch.stack([one["noise_curvature_L"] / one["noise_LL"].diagonal() for one in records])
        for records in (found[0]["many"], alone)
    )
    error = (ours.var(0) / MANY + theirs.var(0) / MANY).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4.0 * error + 1e-9).all()
