"""One answer on every rank of a data-parallel training (DDP, FSDP2): the batch is the global one.

Every rank measures the same weights with its own samples. What the samples give is summed over the ranks, everything
else is averaged (it is the same up to rounding), in one collective operation for each measured step; a second one
agrees on the next step to measure. Every rank must have a probe, given the wrapped model. What is measured of weights
that are themselves spread over the ranks is the business of :mod:`lipadvisor.spectra.sharded`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipadvisor.probe.kinds.sharded import fully_sharded_mesh
from lipadvisor.terms import Array

__all__ = ["ALONE", "Ranks", "ranks_of"]


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes that train one model together.

    Attributes:
        group: of ``torch.distributed``; None for a single process.
        size: number of them.
        device: that collectives take their tensors on.
        shares: processes that share the rows of a weight; 1 where each has all of them. Sums over the rows are then
            reported as that many times a process's own, so that their mean over the ranks is the whole.
    """

    group: Any = None
    size: int = 1
    device: torch.device | str = "cpu"
    shares: int = 1

    def pool(
        self, table_LC: Tensor, noise_LL: Tensor, samples: int, summed: Sequence[int], shares: int
    ) -> tuple[Array, Array, int]:
        """Return a measurement of the samples of all ranks, on the host.

        Args:
            table_LC: values of each layer, float64.
            noise_LL: ``M / (M - 1)`` times the sum over this rank's M samples of the centred products of their shares.
            samples: M.
            summed: columns of ``table_LC`` that are sums over samples.
            shares: the column with the sum of the shares.
        """
        if self.size == 1:
            flat = torch.cat([table_LC.reshape(-1), noise_LL.reshape(-1)]).cpu().numpy()
            values, products = np.split(flat, [table_LC.numel()])
            return values.reshape(table_LC.shape), products.reshape(noise_LL.shape), samples
        table_LC = table_LC / self.size
        table_LC[:, list(summed)] *= self.size
        share_L = table_LC[:, shares]
        own = max(samples, 1)
        moments_LL = noise_LL * ((own - 1) / own) + torch.outer(share_L, share_L) / own
        flat_on = torch.cat([table_LC.reshape(-1), moments_LL.reshape(-1), table_LC.new_tensor([float(samples)])])
        torch.distributed.all_reduce(flat_on, group=self.group)
        flat = flat_on.cpu().numpy()
        table = flat[: table_LC.numel()].reshape(table_LC.shape)
        count = int(flat[-1])
        total = table[:, shares]
        moments = flat[table_LC.numel() : -1].reshape(noise_LL.shape)
        noise = (moments - np.outer(total, total) / max(count, 1)) * (count / max(count - 1, 1))
        return table, noise, count

    def whole(self, table_LC: Tensor) -> Array:
        """Return values that hang on no samples, on the host: the mean over the ranks where these share the rows."""
        if self.shares > 1:
            table_LC = table_LC / self.size
            torch.distributed.all_reduce(table_LC, group=self.group)
        table: Array = table_LC.cpu().numpy()
        return table

    def largest(self, *numbers: int) -> tuple[int, ...]:
        """Return the largest of each number over the ranks."""
        if self.size == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=self.group)
        return tuple(int(number) for number in tensor.cpu())

    def mean(self, value: Tensor | float | None) -> Tensor | float | None:
        """Return the mean over the ranks of a number that each of them has; None stays None."""
        if self.size == 1 or value is None:
            return value
        own = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
        own = own.to(self.device, torch.float64, copy=True)
        torch.distributed.all_reduce(own, group=self.group)
        return own / self.size


ALONE = Ranks()


def ranks_of(model: nn.Module) -> Ranks:
    """Return the ranks of a model under ``DistributedDataParallel`` or ``fully_shard``, compiled or not."""
    mesh = fully_sharded_mesh(model)
    if mesh is not None:
        if mesh.ndim == 1:
            group = mesh.get_group()
        elif mesh.size() == torch.distributed.get_world_size():
            group = torch.distributed.group.WORLD
        else:
            members = mesh.mesh.flatten().tolist()
            group = torch.distributed.new_group(members, use_local_synchronization=True)
        return Ranks(group, mesh.size(), next(model.parameters()).device, mesh.size(mesh.ndim - 1))
    inner: nn.Module | None = model
    while inner is not None:
        if isinstance(inner, nn.parallel.DistributedDataParallel):
            group = inner.process_group
            device = next(inner.parameters()).device
            return Ranks(group, torch.distributed.get_world_size(group), device)
        inner = inner._modules.get("_orig_mod")
    return ALONE
