"""FSDP2: inspecting finds what one process finds on the same batch, and leaves the shares as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gloo_ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from lipadvisor import Advisor

RANKS, STEPS = 2, 4
pytestmark = pytest.mark.slow


class Reader(nn.Module):
    """A tied table, a convolution, attention and matrices whose rows do not divide evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv = nn.Embedding(7, 6), nn.Conv1d(6, 6, 3, padding=1)
        self.attention, self.inner = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 6)
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 7)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.tanh(self.conv(self.table(tokens).mT)).mT
        h = h + self.attention(h, h, h, need_weights=False)[0]
        y: Tensor = self.head(self.norm(torch.tanh(self.inner(h)).mean(1)))
        return y


def model_of(mesh: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Reader().double()
    if mesh is not None:
        policy = MixedPrecisionPolicy()
        for part in (model.inner, model.conv):
            fully_shard(part, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


def inspected(mesh: Any, adam: bool) -> dict[str, Any]:
    """Train on the same batch on every process, and look after each step."""
    model = model_of(mesh)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    if adam:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    values: list[list[float]] = []
    with Advisor(model, optimizer, mode="shadow", interval=1, on_error="raise") as advisor:
        for k in range(STEPS):
            tokens = torch.randint(0, 7, (12, 5), generator=torch.Generator().manual_seed(k))

            def loss(tokens: Tensor) -> Tensor:
                return nn.functional.cross_entropy(model(tokens), tokens[:, 0])

            value = loss(tokens)
            value.backward()
            before = [p.grad for p in model.parameters()]
            optimizer.step()
            found = advisor.inspect(loss, (tokens,))
            assert found is not None
            assert all(p.grad is g for p, g in zip(model.parameters(), before, strict=True))
            optimizer.zero_grad()
            advisor.step(value)
            values.append([reading.value for reading in found.readings])
        weights = [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in model.parameters()]
        names = [reading.quantity for reading in found.readings]
    return {"values": values, "names": names, "weights": torch.cat([w.flatten() for w in weights])}


def inspected_on(rank: int, folder: str) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (RANKS,))
    return {str(adam): inspected(mesh, adam) for adam in (False, True)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(RANKS, tmp_path_factory.mktemp("inspected"), inspected_on)


@pytest.mark.parametrize("adam", [False, True])
def test_shares_are_inspected_as_in_one_process(found: Any, adam: bool) -> None:
    alone = inspected(None, adam)
    for rank in found:
        one = rank[str(adam)]
        assert one["names"] == alone["names"]
        torch.testing.assert_close(torch.tensor(one["values"]), torch.tensor(alone["values"]), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(one["weights"], alone["weights"], rtol=1e-6, atol=1e-9)
