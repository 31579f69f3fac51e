"""Data of what was the second confirmation list."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from sklearn import datasets

from lipadvisor.experiments.benchmarks.sources import digits_images
from lipadvisor.experiments.benchmarks.splits import character_windows, cut, each, standardised
from lipadvisor.experiments.workloads import Data, Split

__all__ = ["LETTERS", "adding", "coordinates", "documents", "flipped_table", "moons", "noisy_images", "relu_teacher"]

_SEED = 77_003  # of every set here
LETTERS = 48  # characters of the documents: the most frequent ones, the rest are one symbol


@cache
def documents(length: int, windows: int = 5000, held_out: int = 300) -> Data:
    """Return windows of ``length`` characters of the docstring-rich modules, targets one character ahead."""
    groups = (
        ("optparse", "pathlib", "pickle", "random", "statistics", "subprocess", "tarfile", "textwrap", "threading"),
        ("uuid", "warnings"),
        ("weakref", "zipfile"),
    )
    return character_windows(
        groups, length=length, symbols=LETTERS, windows=windows, held_out=held_out, seed=_SEED, fold=str.lower
    )


@cache
def adding(length: int = 12, rows: int = 2000) -> Data:
    """Return the adding problem: sequences (length, 2) of numbers and marks, the sum of the two that are marked."""
    generator = torch.Generator().manual_seed(_SEED + 1)
    count = rows + 1000
    numbers = torch.rand(count, length, generator=generator) * 2.0 - 1.0
    marks = torch.zeros(count, length)
    marks.scatter_(1, torch.rand(count, length, generator=generator).argsort(1)[:, :2], 1.0)
    total = (numbers * marks).sum(1, keepdim=True)
    return cut(torch.stack((numbers, marks), 2), standardised(total), rows, 500)


@cache
def coordinates(rows: int = 1500, features: int = 16) -> Data:
    """Return a picture as a function of the place: random Fourier features (2 * features) of it, the grey value."""
    generator = torch.Generator().manual_seed(_SEED + 2)
    place = torch.rand(rows + 1000, 2, generator=generator) * 2.0 - 1.0
    frequencies = 3.0 * torch.randn(2, features, generator=generator)
    x, y = place.unbind(1)
    grey = torch.sin(6.0 * x * y) + torch.sign(x**2 + y**2 - 0.5) * 0.5 + torch.cos(4.0 * (x + y)) * 0.3
    grey = grey + 0.1 * torch.randn(len(grey), generator=generator)
    waves = place @ frequencies
    return cut(torch.cat((waves.sin(), waves.cos()), 1), standardised(grey)[:, None], rows, 500)


@cache
def flipped_table(rows: int = 240, flipped: float = 0.1) -> Data:
    """Return a table of 20 columns, 6 of them useful, three classes, some labels wrong."""
    x, y = datasets.make_classification(
        n_samples=rows + 400, n_features=20, n_informative=6, n_redundant=4, n_classes=3, flip_y=flipped,
        class_sep=1.2, random_state=_SEED,
    )  # fmt: skip
    inputs = torch.tensor(np.asarray(x), dtype=torch.float32)
    inputs = (inputs - inputs[:rows].mean(0)) / inputs[:rows].std(0)
    return cut(inputs, torch.tensor(np.asarray(y), dtype=torch.int64), rows, 200)


@cache
def moons(rows: int = 800, noise: float = 0.25) -> Data:
    """Return two interleaved half circles, blurred."""
    x, y = datasets.make_moons(n_samples=rows + 1000, noise=noise, random_state=_SEED)
    return cut(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.int64), rows, 500)


@cache
def noisy_images(noise: float = 0.4) -> Data:
    """Return the digits' images with Gaussian noise as input and without as target."""
    clean = digits_images()
    generator = torch.Generator().manual_seed(_SEED + 3)

    def part(split: Split) -> Split:
        return Split(split.inputs + noise * torch.randn(split.inputs.shape, generator=generator), split.inputs)

    return each(clean, part)


@cache
def relu_teacher(inputs: int = 12, rows: int = 1500, noise: float = 0.2) -> Data:
    """Return the outputs (2) of a random ReLU network of two hidden layers, standardised, plus noise."""
    generator = torch.Generator().manual_seed(_SEED + 4)
    x = torch.randn(rows + 1000, inputs, generator=generator)
    hidden = x
    for fan_in, fan_out in ((inputs, 24), (24, 24)):
        hidden = torch.relu(hidden @ torch.randn(fan_in, fan_out, generator=generator) * (2.0 / fan_in) ** 0.5)
    y = hidden @ torch.randn(24, 2, generator=generator)
    y = standardised(y)
    return cut(x, y + noise * torch.randn(y.shape, generator=generator), rows, 500)
