"""Data of the confirmation list that the design list does not have."""

from __future__ import annotations

import sysconfig
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor

from lipadvisor.experiments.benchmarks.sources import digits_images
from lipadvisor.experiments.workloads import Data, Split

__all__ = ["LETTERS", "adding", "coordinates", "documents", "flipped_table", "moons", "noisy_images", "relu_teacher"]

_SEED = 77_003  # of every set here; none of them is shared with the design list
LETTERS = 48  # characters of the documents: the most frequent ones, the rest are one symbol


def _cut(inputs: Tensor, targets: Tensor, train: int, held_out: int) -> Data:
    """Return the first ``train`` rows and twice ``held_out`` rows after them; rows are drawn in random order."""
    cuts = (slice(0, train), slice(train, train + held_out), slice(train + held_out, train + 2 * held_out))
    return Data(*(Split(inputs[cut], targets[cut]) for cut in cuts))


def _standardised(y: Tensor) -> Tensor:
    return (y - y.mean()) / y.std()


@cache
def documents(length: int, windows: int = 5000, held_out: int = 300) -> Data:
    """Return windows of ``length`` characters of the docstring-rich modules, targets one character ahead."""
    folder = Path(sysconfig.get_path("stdlib"))
    groups = (
        ("optparse", "pathlib", "pickle", "random", "statistics", "subprocess", "tarfile", "textwrap", "threading"),
        ("uuid", "warnings"),
        ("weakref", "zipfile" if (folder / "zipfile.py").exists() else "zipapp"),
    )
    parts = [
        "".join((folder / f"{name}.py").read_text(encoding="utf-8", errors="replace") for name in group).lower()
        for group in groups
    ]
    raw = [np.frombuffer(part.encode("latin-1", "replace"), np.uint8) for part in parts]
    symbols, counts = np.unique(raw[0], return_counts=True)
    frequent = symbols[np.argsort(-counts, kind="stable")[: LETTERS - 1]]
    code = np.full(256, LETTERS - 1, np.int64)
    code[frequent] = np.arange(len(frequent))
    generator = torch.Generator().manual_seed(_SEED)

    def part(content: np.ndarray, count: int) -> Split:
        tokens = torch.from_numpy(code[content])
        starts = torch.randint(0, len(tokens) - length - 1, (count,), generator=generator)
        rows = tokens[starts[:, None] + torch.arange(length + 1)]
        return Split(rows[:, :-1], rows[:, 1:])

    return Data(part(raw[0], windows), part(raw[1], held_out), part(raw[2], held_out))


@cache
def adding(length: int = 12, rows: int = 2000) -> Data:
    """Return the adding problem: sequences (length, 2) of numbers and marks, the sum of the two that are marked."""
    generator = torch.Generator().manual_seed(_SEED + 1)
    count = rows + 1000
    numbers = torch.rand(count, length, generator=generator) * 2.0 - 1.0
    marks = torch.zeros(count, length)
    marks.scatter_(1, torch.rand(count, length, generator=generator).argsort(1)[:, :2], 1.0)
    total = (numbers * marks).sum(1, keepdim=True)
    return _cut(torch.stack((numbers, marks), 2), _standardised(total), rows, 500)


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
    return _cut(torch.cat((waves.sin(), waves.cos()), 1), _standardised(grey)[:, None], rows, 500)


@cache
def flipped_table(rows: int = 240, flipped: float = 0.1) -> Data:
    """Return a table of 20 columns, 6 of them useful, three classes, some labels wrong."""
    x, y = datasets.make_classification(
        n_samples=rows + 400, n_features=20, n_informative=6, n_redundant=4, n_classes=3, flip_y=flipped,
        class_sep=1.2, random_state=_SEED,
    )  # fmt: skip
    inputs = torch.tensor(np.asarray(x), dtype=torch.float32)
    inputs = (inputs - inputs[:rows].mean(0)) / inputs[:rows].std(0)
    return _cut(inputs, torch.tensor(np.asarray(y), dtype=torch.int64), rows, 200)


@cache
def moons(rows: int = 800, noise: float = 0.25) -> Data:
    """Return two interleaved half circles, blurred."""
    x, y = datasets.make_moons(n_samples=rows + 1000, noise=noise, random_state=_SEED)
    return _cut(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.int64), rows, 500)


@cache
def noisy_images(noise: float = 0.4) -> Data:
    """Return the digits' images with Gaussian noise as input and without as target."""
    clean = digits_images()
    generator = torch.Generator().manual_seed(_SEED + 3)

    def part(split: Split) -> Split:
        return Split(split.inputs + noise * torch.randn(split.inputs.shape, generator=generator), split.inputs)

    return Data(part(clean.train), part(clean.validation), part(clean.test))


@cache
def relu_teacher(inputs: int = 12, rows: int = 1500, noise: float = 0.2) -> Data:
    """Return the outputs (2) of a random ReLU network of two hidden layers, standardised, plus noise."""
    generator = torch.Generator().manual_seed(_SEED + 4)
    x = torch.randn(rows + 1000, inputs, generator=generator)
    hidden = x
    for fan_in, fan_out in ((inputs, 24), (24, 24)):
        hidden = torch.relu(hidden @ torch.randn(fan_in, fan_out, generator=generator) * (2.0 / fan_in) ** 0.5)
    y = hidden @ torch.randn(24, 2, generator=generator)
    y = (y - y.mean(0)) / y.std(0)
    return _cut(x, y + noise * torch.randn(y.shape, generator=generator), rows, 500)
