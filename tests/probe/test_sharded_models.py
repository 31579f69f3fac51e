"""FSDP2 on models of all kinds: what is measured, what is listed instead, and that nothing whole is ever gathered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from gloo_ranks import on_ranks
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.utils import parametrizations

from lipadvisor.probe import Probe
from lipadvisor.spectra import sharded as spread

RANKS, BATCH, STEPS = 2, 12, 3
FIELDS = ("log_norm_L", "log_gain_L", "first_L", "curvature_L", "noise_LL", "log_norm_after_L", "frobenius_L")
pytestmark = pytest.mark.slow


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.behind = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(torch.tanh(self.up(self.behind(x))))  # type: ignore[no-any-return]


class Language(nn.Module):
    """A table that is also the head, attention, and rows that no two processes share evenly."""

    def __init__(self, rows: int = 11, width: int = 6) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(2)])
        self.head = nn.Linear(width, rows, bias=False)
        self.head.weight = self.table.weight

    def forward(self, index: Tensor) -> Tensor:
        x = self.table(index)
        for block in self.blocks:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


class Odd(nn.Module):
    """A bag of rows, a matrix that is nobody's, and a sequence that is convolved."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(11, 6, mode="mean"), nn.Linear(18, 55)
        self.mix, self.along = nn.Parameter(torch.randn(5, 6) / 2), nn.Conv1d(1, 3, 3, padding=1)

    def forward(self, index: Tensor) -> Tensor:
        x = torch.tanh(self.bag(index) @ self.mix.T)
        x = nn.functional.pad(self.along(x.unsqueeze(1)), (0, 1)).flatten(1)
        return self.out(torch.tanh(x)).unflatten(1, (5, 11))  # type: ignore[no-any-return]


def odd() -> Odd:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return Odd().double()


def language() -> Language:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Language().double()


def spread_language(mesh: Any, **options: Any) -> Language:
    model = language()
    for block in model.blocks:
        fully_shard(block, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def train(
    model: nn.Module, rank: int | None, adam: bool = True, rows: tuple[int, int] = (6, 6), clip: float = 0.0
) -> list[dict[str, Any]]:
    """Return every step's measurement; each of two processes averages over its rows, and they average the gradients."""
    made = torch.optim.AdamW(model.parameters(), 1e-3) if adam else torch.optim.SGD(model.parameters(), 0.01)
    probe = Probe(model, made, interval=1, parameters=True)
    records = []
    for k in range(STEPS):
        index = torch.randint(0, 11, (BATCH, 6), generator=torch.Generator().manual_seed(k))
        index = index if rank is None else index.split(rows)[rank]
        probe.arm(k)
        each = nn.functional.cross_entropy(model(index[:, :-1]).transpose(1, 2), index[:, 1:], reduction="none")
        (each.mean() if rank is not None else sum(part.mean() for part in each.split(rows)) / 2).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        probe.before_update()
        made.step()
        probe.after_update({0: 1e-3 if adam else 0.01}, {0: 0.01 if adam else 0.0})
        made.zero_grad()
        terms = probe.collect(k)
        assert terms is not None
        records.append({field: torch.tensor(getattr(terms, field)) for field in FIELDS})
        records[-1] |= {"status": list(terms.status_L), "names": list(terms.names), "method": probe.noise.method}
        records[-1]["unmatched"] = len(probe.noise.unmatched)
    return records


@contextmanager
def watched(sizes: list[int]) -> Iterator[None]:
    """Note the entries of every collective's tensors, on the side where they are most."""
    kept = {name: getattr(distributed, name) for name in ("all_reduce", "broadcast", "all_to_all_single")}
    gathered, parts = spread._all_gather, (DTensor.full_tensor, DTensor.redistribute)

    def note(function: Any) -> Any:
        def call(tensor: Tensor, *arguments: Any, **keywords: Any) -> Any:
            sizes.append(tensor.numel())
            return function(tensor, *arguments, **keywords)

        return call

    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise AssertionError("a whole weight was asked for")

    try:
        for name, function in kept.items():
            setattr(distributed, name, note(function))
        spread._all_gather = note(gathered)
        DTensor.full_tensor = DTensor.redistribute = refuse  # type: ignore[method-assign]
        yield
    finally:
        for name, function in kept.items():
            setattr(distributed, name, function)
        spread._all_gather = gathered
        DTensor.full_tensor, DTensor.redistribute = parts  # type: ignore[method-assign]


STEADY = 6  # steps until the probe knows how long they are


def sizes_of(mesh: Any, rank: int, adam: bool) -> list[list[int]]:
    """Return the sizes of the probe's collectives at set-up, and in each measured step."""
    model = nn.Sequential(nn.Linear(300, 400), nn.Tanh(), nn.Linear(400, 300), nn.Flatten(1), nn.Linear(300, 2))
    for part in (model[0], model[2], model[4], model):
        fully_shard(part, mesh=mesh)
    made = torch.optim.AdamW(model.parameters(), 1e-5) if adam else torch.optim.SGD(model.parameters(), 1e-4)
    sizes: list[list[int]] = [[]]
    with watched(sizes[0]):
        probe = Probe(model, made, interval=1)
        probe.spectrum()
    for k in range(STEADY):
        sizes.append([])
        with watched(sizes[-1]):
            probe.arm(k)
        x = torch.randn(8, 300, generator=torch.Generator().manual_seed(k + 10 * rank))
        model(x).square().sum().backward()
        with watched(sizes[-1]):
            probe.before_update()
        made.step()
        with watched(sizes[-1]):
            probe.after_update({0: 1e-5 if adam else 1e-4}, {0: 0.0})
            assert probe.collect(k) is not None
        made.zero_grad()
    return sizes


def skipped_of(mesh: Any) -> dict[str, str]:
    """Return what is listed of a model with one of everything that is not measured."""
    first = nn.Linear(4, 4)
    model = nn.ModuleDict(
        {
            "columns": fully_shard(nn.Linear(6, 8), mesh=mesh, shard_placement_fn=lambda p: Shard(p.dim() - 1)),
            "groups": fully_shard(nn.Conv2d(4, 4, 3, groups=2), mesh=mesh),
            "gain": fully_shard(nn.LayerNorm(4), mesh=mesh),
            "computed": fully_shard(parametrizations.weight_norm(nn.Linear(4, 4)), mesh=mesh),
            "rows": fully_shard(nn.Linear(4, 4), mesh=mesh),
            "alone": nn.Linear(4, 4),
        }
    )
    probe = Probe(model, torch.optim.SGD(model.parameters(), 0.01), gains=True)
    found = {one.name: one.reason for one in probe.skipped} | {"measured": " ".join(one.name for one in probe.layers)}
    first.weight = nn.Parameter(distribute_tensor(first.weight.detach(), mesh, [Shard(0)]))
    both = nn.Sequential(first, nn.Linear(4, 4))
    probe = Probe(both, torch.optim.SGD(both.parameters(), 0.01))
    return found | {"parallel": {one.name: one.reason for one in probe.skipped}["0"]}


def models_on(rank: int, folder: str) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (RANKS,))
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    copies = init_device_mesh("cpu", (RANKS, 1), mesh_dim_names=("copies", "shares"))
    return {
        "adamw": train(spread_language(mesh), rank),
        "sgd": train(spread_language(mesh, reshard_after_forward=True), rank, adam=False),
        "uneven": train(spread_language(mesh), rank, adam=False, rows=(7, 5), clip=0.05),
        "bfloat16": train(spread_language(mesh, mp_policy=half).float(), rank, adam=False),
        "copies": train(spread_language(copies), rank),
        "odd": train(fully_shard(odd(), mesh=mesh), rank),
        "sizes": [sizes_of(mesh, rank, adam) for adam in (False, True)],
        "skipped": skipped_of(mesh),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(RANKS, tmp_path_factory.mktemp("models"), models_on)


@pytest.mark.parametrize("case", ["adamw", "sgd", "uneven", "copies", "odd"])
def test_all_kinds_of_layers_are_measured_as_in_one_process(found: Any, case: str) -> None:
    options = {"sgd": {"adam": False}, "uneven": {"adam": False, "rows": (7, 5), "clip": 0.05}}
    alone = train(odd() if case == "odd" else language(), None, **options.get(case, {}))  # type: ignore[arg-type]
    for one, other in zip(found[0][case], alone, strict=True):
        assert one["names"] == other["names"]
        assert ("bag" if case == "odd" else "blocks.0.attention.k_proj") in one["names"]
        assert (one["status"], one["method"], one["unmatched"]) == (other["status"], "samples", 0)
        for name in FIELDS:
            ours, theirs = one[name].numpy(), other[name].numpy()
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7 * np.nanmax(np.abs(theirs)), err_msg=name)


def test_half_precision_is_that_of_the_passes_alone(found: Any) -> None:
    for one, exact in zip(found[0]["bfloat16"], found[0]["sgd"], strict=True):
        assert (one["method"], one["unmatched"]) == ("samples", 0)
        np.testing.assert_allclose(one["log_norm_L"], exact["log_norm_L"], atol=1e-3)
        np.testing.assert_allclose(one["noise_LL"].diagonal(), exact["noise_LL"].diagonal(), rtol=0.1)


@pytest.mark.parametrize("adam", [False, True])
def test_no_collective_holds_a_whole_weight(found: Any, adam: bool) -> None:
    sizes = found[0]["sizes"][adam]
    share, block = 150 * 400, 8 * (300 + 400 + 1) + 3 * 400  # of a weight on one process; of tracked vectors
    assert max(size for step in sizes for size in step) == (share if adam else block)
    assert len(sizes[-1]) <= 20 * 3 + 2  # packs


def test_what_cannot_be_measured_is_listed_with_its_reason(found: Any) -> None:
    skipped = found[0]["skipped"]
    assert skipped["measured"] == "rows alone"
    assert "Shard(1)" in skipped["columns"]
    assert "groups" in skipped["groups"]
    assert "gain" in skipped["gain"]
    assert "computed" in skipped["computed"]
    assert "tensor parallel" in skipped["parallel"]
