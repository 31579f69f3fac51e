"""What a workload is, and the order in which its batches come.

Randomness is an argument everywhere: a seed names one initialization and one order of batches, whatever else the
process draws, and the process's own generators are left as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Batches", "Data", "Score", "Split", "Workload"]


@dataclass(frozen=True, slots=True)
class Split:
    """Inputs and their labels, row by row."""

    inputs: Tensor  # (n, ...), float32
    targets: Tensor  # (n,), int64 class labels

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.targets)


@dataclass(frozen=True, slots=True)
class Data:
    """The three splits. They share no row."""

    train: Split
    validation: Split  # selects
    test: Split  # reports; nothing selects on it


@dataclass(frozen=True, slots=True)
class Score:
    """How a model does on one split."""

    loss: float  # mean over the split, nats
    accuracy: float  # in [0, 1]


class Batches:
    """Endless shuffled epochs of one split; a batch is never cut short, so every step has the same size.

    The order of epoch ``e`` depends on ``(seed, e)`` alone, so ``position`` (batches handed out so far) is all that a
    checkpoint needs.
    """

    def __init__(self, split: Split, batch_size: int, seed: int, position: int = 0) -> None:
        """Start at batch number ``position``.

        Raises:
            ValueError: ``batch_size`` is not in [1, rows of the split], or ``position`` is negative.
        """
        if not 1 <= batch_size <= len(split):
            raise ValueError(f"Batches(batch_size=...) must be in [1, {len(split)}], got {batch_size}.")
        if position < 0:
            raise ValueError(f"Batches(position=...) must be >= 0, got {position}.")
        self.position = position
        self.batches_per_epoch = len(split) // batch_size
        self._split, self._batch_size, self._seed = split, batch_size, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return itself."""
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Return the next batch: inputs and targets."""
        epoch, index = divmod(self.position, self.batches_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self._split), generator=generator)
        rows = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        self.position += 1
        return self._split.inputs[rows], self._split.targets[rows]


@dataclass(frozen=True, slots=True)
class Workload:
    """A classification task: everything a trial needs except the schedule, which is the arm's."""

    name: str
    summary: str  # one line, for people
    batch_size: int
    optimizer_kind: str  # "adamw" or "sgd": arms scale their ranges by it
    build: Callable[[], nn.Module]  # the untrained model, drawn from torch's default generator
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    load: Callable[[], Data]

    def model(self, seed: int) -> nn.Module:
        """Return a fresh model whose initialization depends on ``seed`` alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build()

    def batches(self, data: Data, seed: int, position: int = 0) -> Batches:
        """Return the training batches in the order that ``seed`` names, from batch ``position`` on."""
        return Batches(data.train, self.batch_size, seed, position)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits ``output`` (batch, classes), in nats."""
        return functional.cross_entropy(output, target)

    def evaluate(self, model: nn.Module, split: Split) -> Score:
        """Return mean loss and accuracy on ``split``; the model's training mode is left as it was."""
        training = model.training
        model.eval()
        with torch.no_grad():
            output = model(split.inputs)
            loss = self.loss(output, split.targets)
            hits = (output.argmax(1) == split.targets).float().mean()
        model.train(training)
        return Score(float(loss), float(hits))
