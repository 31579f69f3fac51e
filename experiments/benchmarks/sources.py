"""Data of the bench: scikit-learn's bundled sets, generated sets, and the standard library's own source text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor

from lipadvisor.experiments.benchmarks.splits import character_windows, cut, each, standardised
from lipadvisor.experiments.workloads import Data, Split
from lipadvisor.experiments.workloads.digits import digits_images, digits_vectors

__all__ = [
    "digits_images",
    "digits_patches",
    "digits_reconstruction",
    "digits_vectors",
    "friedman",
    "noisy_digits",
    "spirals",
    "table",
    "teacher",
    "text",
    "wave",
]

_SEED = 20_251  # of every split and every generated set: another one would make versions incomparable
VOCABULARY = 64  # characters of the text: the most frequent ones, the rest are one symbol


def _split(inputs: Tensor, targets: Tensor, train: int, held_out: int) -> Data:
    """Return ``train`` rows and twice ``held_out`` rows, shuffled."""
    rows = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(_SEED))
    return cut(inputs[rows], targets[rows], train, held_out)


@cache
def noisy_digits(share: float, flat: bool = True) -> Data:
    """Return the digits with a ``share`` of the *training* labels drawn anew, uniformly; flat or as images."""
    clean = digits_vectors() if flat else digits_images()
    generator = torch.Generator().manual_seed(_SEED)
    labels = clean.train.targets
    wrong = torch.rand(len(labels), generator=generator) < share
    drawn = torch.randint(0, 10, labels.shape, generator=generator)
    return Data(Split(clean.train.inputs, torch.where(wrong, drawn, labels)), clean.validation, clean.test)


@cache
def digits_reconstruction() -> Data:
    """Return the digits with the pixels as their own targets."""
    clean = digits_vectors()
    return each(clean, lambda split: Split(split.inputs, split.inputs))


@cache
def digits_patches(noise: float = 0.5) -> Data:
    """Return 4 x 4 patches of the digits, with Gaussian noise as input and without as target: (n, 16) each."""
    clean = digits_images()
    generator = torch.Generator().manual_seed(_SEED)

    def part(split: Split) -> Split:
        patches = split.inputs.unfold(2, 4, 2).unfold(3, 4, 2).reshape(-1, 16)
        return Split(patches + noise * torch.randn(patches.shape, generator=generator), patches)

    whole = each(clean, part)
    return Data(whole.train, _head(whole.validation, 1500), _head(whole.test, 1500))


def _head(split: Split, rows: int) -> Split:
    return Split(split.inputs[:rows], split.targets[:rows])


@cache
def text(length: int, windows: int = 6000, held_out: int = 400) -> Data:
    """Return windows of ``length`` characters of the standard library's source, targets one character ahead.

    Training, validation and test come from different modules.
    """
    groups = (
        ("argparse", "ast", "calendar", "codecs", "configparser", "datetime", "decimal", "difflib", "doctest"),
        ("ftplib", "gettext", "heapq"),
        ("inspect", "ipaddress", "locale"),
    )
    return character_windows(groups, length=length, symbols=VOCABULARY, windows=windows, held_out=held_out, seed=_SEED)


_TABLES: dict[str, tuple[Callable[..., Any], bool]] = {
    "diabetes": (datasets.load_diabetes, False),
    "wine": (datasets.load_wine, True),
    "breast_cancer": (datasets.load_breast_cancer, True),
    "iris": (datasets.load_iris, True),
}


@cache
def table(name: str, train: int, held_out: int) -> Data:
    """Return a bundled table, columns (and a continuous target) standardised by the training rows."""
    loader, is_class = _TABLES[name]
    x, y = loader(return_X_y=True)
    inputs = torch.tensor(np.asarray(x), dtype=torch.float32)
    targets = torch.tensor(np.asarray(y), dtype=torch.int64 if is_class else torch.float32)
    data = _split(inputs, targets if is_class else targets[:, None], train, held_out)
    mean, std = data.train.inputs.mean(0), data.train.inputs.std(0) + 1e-6
    centre, spread = (0.0, 1.0) if is_class else (data.train.targets.mean(), data.train.targets.std())

    def part(split: Split) -> Split:
        return Split((split.inputs - mean) / std, split.targets if is_class else (split.targets - centre) / spread)

    return each(data, part)


@cache
def teacher(inputs: int = 20, hidden: int = 16, noise: float = 0.1, rows: int = 2048) -> Data:
    """Return the outputs of a random tanh network of one hidden layer, scaled to unit variance, plus noise."""
    generator = torch.Generator().manual_seed(_SEED)
    x = torch.randn(rows + 1024, inputs, generator=generator)
    first = torch.randn(inputs, hidden, generator=generator) / inputs**0.5 * 1.5
    second = torch.randn(hidden, 1, generator=generator)
    y = standardised(torch.tanh(x @ first) @ second)
    return _split(x, y + noise * torch.randn(y.shape, generator=generator), rows, 512)


@cache
def wave(noise: float = 0.02, rows: int = 1024) -> Data:
    """Return a smooth function of four variables with almost no noise: the floor is far below the first loss."""
    generator = torch.Generator().manual_seed(_SEED + 1)
    x = 2.0 * torch.rand(rows + 1024, 4, generator=generator) - 1.0
    y = torch.sin(3.0 * x[:, :1] + 2.0 * x[:, 1:2]) + x[:, 2:3] * x[:, 3:] + 0.5 * x[:, :1] ** 2
    y = standardised(y)
    return _split(x * 3.0**0.5, y + noise * torch.randn(y.shape, generator=generator), rows, 512)


@cache
def friedman(rows: int, noise: float = 0.1) -> Data:
    """Return Friedman's first function of ten variables, standardised, with ``rows`` training rows."""
    generator = torch.Generator().manual_seed(_SEED + 2)
    x = torch.rand(rows + 800, 10, generator=generator)
    y = 10 * torch.sin(torch.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    y = standardised(y)[:, None]
    return _split((x - 0.5) * 12.0**0.5, y + noise * torch.randn(y.shape, generator=generator), rows, 400)


@cache
def spirals(rows: int = 1000, noise: float = 0.08) -> Data:
    """Return three interleaved spirals in the plane, three classes."""
    generator = torch.Generator().manual_seed(_SEED + 3)
    count = rows + 1000
    label = torch.randint(0, 3, (count,), generator=generator)
    radius = torch.rand(count, generator=generator) ** 0.5
    angle = 5.0 * radius + 2.0 * torch.pi / 3.0 * label
    x = torch.stack((radius * angle.cos(), radius * angle.sin()), 1) + noise * torch.randn(
        count, 2, generator=generator
    )
    return _split(x * 2.0, label, rows, 500)
