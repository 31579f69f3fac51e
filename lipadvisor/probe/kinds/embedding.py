"""Tables of rows that are looked up: ``nn.Embedding`` and ``nn.EmbeddingBag``.

As a linear layer on one-hot inputs a table is a matrix; its norm is the largest singular value of the table. A sample's
gradient has the rows that it looked up, each with the sum of the output gradients there: nothing of the table's size
is formed for a sample. Tables stand beside the network's sum: what comes in are discrete tokens, no point of a space.

Shapes: ``V`` rows, ``D`` columns, ``B`` samples, ``n`` lookups.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lipadvisor.probe.kinds.kind import Candidate, Options, wide
from lipadvisor.probe.kinds.linear import MatrixForm

__all__ = ["BagUse", "Lookups", "RowsOfTable", "TableUse", "find_embedding"]


def find_embedding(module: nn.Module, options: Options) -> tuple[Candidate, ...] | str | None:
    """Return the table of an embedding, why it cannot be measured, or None for other modules."""
    if not isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return None
    if module.sparse:
        return "its gradients are sparse (sparse=True)"
    rows, columns = module.num_embeddings, module.embedding_dim
    form = MatrixForm(rows, columns)
    use: TableUse | BagUse | None = TableUse(module) if isinstance(module, nn.Embedding) else BagUse(module)
    if module.scale_grad_by_freq or (isinstance(module, nn.EmbeddingBag) and module.mode == "max"):
        use = None  # samples share their rows' counts; a maximum's gradient is not that of lookups
    return (Candidate("weight", "embedding", (columns, rows), form, use, composition=0.0),)


@dataclass(frozen=True, slots=True)
class Lookups:
    """What a call looked up.

    Attributes:
        row_n: row of the table.
        sample_n: sample that asked for it.
        place_n: row of the output gradient (rows, D) that belongs to it.
        share_n: factor of that gradient in the row's: 0 for padding.
        count: number of samples.
    """

    row_n: Tensor
    sample_n: Tensor
    place_n: Tensor
    share_n: Tensor
    count: int

    def gradients(self, grad: Tensor) -> Tensor:
        """Return what each lookup adds to its row's gradient (n, D)."""
        grads = wide(grad).reshape(-1, grad.shape[-1])[self.place_n]
        return grads * self.share_n.to(grads).unsqueeze(1)


class _LookupUse(ABC):
    """What all tables share, given :class:`Lookups`."""

    @property
    def flat(self) -> bool:
        """Whether a sample's gradient is a sum of few outer products of dense vectors: no."""
        return False

    def count(self, kept: Lookups, grad: Tensor) -> int:
        """Return the number of samples."""
        return kept.count

    def pair(self, kept: Lookups, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Not for tables: one-hot vectors are as long as the table.

        Raises:
            TypeError: always.
        """
        raise TypeError("a table's gradient is not given as outer products")

    def scalars(self, jacobian: Tensor, kept: Lookups, grad: Tensor) -> Tensor:
        """Return ``sum_n d_n . J[row_n]`` (B,) over each sample's lookups."""
        each_n = (jacobian[kept.row_n] * kept.gradients(grad)).sum(1)
        return each_n.new_zeros(kept.count).index_add_(0, kept.sample_n, each_n)

    def weighted(self, weight_B: Tensor, kept: Lookups, grad: Tensor) -> Tensor:
        """Return ``sum_i w_i g_i`` (V, D)."""
        grads = kept.gradients(grad)
        table = grads.new_zeros(self.rows, grads.shape[1])
        return table.index_add_(0, kept.row_n, grads * weight_B[kept.sample_n].unsqueeze(1))

    @property
    @abstractmethod
    def rows(self) -> int:
        """V."""


@dataclass(frozen=True, slots=True)
class TableUse(_LookupUse):
    """A call of ``nn.Embedding``: samples along the first dimension of the indices."""

    module: nn.Embedding

    @property
    def rows(self) -> int:
        """V."""
        return self.module.num_embeddings

    def read(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Lookups | None:
        """Return what is looked up.

        Consecutive numbers without a batch are positions, whose rows all samples share: which sample did what is not
        to be seen here, and the shares are not-a-numbers.
        """
        index = arguments[0] if arguments else keywords.get("input")
        if not isinstance(index, Tensor) or index.dim() == 0:
            return None
        row_n = index.detach().reshape(-1)
        counter_n = torch.arange(len(row_n), device=row_n.device)
        share_n = torch.ones(len(row_n), dtype=torch.float64, device=row_n.device)
        if self.module.padding_idx is not None:
            share_n = (row_n != self.module.padding_idx).to(share_n)
        if index.dim() == 1:
            positions = (row_n - counter_n == row_n[:1]).all()
            share_n = torch.where(positions, float("nan"), share_n)
        samples = index.shape[0]
        return Lookups(row_n, counter_n // max(len(row_n) // max(samples, 1), 1), counter_n, share_n, samples)


@dataclass(frozen=True, slots=True)
class BagUse(_LookupUse):
    """A call of ``nn.EmbeddingBag`` in mode "sum" or "mean": a bag is a sample."""

    module: nn.EmbeddingBag

    @property
    def rows(self) -> int:
        """V."""
        return self.module.num_embeddings

    def read(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Lookups | None:
        """Return what is looked up, the bags' weights included."""
        given = dict(zip(("input", "offsets", "per_sample_weights"), arguments, strict=False)) | dict(keywords)
        index, offsets, weights = given["input"], given.get("offsets"), given.get("per_sample_weights")
        row_n = index.detach().reshape(-1)
        counter_n = torch.arange(len(row_n), device=row_n.device)
        if index.dim() == 2:
            bags, bag_n = index.shape[0], counter_n // max(index.shape[1], 1)
        elif offsets is None:
            return None
        else:
            starts = offsets.detach()[: -1 if self.module.include_last_offset else None]
            bags, bag_n = len(starts), torch.searchsorted(starts, counter_n, right=True) - 1
        share_n = torch.ones(len(row_n), dtype=torch.float64, device=row_n.device)
        if self.module.padding_idx is not None:
            share_n = (row_n != self.module.padding_idx).to(share_n)
        if weights is not None:
            share_n = share_n * weights.detach().reshape(-1)
        elif self.module.mode == "mean":
            size = share_n.new_zeros(bags).index_add_(0, bag_n, share_n)
            share_n = share_n / size.clamp_min(1.0)[bag_n]
        return Lookups(row_n, bag_n, bag_n, share_n, bags)


@dataclass(frozen=True, slots=True)
class RowsOfTable(_LookupUse):
    """A call of a table, as if it had some of its rows alone."""

    of: TableUse | BagUse
    rows: int

    @property
    def module(self) -> nn.Module:
        """The table."""
        return self.of.module

    def read(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Lookups | None:
        """Return what is looked up in all rows."""
        return self.of.read(arguments, keywords)
