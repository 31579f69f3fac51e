"""How many rows a training's batches are drawn from without replacement, as its loader says."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler

__all__ = ["population_of"]

WITHOUT_REPLACEMENT = (RandomSampler, SequentialSampler, DistributedSampler)


def population_of(loader: DataLoader[Any]) -> int | None:
    """Return N; None for draws that are independent, or where it cannot be known.

    Batches of M of the N rows of an epoch have ``1 - M/N`` times the noise of independent draws. What counts is the
    sampler: a random one without replacement, a sequential one (whose order of rows is taken as exchangeable) or a
    distributed one (whose ranks share the N rows). Streams, weighted samplers, samplers with replacement and batch
    samplers of the user's own give None.

    Args:
        loader: of the training data.
    """
    batch_sampler = getattr(loader, "batch_sampler", None)
    if isinstance(loader.dataset, IterableDataset) or not isinstance(loader.dataset, Sized):
        return None
    sampler = loader.sampler if loader.batch_size is None else getattr(batch_sampler, "sampler", None)
    if isinstance(sampler, WeightedRandomSampler) or not isinstance(sampler, WITHOUT_REPLACEMENT):
        return None
    if isinstance(sampler, RandomSampler) and sampler.replacement:
        return None
    return len(loader.dataset) or None
