"""Data of what was the third confirmation list."""

from __future__ import annotations

from functools import cache

import torch
from sklearn import datasets
from torch.nn import functional

from lipadvisor.experiments.benchmarks.sources import digits_images, digits_vectors
from lipadvisor.experiments.benchmarks.splits import character_windows, cut, each, relabelled, standardised
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

_SEED = 40_961  # of every set here
SYMBOLS = 40  # characters of the letters: the most frequent ones, the rest are one symbol


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
    return each(clean, lambda split: Split(split.inputs[:, :32], split.inputs[:, 32:]))


@cache
def blurred_images() -> Data:
    """Return the digits' images averaged over 3 x 3 pixels as input and sharp as target."""
    clean = digits_images()

    def part(split: Split) -> Split:
        blurred = functional.avg_pool2d(split.inputs, 3, stride=1, padding=1)
        return Split(blurred, split.inputs)

    return each(clean, part)


@cache
def ripples(rows: int = 900, noise: float = 0.01) -> Data:
    """Return waves of the distance from two places as a function of three variables, with almost no noise."""
    generator = torch.Generator().manual_seed(_SEED + 1)
    x = 2.0 * torch.rand(rows + 1000, 3, generator=generator) - 1.0
    near = (x - torch.tensor([0.5, 0.0, -0.3])).norm(dim=1)
    far = (x + torch.tensor([0.2, 0.6, 0.4])).norm(dim=1)
    y = torch.cos(4.0 * near) + 0.7 * torch.sin(3.0 * far)
    y = standardised(y)
    return cut(x * 3.0**0.5, (y + noise * torch.randn(len(y), generator=generator))[:, None], rows, 500)


@cache
def checkerboard(rows: int = 1200) -> Data:
    """Return points of the plane and the colour of their field on a board of 4 x 4, the edges blurred."""
    generator = torch.Generator().manual_seed(_SEED + 2)
    place = 4.0 * torch.rand(rows + 1000, 2, generator=generator)
    seen = place + 0.04 * torch.randn(place.shape, generator=generator)
    return cut(seen - 2.0, place.floor().sum(1).long() % 2, rows, 500)


@cache
def quantiles(rows: int = 180, wrong: float = 0.15) -> Data:
    """Return a table of 12 columns whose classes are three shells of equal mass, some labels wrong."""
    x, y = datasets.make_gaussian_quantiles(
        n_samples=rows + 600, n_features=4, n_classes=3, random_state=_SEED, shuffle=True
    )
    generator = torch.Generator().manual_seed(_SEED + 3)
    useful = torch.tensor(x, dtype=torch.float32)
    inputs = torch.cat((useful, torch.randn(len(useful), 8, generator=generator)), 1)
    labels = relabelled(torch.tensor(y, dtype=torch.int64), wrong, 3, generator)
    return cut(inputs, labels, rows, 300)


@cache
def sparse_table(rows: int = 150, noise: float = 0.6) -> Data:
    """Return a table of 24 columns, the target a product and a sum of four of them, and much noise."""
    generator = torch.Generator().manual_seed(_SEED + 4)
    x = torch.randn(rows + 800, 24, generator=generator)
    y = x[:, 3] + 0.8 * x[:, 11] - x[:, 17] * x[:, 5].abs()
    y = standardised(y) + noise * torch.randn(len(y), generator=generator)
    return cut(x, y[:, None], rows, 400)


@cache
def letters(length: int, windows: int = 4000, held_out: int = 300) -> Data:
    """Return windows of ``length`` characters of the network modules, targets one character ahead."""
    groups = (("smtplib", "socket", "ssl", "imaplib", "mailbox"), ("poplib", "selectors"), ("socketserver", "shelve"))
    return character_windows(
        groups, length=length, symbols=SYMBOLS, windows=windows, held_out=held_out, seed=_SEED + 5, fold=str.upper
    )
