"""The operator of a weight whose rows are spread over processes: no process ever holds more of it than its share.

Vectors are whole on every process, kernels are shares. What a share does to a vector is a part of the image, and the
parts are put together; what the adjoint does is a sum over the processes. A transposed convolution is spread over its
inputs, the other way round. Every process must call with the same vectors, in the same order.

Shapes: those of :mod:`lipadvisor.spectra.operator`; ``W`` processes, ``c`` rows of the longest share, to which every
share is filled up with zeros; ``l`` layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.functional import pad

from lipadvisor.spectra.block import TrackedBlock
from lipadvisor.spectra.curvature import Change, gram_forms
from lipadvisor.spectra.operator import LayerOperator

__all__ = ["Shard", "ShardedGram", "ShardedOperator"]

_all_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor  # its older name


@dataclass(frozen=True, slots=True)
class Shard:
    """Which entries of a dimension lie on which process of a group, in the order of the processes.

    Attributes:
        group: of ``torch.distributed``.
        rank: of this process in the group.
        counts: entries on each of the W processes, >= 0.
        starts: first entry of each.
    """

    group: Any = field(compare=False)
    rank: int
    counts: tuple[int, ...]
    starts: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Work out where each share starts."""
        object.__setattr__(self, "starts", tuple(accumulate(self.counts, initial=0))[:-1])

    @property
    def longest(self) -> int:
        """Entries of the longest share."""
        return max(self.counts)

    @property
    def processes(self) -> int:
        """W."""
        return len(self.counts)

    def rows(self, rank: int) -> slice:
        """Return the entries on process ``rank``."""
        return slice(self.starts[rank], self.starts[rank] + self.counts[rank])

    def times(self, width: int) -> Shard:
        """Return the same for entries that stand for ``width`` numbers each."""
        return replace(self, counts=tuple(count * width for count in self.counts))

    def own(self, x: Tensor) -> Tensor:
        """Return this process's part (..., c) of whole vectors."""
        return self.part(x, self.rank)

    def part(self, x: Tensor, rank: int) -> Tensor:
        """Return the part (..., c) of whole vectors that belongs to process ``rank``, filled up with zeros."""
        return pad(x[..., self.rows(rank)], (0, self.longest - self.counts[rank]))

    def gather(self, part: Tensor) -> Tensor:
        """Return whole vectors of the processes' parts (..., c): one collective."""
        return self._joined(self.stack(part), -1)

    def stack(self, x: Tensor) -> Tensor:
        """Return what every process has (W, ...), of one shape: one collective."""
        flat = x.new_empty(self.processes * x.numel())
        _all_gather(flat, x.contiguous().view(-1), group=self.group)
        return flat.view(self.processes, *x.shape)

    def add(self, x: Tensor) -> Tensor:
        """Return the sum over the processes: one collective."""
        total = x.contiguous()
        distributed.all_reduce(total, group=self.group)
        return total

    def first(self, x: Tensor) -> Tensor:
        """Return what the first process has: one collective."""
        same = x.contiguous()
        distributed.broadcast(same, group=self.group, group_src=0)
        return same

    def largest(self, numbers: Tensor) -> Tensor:
        """Return the largest over the processes of each number: one collective."""
        most = numbers.contiguous().clone()
        distributed.all_reduce(most, distributed.ReduceOp.MAX, group=self.group)
        return most

    def in_turn(self, share: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Give each process's share in turn, to look at and let go: W collectives, two shares in memory."""
        for rank in range(self.processes):
            passed = share.clone() if rank == self.rank else torch.empty_like(share)
            distributed.broadcast(passed, group=self.group, group_src=rank)
            yield rank, passed

    def columns(self, share: Tensor) -> Tensor:
        """Return all rows of some columns (..., M, n), for all columns of some rows (..., c, N): one collective.

        Columns are filled up with zeros to a multiple of W.
        """
        more = -share.shape[-1] % self.processes
        sent = pad(share, (0, more)).unflatten(-1, (self.processes, -1)).movedim(-2, 0).contiguous()
        received = torch.empty_like(sent)
        distributed.all_to_all_single(received, sent, group=self.group)
        return self._joined(received, -2)

    def _joined(self, parts: Tensor, dim: int) -> Tensor:
        """Return parts (W, ...) of c entries along ``dim`` as one."""
        kept = [parts[r].narrow(dim, 0, n) for r, n in enumerate(self.counts) if n]
        return torch.cat(kept, dim)


@dataclass(frozen=True, slots=True)
class ShardedOperator:
    """A layer's operator in shares of its kernel.

    Attributes:
        whole: geometry of the whole layer.
        part: geometry of a share, of c rows of the kernel.
        shard: of the rows of the kernel.
        of_inputs: whether these are the operator's inputs (transposed convolutions), not its outputs.
    """

    whole: LayerOperator
    part: LayerOperator
    shard: Shard
    of_inputs: bool = False
    _spread: Shard = field(init=False)

    def __post_init__(self) -> None:
        """Work out which entries of a vector belong to a row of the kernel."""
        size = self.part.inputs if self.of_inputs else self.part.outputs
        object.__setattr__(self, "_spread", self.shard.times(size // self.shard.longest))

    @property
    def inputs(self) -> int:
        """N."""
        return self.whole.inputs

    @property
    def outputs(self) -> int:
        """M."""
        return self.whole.outputs

    def apply(self, kernel: Tensor, x_KN: Tensor) -> Tensor:
        """Return the (K, M) block of images: one collective of its size."""
        if self.of_inputs:
            return self.shard.add(self.part.apply(kernel, self._spread.own(x_KN)))
        return self._spread.gather(self.part.apply(kernel, x_KN))

    def adjoint(self, kernel: Tensor, y_KM: Tensor) -> Tensor:
        """Return the (K, N) block of images under the adjoint: one collective of its size."""
        if self.of_inputs:
            return self._spread.gather(self.part.adjoint(kernel, y_KM))
        return self.shard.add(self.part.adjoint(kernel, self._spread.own(y_KM)))

    def outer(self, y_KM: Tensor, x_KN: Tensor) -> Tensor:
        """Return this process's share of ``sum_k d <y_k, kernel * x_k> / d kernel``."""
        return self.share_outer(y_KM, x_KN, self.shard.rank)

    def share_outer(self, y_KM: Tensor, x_KN: Tensor, rank: int) -> Tensor:
        """Return the share of process ``rank``."""
        if self.of_inputs:
            return self.part.outer(y_KM, self._spread.part(x_KN, rank))
        return self.part.outer(self._spread.part(y_KM, rank), x_KN)

    def share_images(self, kernel: Tensor, u_1M: Tensor, v_1N: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Return what the share of process ``rank`` of a kernel does to ``v`` (1, M) and, by its adjoint, to ``u``.

        These add up, over the shares, to the images of the whole.
        """
        spread = self._spread
        if self.of_inputs:
            image_1M = self.part.apply(kernel, spread.part(v_1N, rank))
            return image_1M, self._placed(self.part.adjoint(kernel, u_1M), rank)
        image_1M = self._placed(self.part.apply(kernel, v_1N), rank)
        return image_1M, self.part.adjoint(kernel, spread.part(u_1M, rank))

    def gather_inputs(self, part_KN: Tensor) -> Tensor:
        """Return whole vectors (K, N) of what each process has of them: all, where it has rows of the outputs."""
        return self._spread.gather(part_KN) if self.of_inputs else part_KN

    def agree(self, flags: Tensor) -> Tensor:
        """Return what any process says: what is decided by numbers must be decided by all alike."""
        return self.shard.largest(flags.int()).bool()

    def same(self, *vectors: Tensor) -> tuple[Tensor, ...]:
        """Return the first process's vectors, whatever rounding made of them elsewhere: one collective."""
        sizes = [x.numel() for x in vectors]
        flat = self.shard.first(torch.cat([x.reshape(-1) for x in vectors]))
        return tuple(part.view(x.shape) for part, x in zip(flat.split(sizes), vectors, strict=True))

    def _placed(self, part_1: Tensor, rank: int) -> Tensor:
        """Return a part (1, c) as a whole vector, with zeros elsewhere."""
        spread = self._spread
        rows, size = spread.rows(rank), sum(spread.counts)
        return pad(part_1[..., : spread.counts[rank]], (rows.start, size - rows.stop))


@dataclass(frozen=True, slots=True)
class ShardedGram:
    """:class:`~lipadvisor.spectra.curvature.GramResolvent` of a matrix in shares: the small Gram matrix is whole.

    ``W'W`` is a sum over the shares; for ``W W'`` the shares change from some rows to some columns.
    """

    operator: ShardedOperator
    kernel: Tensor
    block: TrackedBlock
    factor: Tensor
    left: bool  # the Gram matrix is on the output side

    @classmethod
    def build(cls, operator: ShardedOperator, kernel: Tensor, block: TrackedBlock) -> ShardedGram:
        """Factorise for the matrix in shares ``kernel`` (l, c, N) at ``sigma = s_1``."""
        left = operator.outputs <= operator.inputs
        half = operator.shard.columns(kernel) if left else kernel.mT
        scaled = (block.u_RM if left else block.v_RN) * block.s_R.unsqueeze(-1)
        system = scaled.mT @ scaled - operator.shard.add(half @ half.mT)
        system.diagonal(dim1=-2, dim2=-1).add_(block.s_R[..., :1].square())
        return cls(operator, kernel, block, torch.linalg.cholesky_ex(system)[0], left)

    def both(self, turning: Change | None, p_KM: Tensor, y_KN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the response ``z`` (1, N) to one change, and the second line of q (K,) of others."""
        count = p_KM.shape[-2]
        if turning is not None:
            p_KM, y_KN = torch.cat([p_KM, turning[0]], -2), torch.cat([y_KN, turning[1]], -2)
        right_K = self._right(p_KM, y_KN)
        forms_K = self._forms(right_K, p_KM, y_KN)[..., :count]
        place = 0 if turning is None else count
        solved_1 = torch.cholesky_solve(right_K[..., place : place + 1, :].mT, self.factor).mT
        if not self.left:
            return solved_1, forms_K
        z_1N = (y_KN[..., place : place + 1, :] + self.operator.adjoint(self.kernel, solved_1)) / self._sigma()
        return z_1N, forms_K

    def forms(self, p_KM: Tensor, y_KN: Tensor) -> Tensor:
        """Return the second line of q (K,): half of a solve is enough for a square."""
        return self._forms(self._right(p_KM, y_KN), p_KM, y_KN)

    def _forms(self, right_K: Tensor, p_KM: Tensor, y_KN: Tensor) -> Tensor:
        form_K: Tensor = gram_forms(self.factor, right_K, y_KN if self.left else p_KM, self.block.s_R)
        return form_K

    def _sigma(self) -> Tensor:
        return self.block.s_R[..., :1].unsqueeze(-1)

    def _right(self, p_KM: Tensor, y_KN: Tensor) -> Tensor:
        if self.left:
            return p_KM * self._sigma() + self.operator.apply(self.kernel, y_KN)
        return y_KN * self._sigma() + self.operator.adjoint(self.kernel, p_KM)
