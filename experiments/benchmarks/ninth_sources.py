"""Data of the confirmation list that the design list does not have."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor
from torch.nn import functional

from lipadvisor.experiments.benchmarks.sources import digits_images
from lipadvisor.experiments.benchmarks.splits import character_windows, cut, each, standardised
from lipadvisor.experiments.workloads import Data, Split

__all__ = [
    "KEYS",
    "compactness_table",
    "containers",
    "gaps_table",
    "gates_teacher",
    "inverted_patches",
    "moon_phases",
    "orbit",
    "parity_table",
    "processes",
    "rippled_digits",
    "sectors",
    "uneven_table",
    "waveform_table",
    "weaves",
]

_SEED = 2_417_039  # of every set here; none of them is shared with the design list
KEYS = 50  # characters of the texts: the most frequent ones, the rest are one symbol
_WEAVES = (
    "XXX/.../...", "X../X../X..", "X../.X./..X", "..X/.X./X..", "X../.../...", "XX./XX./...", "XX./X../...",
    "XX./.X./...", ".X./XXX/.X.", "XXX/X../...",
)  # fmt: skip


def _generator(place: int) -> torch.Generator:
    return torch.Generator().manual_seed(_SEED + place)


def _uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


@cache
def rippled_digits(flat: bool = False, wrong: float = 0.0) -> Data:
    """Return the digits, the rows of each displaced sideways by a wave of its own.

    Args:
        flat: rows of 64 pixels instead of images (1, 8, 8).
        wrong: share of the *training* rows with another label, any of the nine; about those with the highest waves.
    """
    clean, generator = digits_images(), _generator(0)
    darkest = float(clean.train.inputs.min())  # what is drawn in from outside is background
    heights: list[Tensor] = []  # of the waves, in pixels

    def part(split: Split) -> Split:
        count = len(split.inputs)
        heights.append(_uniform(0.0, 1.4, count, generator))
        pace, phase = _uniform(0.6, 1.2, count, generator), _uniform(0.0, 2.0 * torch.pi, count, generator)
        wave = heights[-1][:, None] * torch.sin(pace[:, None] * torch.arange(8.0) + phase[:, None])
        places = functional.affine_grid(torch.eye(2, 3).expand(count, 2, 3), [count, 1, 8, 8], align_corners=False)
        moved = torch.stack((0.25 * wave[:, :, None].expand(count, 8, 8), torch.zeros(count, 8, 8)), 3)
        images = functional.grid_sample(split.inputs - darkest, places + moved, align_corners=False) + darkest
        return Split(images.flatten(1) if flat else images, split.targets)

    whole = each(clean, part)
    labels = whole.train.targets
    bent = heights[0] + 0.3 * torch.randn(len(labels), generator=generator)
    others = (labels + torch.randint(1, 10, labels.shape, generator=generator)) % 10
    mixed = torch.where(bent.argsort(descending=True).argsort() < round(wrong * len(labels)), others, labels)
    return Data(Split(whole.train.inputs, mixed), whole.validation, whole.test)


def _noisy(images: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Return ``images`` with mean 0 and variance 1, both before and after the noise."""
    images = (images - images.mean()) / images.std()
    seen: Tensor = (images + noise * torch.randn(images.shape, generator=generator)) / (1.0 + noise**2) ** 0.5
    return seen


@cache
def weaves(flat: bool = False, rows: int = 1300, noise: float = 0.9) -> Data:
    """Return images (1, 8, 8) of a pattern of 3 x 3 pixels over and over, begun anywhere, in noise; which of ten."""
    generator, count = _generator(1), rows + 800
    patterns = torch.tensor([[[float(pixel == "X") for pixel in row] for row in w.split("/")] for w in _WEAVES])
    kind = torch.randint(0, len(_WEAVES), (count,), generator=generator)
    begun = torch.randint(0, 3, (count, 2), generator=generator)
    down, right = ((torch.arange(8) + begun[:, axis, None]) % 3 for axis in range(2))
    bright = _uniform(0.7, 1.3, count, generator)[:, None, None]
    images = _noisy(bright * patterns[kind[:, None, None], down[:, :, None], right[:, None, :]], noise, generator)
    return cut(images.flatten(1) if flat else images[:, None], kind, rows, 400)


@cache
def moon_phases(flat: bool = False, rows: int = 1200, copies: bool = False) -> Data:
    """Return images (1, 8, 8) of a moon, lit from one side or the other, in noise; which of six shares of it is lit.

    Args:
        flat: rows of 64 pixels instead of images.
        rows: of training.
        copies: the pixels are the target.
    """
    generator, count = _generator(2), rows + 800
    phase = torch.randint(0, 6, (count,), generator=generator)
    lit = ((phase + 0.5 + _uniform(-0.3, 0.3, count, generator)) / 6.0)[:, None, None]
    tilt = _uniform(-0.6, 0.6, count, generator)[:, None, None]
    side = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)[:, None, None]
    radius = _uniform(2.2, 3.2, count, generator)[:, None, None]
    centre, place = 2.7 + 1.6 * torch.rand(count, 2, generator=generator), torch.arange(8.0)
    down, right = place[:, None] - centre[:, 0, None, None], side * (place - centre[:, 1, None, None])
    along, across = right * tilt.cos() + down * tilt.sin(), down * tilt.cos() - right * tilt.sin()
    edge = (1.0 - 2.0 * lit) * (radius.square() - across.square()).clamp_min(0.0).sqrt()
    inside = torch.sigmoid(4.0 * (radius - (down.square() + right.square()).sqrt()))
    images = _noisy(inside * (0.1 + 0.9 * torch.sigmoid(4.0 * (along - edge))), 0.3, generator)
    pixels = images.flatten(1)
    return cut(pixels if flat else images[:, None], pixels if copies else phase, rows, 400)


@cache
def inverted_patches(noise: float = 0.2) -> Data:
    """Return 4 x 4 patches of the rippled digits, half of them as negatives, with noise, and as they were: (n, 16)."""
    generator = _generator(3)

    def part(split: Split) -> Split:
        patches = split.inputs[:, 0].unfold(1, 4, 2).unfold(2, 4, 2).reshape(-1, 16)
        sign = torch.where(torch.rand(len(patches), generator=generator) < 0.5, -1.0, 1.0)[:, None]
        return Split(sign * patches + noise * torch.randn(patches.shape, generator=generator), patches)

    found = each(rippled_digits(), part)
    held_out = [Split(split.inputs[:1500], split.targets[:1500]) for split in (found.validation, found.test)]
    return Data(found.train, *held_out)


@cache
def containers(length: int, windows: int = 5000, held_out: int = 300) -> Data:
    """Return windows of ``length`` characters of the source of containers, patterns and settings, one ahead."""
    groups = (
        ("collections/__init__", "_collections_abc", "re/_parser", "re/_compiler", "tomllib/_parser", "re/__init__"),
        ("copy", "types"),
        ("queue", "string"),
    )
    return character_windows(groups, length=length, symbols=KEYS, windows=windows, held_out=held_out, seed=_SEED + 4)


@cache
def processes(length: int, windows: int = 5000, held_out: int = 300) -> Data:
    """Return windows of ``length`` characters of the source of processes and environments, without its vowels."""
    groups = (
        ("asyncio/selector_events", "asyncio/unix_events", "concurrent/futures/process", "multiprocessing/connection",
         "importlib/metadata/__init__", "venv/__init__", "tracemalloc"),
        ("asyncio/futures", "concurrent/futures/thread"),
        ("multiprocessing/process", "asyncio/taskgroups"),
    )  # fmt: skip
    return character_windows(
        groups, length=length, symbols=KEYS, windows=windows, held_out=held_out, seed=_SEED + 5,
        fold=lambda text: re.sub("[aeiouAEIOU]", "", text),
    )  # fmt: skip


@cache
def gates_teacher(inputs: int, noise: float, rows: int = 1500) -> Data:
    """Return a sum of ten random units, each opened by a gate of its own, standardised, plus noise."""
    generator = _generator(6)
    x = torch.randn(rows + 1000, inputs, generator=generator)
    turns = 2.0 * torch.randn(2, inputs, 10, generator=generator) / inputs**0.5
    units, gates = x @ turns + torch.randn(2, 1, 10, generator=generator)
    y = standardised((torch.tanh(units) * torch.sigmoid(2.0 * gates)) @ torch.randn(10, 1, generator=generator))
    return cut(x, y + noise * torch.randn(y.shape, generator=generator), rows, 500)


@cache
def orbit(variables: int, noise: float = 0.01, rows: int = 1100) -> Data:
    """Return how far along its orbit's long axis a body is, by time, eccentricity and tilt, of some variables."""
    generator = _generator(7)
    x = 2.0 * torch.rand(rows + 1000, variables, generator=generator) - 1.0
    along = functional.normalize(torch.randn(variables, generator=generator), dim=0)
    mean, eccentricity = 2.0 * x[:, 0] + x @ along, 0.45 + 0.3 * x[:, 1]
    anomaly = mean
    for _ in range(40):  # Kepler's equation: each round is nearer by the eccentricity at least
        anomaly = mean + eccentricity * torch.sin(anomaly)
    wide = (1.0 - eccentricity.square()).sqrt() * torch.sin(anomaly)
    y = standardised(torch.cos(anomaly) - eccentricity + 0.6 * (1.0 + 0.5 * x[:, -1]) * wide)
    return cut(x * 3.0**0.5, (y + noise * torch.randn(len(y), generator=generator))[:, None], rows, 500)


@cache
def sectors(inputs: int, rows: int, noise: float = 0.2) -> Data:
    """Return to which fifth of a circle two random functions point, blurred; as many rows as one pass takes."""
    generator = _generator(8)
    x = torch.randn(rows + 1200, inputs, generator=generator)
    bent = functional.gelu(2.0 * x @ torch.randn(inputs, 12, generator=generator) / inputs**0.5)
    values = standardised(bent @ torch.randn(12, 2, generator=generator))
    up, right = (values + noise * torch.randn(values.shape, generator=generator)).T
    turn = torch.atan2(up, right) / (2.0 * torch.pi) + 0.5
    return cut(x, (5.0 * turn).long().clamp_max(4), rows, 600)


@cache
def waveform_table(rows: int) -> Data:
    """Return Breiman's waves (1984): 21 places of a mixture of two of three triangles, in noise; which two."""
    generator = _generator(9)
    place, tops = torch.arange(1.0, 22.0), torch.tensor([7.0, 15.0, 11.0])
    triangles = (6.0 - (place - tops[:, None]).abs()).clamp_min(0.0)
    first, second = triangles[[0, 0, 1]], triangles[[1, 2, 2]]
    kind = torch.randint(0, 3, (rows + 800,), generator=generator)
    share = torch.rand(len(kind), 1, generator=generator)
    x = share * first[kind] + (1.0 - share) * second[kind] + torch.randn(len(kind), 21, generator=generator)
    return cut(standardised(x), kind, rows, 400)


@cache
def gaps_table(rows: int, missing: float = 0.2, noise: float = 0.3) -> Data:
    """Return ten columns, a share of the entries missing (0), and a number that five of them decide, plus noise."""
    generator = _generator(10)
    x = torch.randn(rows + 800, 10, generator=generator)
    y = standardised(1.2 * torch.tanh(x[:, 0] + x[:, 3]) + 0.6 * x[:, 6] - 0.5 * x[:, 5] * x[:, 8])
    seen = x * (torch.rand(x.shape, generator=generator) >= missing)
    return cut(seen, (y + noise * torch.randn(len(y), generator=generator))[:, None], rows, 400)


@cache
def uneven_table(rows: int, noise: float = 0.3) -> Data:
    """Return eight columns and a number with noise whose size one of the columns decides."""
    generator = _generator(11)
    x = torch.randn(rows + 800, 8, generator=generator)
    y = standardised(torch.sin(1.5 * x[:, 2]) + 0.4 * x[:, 5].square() - 0.6 * x[:, 0])
    size = noise * torch.exp(0.6 * x[:, 7])
    return cut(x, (y + size * torch.randn(len(y), generator=generator))[:, None], rows, 400)


def _shuffled(columns: np.ndarray, rows: int, place: int) -> tuple[Tensor, Tensor]:
    """Return all columns in one random order of rows, standardised by the first ``rows``, and that order."""
    x = torch.tensor(np.asarray(columns), dtype=torch.float32)
    order = torch.randperm(len(x), generator=_generator(place))
    x = x[order]
    return (x - x[:rows].mean(0)) / x[:rows].std(0), order


@cache
def parity_table(rows: int) -> Data:
    """Return whether a digit of scikit-learn's is odd, from the ink in its eight rows and its inner six columns."""
    images = datasets.load_digits().images
    x, order = _shuffled(np.concatenate((images.sum(2), images.sum(1)[:, 1:7]), 1), rows, 12)
    odd = torch.tensor(datasets.load_digits().target % 2, dtype=torch.int64)[order]
    return cut(x, odd, rows, 400)


@cache
def compactness_table(rows: int) -> Data:
    """Return the error of compactness in scikit-learn's breast cancer table from the ten worst measurements."""
    columns, _ = datasets.load_breast_cancer(return_X_y=True)
    x, _ = _shuffled(columns, rows, 13)
    return cut(x[:, 20:30], x[:, 15:16], rows, (len(x) - rows) // 2)
