"""What the sources share: rows cut in three, splits changed alike, wrong labels, windows of source text."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lipadvisor.experiments.workloads import Data, Split

__all__ = ["character_windows", "cut", "each", "relabelled", "standardised"]


def cut(inputs: Tensor, targets: Tensor, train: int, held_out: int) -> Data:
    """Return the first ``train`` rows and twice ``held_out`` rows after them; rows are drawn in random order."""
    places = (slice(0, train), slice(train, train + held_out), slice(train + held_out, train + 2 * held_out))
    return Data(*(Split(inputs[rows], targets[rows]) for rows in places))


def each(data: Data, change: Callable[[Split], Split]) -> Data:
    """Return ``data`` with ``change`` made to training, validation and test rows, in this order."""
    return Data(*(change(split) for split in (data.train, data.validation, data.test)))


def standardised(y: Tensor) -> Tensor:
    """Return ``y`` (n,) or (n, k) with mean 0 and variance 1 in each column."""
    return (y - y.mean(0)) / y.std(0)


def relabelled(labels: Tensor, share: float, classes: int, generator: torch.Generator) -> Tensor:
    """Return ``labels`` with a ``share`` of them drawn anew, uniformly."""
    drawn = torch.randint(0, classes, labels.shape, generator=generator)
    return torch.where(torch.rand(len(labels), generator=generator) < share, drawn, labels)


def character_windows(
    groups: Sequence[Sequence[str]],
    *,
    length: int,
    symbols: int,
    windows: int,
    held_out: int,
    seed: int,
    fold: Callable[[str], str] = str,
) -> Data:
    """Return windows of ``length`` characters of the standard library's source, targets one character ahead.

    Args:
        groups: names of modules (``json/decoder``) for training, validation and test.
        length: characters in a window.
        symbols: the most frequent characters of the first group, the rest are one symbol.
        windows: training rows.
        held_out: rows of validation, and of test.
        seed: of the places of the windows.
        fold: what is done to the text first.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    texts = ("".join(_source(folder, name) for name in group) for group in groups)
    contents = [np.frombuffer(fold(text).encode("latin-1", "replace"), np.uint8) for text in texts]
    found, counts = np.unique(contents[0], return_counts=True)
    frequent = found[np.argsort(-counts, kind="stable")[: symbols - 1]]
    code = np.full(256, symbols - 1, np.int64)
    code[frequent] = np.arange(len(frequent))
    generator = torch.Generator().manual_seed(seed)

    def part(content: np.ndarray, count: int) -> Split:
        tokens = torch.from_numpy(code[content])
        starts = torch.randint(0, len(tokens) - length - 1, (count,), generator=generator)
        rows = tokens[starts[:, None] + torch.arange(length + 1)]
        return Split(rows[:, :-1], rows[:, 1:])

    return Data(*(part(*pair) for pair in zip(contents, (windows, held_out, held_out), strict=True)))


def _source(folder: Path, name: str) -> str:
    module = folder / f"{name}.py"  # or, in another version of Python, a package
    path = module if module.exists() else folder / name / "__init__.py"
    return path.read_text(encoding="utf-8", errors="replace")
