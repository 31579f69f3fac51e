"""Data of the confirmation list that the design list does not have."""

from __future__ import annotations

import sysconfig
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor
from torch.nn import functional

from lipadvisor.experiments.benchmarks.sources import digits_images, digits_vectors
from lipadvisor.experiments.workloads import Data, Split

__all__ = [
    "SYMBOLS",
    "blurred_images",
    "checkerboard",
    "few_digits",
    "half_reconstruction",
    "letters",
    "quantiles",
    "ripples",
    "sparse_table",
    "wrong_digits",
]

_SEED = 40_961  # of every set here; none of them is shared with the design list
SYMBOLS = 40  # characters of the letters: the most frequent ones, the rest are one symbol


def _cut(inputs: Tensor, targets: Tensor, train: int, held_out: int) -> Data:
    """Return the first ``train`` rows and twice ``held_out`` rows after them; rows are drawn in random order."""
    cuts = (slice(0, train), slice(train, train + held_out), slice(train + held_out, train + 2 * held_out))
    return Data(*(Split(inputs[cut], targets[cut]) for cut in cuts))


@cache
def few_digits(rows: int, flat: bool = True) -> Data:
    """Return the digits with the last ``rows`` of the training rows alone; flat or as images."""
    whole = digits_vectors() if flat else digits_images()
    return Data(Split(whole.train.inputs[-rows:], whole.train.targets[-rows:]), whole.validation, whole.test)


@cache
def wrong_digits(share: float, flat: bool = True) -> Data:
    """Return the digits with a ``share`` of the *training* labels moved on by one (a nine becomes a nought)."""
    clean = digits_vectors() if flat else digits_images()
    generator = torch.Generator().manual_seed(_SEED)
    labels = clean.train.targets
    wrong = torch.rand(len(labels), generator=generator) < share
    return Data(Split(clean.train.inputs, torch.where(wrong, (labels + 1) % 10, labels)), clean.validation, clean.test)


@cache
def half_reconstruction() -> Data:
    """Return the upper half of each digit as input and the lower half as target, 32 pixels each."""
    clean = digits_vectors()
    return Data(*(Split(s.inputs[:, :32], s.inputs[:, 32:]) for s in (clean.train, clean.validation, clean.test)))


@cache
def blurred_images() -> Data:
    """Return the digits' images averaged over 3 x 3 pixels as input and sharp as target."""
    clean = digits_images()

    def part(split: Split) -> Split:
        blurred = functional.avg_pool2d(split.inputs, 3, stride=1, padding=1)
        return Split(blurred, split.inputs)

    return Data(part(clean.train), part(clean.validation), part(clean.test))


@cache
def ripples(rows: int = 900, noise: float = 0.01) -> Data:
    """Return waves of the distance from two places as a function of three variables, with almost no noise."""
    generator = torch.Generator().manual_seed(_SEED + 1)
    x = 2.0 * torch.rand(rows + 1000, 3, generator=generator) - 1.0
    near = (x - torch.tensor([0.5, 0.0, -0.3])).norm(dim=1)
    far = (x + torch.tensor([0.2, 0.6, 0.4])).norm(dim=1)
    y = torch.cos(4.0 * near) + 0.7 * torch.sin(3.0 * far)
    y = (y - y.mean()) / y.std()
    return _cut(x * 3.0**0.5, (y + noise * torch.randn(len(y), generator=generator))[:, None], rows, 500)


@cache
def checkerboard(rows: int = 1200) -> Data:
    """Return points of the plane and the colour of their field on a board of 4 x 4, the edges blurred."""
    generator = torch.Generator().manual_seed(_SEED + 2)
    place = 4.0 * torch.rand(rows + 1000, 2, generator=generator)
    seen = place + 0.04 * torch.randn(place.shape, generator=generator)
    return _cut(seen - 2.0, place.floor().sum(1).long() % 2, rows, 500)


@cache
def quantiles(rows: int = 180, wrong: float = 0.15) -> Data:
    """Return a table of 12 columns whose classes are three shells of equal mass, some labels wrong."""
    x, y = datasets.make_gaussian_quantiles(
        n_samples=rows + 600, n_features=4, n_classes=3, random_state=_SEED, shuffle=True
    )
    generator = torch.Generator().manual_seed(_SEED + 3)
    useful = torch.tensor(x, dtype=torch.float32)
    inputs = torch.cat((useful, torch.randn(len(useful), 8, generator=generator)), 1)
    labels = torch.tensor(y, dtype=torch.int64)
    drawn = torch.randint(0, 3, labels.shape, generator=generator)
    labels = torch.where(torch.rand(len(labels), generator=generator) < wrong, drawn, labels)
    return _cut(inputs, labels, rows, 300)


@cache
def sparse_table(rows: int = 150, noise: float = 0.6) -> Data:
    """Return a table of 24 columns, the target a product and a sum of four of them, and much noise."""
    generator = torch.Generator().manual_seed(_SEED + 4)
    x = torch.randn(rows + 800, 24, generator=generator)
    y = x[:, 3] + 0.8 * x[:, 11] - x[:, 17] * x[:, 5].abs()
    y = (y - y.mean()) / y.std() + noise * torch.randn(len(y), generator=generator)
    return _cut(x, y[:, None], rows, 400)


@cache
def letters(length: int, windows: int = 4000, held_out: int = 300) -> Data:
    """Return windows of ``length`` characters of the network modules, targets one character ahead."""
    folder = Path(sysconfig.get_path("stdlib"))
    groups = (("smtplib", "socket", "ssl", "imaplib", "mailbox"), ("poplib", "selectors"), ("socketserver", "shelve"))
    parts = [
        "".join((folder / f"{name}.py").read_text(encoding="utf-8", errors="replace") for name in group).upper()
        for group in groups
    ]
    raw = [np.frombuffer(part.encode("latin-1", "replace"), np.uint8) for part in parts]
    symbols, counts = np.unique(raw[0], return_counts=True)
    frequent = symbols[np.argsort(-counts, kind="stable")[: SYMBOLS - 1]]
    code = np.full(256, SYMBOLS - 1, np.int64)
    code[frequent] = np.arange(len(frequent))
    generator = torch.Generator().manual_seed(_SEED + 5)

    def part(content: np.ndarray, count: int) -> Split:
        tokens = torch.from_numpy(code[content])
        starts = torch.randint(0, len(tokens) - length - 1, (count,), generator=generator)
        rows = tokens[starts[:, None] + torch.arange(length + 1)]
        return Split(rows[:, :-1], rows[:, 1:])

    return Data(part(raw[0], windows), part(raw[1], held_out), part(raw[2], held_out))
