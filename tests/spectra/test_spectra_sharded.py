"""Operators in shares against the whole ones: threads stand for processes, and pass tensors as these would."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from lipadvisor.spectra import ConvGeometry, ConvOperator, GramResolvent, LinearOperator, TrackedBlock, cold_start
from lipadvisor.spectra import sharded as module
from lipadvisor.spectra.sharded import Shard, ShardedGram, ShardedOperator

COUNTS = [(3, 2), (4, 0), (2, 2, 1), (1,), (3, 3, 0, 0)]


class Member:
    """What stands for a process group in one of several threads."""

    def __init__(self, rank: int, barrier: threading.Barrier, slots: list[Any]) -> None:
        self.rank, self.barrier, self.slots = rank, barrier, slots

    def exchange(self, tensor: Tensor) -> list[Tensor]:
        self.slots[self.rank] = tensor.clone()
        self.barrier.wait(20)
        seen = list(self.slots)
        self.barrier.wait(20)
        return seen


def all_reduce(tensor: Tensor, op: Any = None, *, group: Member) -> None:
    seen = torch.stack(group.exchange(tensor))
    tensor.copy_(seen.amax(0) if op == distributed.ReduceOp.MAX else seen.sum(0))


def broadcast(tensor: Tensor, *, group: Member, group_src: int) -> None:
    tensor.copy_(group.exchange(tensor)[group_src])


def all_to_all_single(received: Tensor, sent: Tensor, *, group: Member) -> None:
    received.copy_(torch.stack([one[group.rank] for one in group.exchange(sent)]))


def all_gather(flat: Tensor, tensor: Tensor, *, group: Member) -> None:
    flat.copy_(torch.cat(group.exchange(tensor)))


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(
        all_reduce=all_reduce,
        broadcast=broadcast,
        all_to_all_single=all_to_all_single,
        ReduceOp=distributed.ReduceOp,
    )
    monkeypatch.setattr(module, "distributed", fake)
    monkeypatch.setattr(module, "_all_gather", all_gather)


def together(counts: tuple[int, ...], task: Callable[[Shard], Any]) -> list[Any]:
    """Return what each of several threads makes of its shard."""
    barrier, slots = threading.Barrier(len(counts)), [None] * len(counts)
    found: list[Any] = [None] * len(counts)

    def run(rank: int) -> None:
        try:
            found[rank] = task(Shard(Member(rank, barrier, slots), rank, counts))
        except Exception as error:
            found[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        if isinstance(one, Exception):
            raise one
    return found


def share(shard: Shard, kernel: Tensor, dim: int) -> Tensor:
    """Return a process's rows, filled up with zeros."""
    part = kernel.movedim(dim, 0)[shard.rows(shard.rank)]
    return torch.cat([part, part.new_zeros(shard.longest - len(part), *part.shape[1:])]).movedim(0, dim)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


def operators(kind: str, counts: tuple[int, ...]) -> tuple[Any, Any, Tensor, bool]:
    """Return the whole operator, that of a share, a kernel (l, ...), and whether the rows are inputs."""
    rows, longest = sum(counts), max(counts)
    if kind == "matrix":
        return LinearOperator(rows, 4), LinearOperator(longest, 4), random(2, rows, 4), False
    transposed = kind == "transpose"
    sides = (2, 3, 3)
    made = []
    for channels in (rows, longest):
        geometry = ConvGeometry((channels, *sides), (1, 2), (1, 0), (1, 0), (1, 1), transposed=transposed)
        made.append(ConvOperator(geometry, ((channels if transposed else 2), 5, 4)))
    return made[0], made[1], random(rows, *sides), transposed


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("kind", ["matrix", "convolution", "transpose"])
def test_shares_act_as_the_whole(kind: str, counts: tuple[int, ...]) -> None:
    whole, part, kernel, of_inputs = operators(kind, counts)
    lead = (2,) if kind == "matrix" else ()
    x, y = random(*lead, 3, whole.inputs), random(*lead, 3, whole.outputs)
    rows = 1 if kind == "matrix" else 0

    def task(shard: Shard) -> tuple[Tensor, ...]:
        operator, own = ShardedOperator(whole, part, shard, of_inputs), share(shard, kernel, rows)
        return operator.apply(own, x), operator.adjoint(own, y), operator.outer(y, x)

    for rank, (image, coimage, outer) in enumerate(together(counts, task)):
        torch.testing.assert_close(image, whole.apply(kernel, x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(coimage, whole.adjoint(kernel, y), rtol=1e-12, atol=1e-12)
        wanted = share(Shard(None, rank, counts), whole.outer(y, x), rows)
        torch.testing.assert_close(outer, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("kind", ["matrix", "convolution", "transpose"])
def test_images_of_single_shares_add_up(kind: str, counts: tuple[int, ...]) -> None:
    whole, part, kernel, of_inputs = operators(kind, counts)
    kernel = kernel[0] if kind == "matrix" else kernel
    u, v = random(1, whole.outputs), random(1, whole.inputs)
    images, coimages = [], []
    for rank in range(len(counts)):
        shard = Shard(None, rank, counts)
        operator = ShardedOperator(whole, part, shard, of_inputs)
        image, coimage = operator.share_images(share(shard, kernel, 0), u, v, rank)
        images.append(image)
        coimages.append(coimage)
    torch.testing.assert_close(sum(images), whole.apply(kernel, v))
    torch.testing.assert_close(sum(coimages), whole.adjoint(kernel, u))


@pytest.mark.parametrize(("counts", "columns"), [((11, 10), 24), ((14, 14), 19), ((9, 9, 2), 30), ((30, 0), 20)])
def test_tracked_block_and_resolvent_are_the_whole_ones(counts: tuple[int, ...], columns: int) -> None:
    rows = sum(counts)
    kernel, start = random(2, rows, columns), random(2, 3, columns)
    whole, part = LinearOperator(rows, columns), LinearOperator(max(counts), columns)
    block = cold_start(whole, kernel, start)
    p, y = random(2, 4, rows), random(2, 4, columns)
    exact = GramResolvent.build(kernel, block)

    def task(shard: Shard) -> tuple[TrackedBlock, list[Tensor]]:
        operator, own = ShardedOperator(whole, part, shard), share(shard, kernel, 1)
        gram = ShardedGram.build(operator, own, block)
        turning = p[:, :1] * 2.0, y[:, :1] * 2.0
        return cold_start(operator, own, start), [gram.forms(p, y), *gram.both(None, p, y), *gram.both(turning, p, y)]

    wanted = [exact.forms(p, y), *exact.both(None, p, y), *exact.both((p[:, :1] * 2.0, y[:, :1] * 2.0), p, y)]
    for found, forms in together(counts, task):
        torch.testing.assert_close(found.s_R, block.s_R, rtol=1e-9, atol=1e-9)
        for one, other in zip(forms, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_shares_go_round_and_rows_become_columns() -> None:
    counts = (3, 1, 2)
    kernel = random(2, 6, 5)

    def task(shard: Shard) -> tuple[list[Tensor], Tensor, Tensor]:
        own = share(shard, kernel, 1)
        seen = [passed[:, : counts[rank]] for rank, passed in shard.in_turn(own)]
        return seen, shard.columns(own), shard.first(torch.tensor([float(shard.rank)]))

    for rank, (seen, columns, first) in enumerate(together(counts, task)):
        assert torch.equal(torch.cat(seen, 1), kernel)
        wide = torch.nn.functional.pad(kernel, (0, 1))
        assert torch.equal(columns, wide[..., 2 * rank : 2 * rank + 2])
        assert first.item() == 0.0
