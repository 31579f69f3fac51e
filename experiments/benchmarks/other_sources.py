"""Data of what was the fifth confirmation list."""

from __future__ import annotations

from functools import cache

import torch
from sklearn import datasets
from torch import Tensor
from torch.nn import functional

from lipadvisor.experiments.benchmarks.sources import digits_images
from lipadvisor.experiments.benchmarks.splits import character_windows, cut, each, relabelled, standardised
from lipadvisor.experiments.workloads import Data, Split

__all__ = [
    "CHARACTERS",
    "alcohol_table",
    "binary_patches",
    "chirp",
    "glyphs",
    "impedance_table",
    "kinks",
    "occluded_digits",
    "packages",
    "rule_table",
    "spots",
    "tools",
    "votes",
]

_SEED = 530_211  # of every set here
CHARACTERS = 60  # of the texts: the most frequent ones, the rest are one symbol


def _generator(place: int) -> torch.Generator:
    return torch.Generator().manual_seed(_SEED + place)


@cache
def occluded_digits(flat: bool = False, confused: float = 0.0) -> Data:
    """Return the digits, each with a field of 3 x 3 pixels covered and its own contrast.

    Args:
        flat: rows of 64 pixels instead of images (1, 8, 8).
        confused: share of the *training* labels that are taken for their mirror image, nine minus the label.
    """
    clean, generator = digits_images(), _generator(0)

    def part(split: Split) -> Split:
        count = len(split.inputs)
        corner = torch.randint(0, 6, (2, count, 1), generator=generator)
        row, column = ((torch.arange(8) - corner[axis]).clamp(-1, 3) for axis in range(2))
        covered = ((row >= 0) & (row < 3))[:, :, None] & ((column >= 0) & (column < 3))[:, None, :]
        contrast = 0.6 + 0.8 * torch.rand(count, 1, 1, 1, generator=generator)
        images = split.inputs.masked_fill(covered[:, None], 0.0) * contrast
        return Split(images.flatten(1) if flat else images, split.targets)

    whole = each(clean, part)
    labels = whole.train.targets
    mirrored = torch.where(torch.rand(len(labels), generator=generator) < confused, 9 - labels, labels)
    return Data(Split(whole.train.inputs, mirrored), whole.validation, whole.test)


@cache
def glyphs(flat: bool = False, rows: int = 1300, noise: float = 0.8) -> Data:
    """Return images (1, 8, 8): one of ten smooth random signs, moved round and unevenly lit, in noise; the sign."""
    generator = _generator(1)
    count = rows + 800
    signs = _smooth(10, generator)
    label = torch.randint(0, 10, (count,), generator=generator)
    moved = torch.randint(-1, 2, (count, 2), generator=generator).tolist()
    images = torch.stack([signs[sign].roll((up, left), (0, 1)) for sign, (up, left) in
                          zip(label.tolist(), moved, strict=True)])  # fmt: skip
    images = images * (1.0 + 0.3 * _smooth(count, generator))
    images = (images + noise * torch.randn(images.shape, generator=generator)) / (1.0 + noise**2) ** 0.5
    return cut(images.flatten(1) if flat else images[:, None], label, rows, 400)


def _smooth(count: int, generator: torch.Generator) -> Tensor:
    """Return random fields (count, 8, 8) without detail, each of variance 1."""
    coarse = torch.randn(count, 1, 4, 4, generator=generator)
    fields = functional.interpolate(coarse, size=8, mode="bilinear", align_corners=True)[:, 0]
    return fields / fields.flatten(1).std(1)[:, None, None]


@cache
def spots(flat: bool = False, rows: int = 1200, copies: bool = False) -> Data:
    """Return images (1, 8, 8) of one to six round spots; their number less one, or the pixels, as target."""
    generator = _generator(2)
    count = rows + 800
    number = torch.randint(0, 6, (count,), generator=generator)
    centre = 1.0 + 5.0 * torch.rand(count, 6, 2, generator=generator)
    radius = 0.6 + 0.4 * torch.rand(count, 6, 1, 1, generator=generator)
    bright = 0.8 + 0.4 * torch.rand(count, 6, 1, 1, generator=generator)
    shown = torch.arange(6) <= number[:, None]
    place = torch.arange(8.0)
    square = (place[:, None] - centre[..., 0, None, None]).square() + (place - centre[..., 1, None, None]).square()
    images = (shown[..., None, None] * bright * torch.exp(-square / (2.0 * radius**2))).sum(1)
    images = (images + 0.05 * torch.randn(images.shape, generator=generator) - images.mean()) / images.std()
    pixels = images.flatten(1)
    return cut(pixels if flat else images[:, None], pixels if copies else number, rows, 400)


@cache
def binary_patches() -> Data:
    """Return 4 x 4 patches of the digits as black and white, each at a threshold of its own, and grey: (n, 16)."""
    generator = _generator(3)

    def part(split: Split) -> Split:
        patches = split.inputs[:, 0].unfold(1, 4, 2).unfold(2, 4, 2).reshape(-1, 16)
        threshold = 0.5 * torch.randn(len(patches), 1, generator=generator)
        return Split((patches > threshold).float() * 2.0 - 1.0, patches)

    whole = each(digits_images(), part)
    held_out = [Split(split.inputs[:1500], split.targets[:1500]) for split in (whole.validation, whole.test)]
    return Data(whole.train, *held_out)


@cache
def packages(length: int, windows: int = 5000, held_out: int = 300) -> Data:
    """Return windows of ``length`` characters of asyncio's and multiprocessing's source, one ahead as target."""
    groups = (
        ("asyncio/base_events", "asyncio/tasks", "asyncio/streams", "asyncio/events", "multiprocessing/pool",
         "multiprocessing/managers", "multiprocessing/context", "urllib/request"),
        ("asyncio/queues", "asyncio/locks"),
        ("multiprocessing/queues", "multiprocessing/synchronize"),
    )  # fmt: skip
    return character_windows(
        groups, length=length, symbols=CHARACTERS, windows=windows, held_out=held_out, seed=_SEED + 4
    )


@cache
def tools(length: int, windows: int = 5000, held_out: int = 300) -> Data:
    """Return windows of ``length`` characters of the tools for source itself, lower and upper case exchanged."""
    groups = (
        ("typing", "tokenize", "traceback", "enum", "functools", "dataclasses", "fractions", "platform"),
        ("plistlib", "linecache"),
        ("shutil", "sched"),
    )
    return character_windows(
        groups, length=length, symbols=CHARACTERS, windows=windows, held_out=held_out, seed=_SEED + 5,
        fold=str.swapcase,
    )  # fmt: skip


@cache
def kinks(inputs: int, noise: float, rows: int = 1500) -> Data:
    """Return the larger of some random linear forms less the larger of others, standardised, plus noise."""
    generator = _generator(6)
    x = torch.randn(rows + 1000, inputs, generator=generator)
    forms = torch.randn(2, inputs, 5, generator=generator) / inputs**0.5
    offsets = 0.5 * torch.randn(2, 1, 5, generator=generator)
    upper, lower = (x @ forms + offsets).amax(2)
    y = standardised(upper - lower) + noise * torch.randn(len(x), generator=generator)
    return cut(x, y[:, None], rows, 500)


@cache
def chirp(variables: int, noise: float = 0.01, rows: int = 1100) -> Data:
    """Return a wave that grows shorter along one direction, under a bell, as a function of some variables."""
    generator = _generator(7)
    x = 2.0 * torch.rand(rows + 1000, variables, generator=generator) - 1.0
    along = torch.randn(variables, generator=generator)
    place = x @ (along / along.norm())
    y = torch.cos(2.0 * (place + 1.0) ** 2) * torch.exp(-0.5 * x.square().mean(1)) + 0.5 * x[:, 0] * x[:, -1]
    y = standardised(y)
    return cut(x * 3.0**0.5, (y + noise * torch.randn(len(y), generator=generator))[:, None], rows, 500)


@cache
def votes(inputs: int, rows: int, noise: float = 0.2) -> Data:
    """Return which of four parties wins among fifteen random voters, blurred; as many rows as one pass takes."""
    generator = _generator(8)
    x = torch.randn(rows + 1200, inputs, generator=generator)
    voters = torch.tanh(2.0 * x @ torch.randn(inputs, 15, generator=generator) / inputs**0.5)
    support = voters @ torch.randn(15, 4, generator=generator)
    support = support + noise * support.std() * torch.randn(support.shape, generator=generator)
    return cut(x, support.argmax(1), rows, 600)


@cache
def rule_table(rows: int, wrong: float = 0.08) -> Data:
    """Return twelve columns, half of them yes or no; the class by three rules one after the other, some wrong."""
    generator = _generator(9)
    count = rows + 800
    facts = (torch.rand(count, 6, generator=generator) < 0.5).float() * 2.0 - 1.0
    x = torch.cat((facts, torch.randn(count, 6, generator=generator)), 1)
    both = (x[:, 0] > 0) & (x[:, 6] > 0)
    label = torch.where(both, 0, torch.where(x[:, 7] + 0.5 * x[:, 1] > 0, 1, 2))
    return cut(x, relabelled(label, wrong, 3, generator), rows, 400)


@cache
def impedance_table(rows: int, noise: float = 0.4) -> Data:
    """Return Friedman's second function (an impedance) of four variables and eight columns of noise, standardised."""
    x, y = datasets.make_friedman2(n_samples=rows + 800, noise=0.0, random_state=_SEED)
    generator = _generator(10)
    useful = standardised(torch.tensor(x, dtype=torch.float32))
    inputs = torch.cat((torch.randn(len(useful), 8, generator=generator), useful), 1)
    target = standardised(torch.tensor(y, dtype=torch.float32))
    return cut(inputs, (target + noise * torch.randn(len(target), generator=generator))[:, None], rows, 400)


@cache
def alcohol_table(rows: int = 90) -> Data:
    """Return the alcohol in wines from the other twelve columns of scikit-learn's table, standardised."""
    x, _ = datasets.load_wine(return_X_y=True)
    columns = torch.tensor(x, dtype=torch.float32)[torch.randperm(len(x), generator=_generator(11))]
    columns = (columns - columns[:rows].mean(0)) / columns[:rows].std(0)
    return cut(columns[:, 1:], columns[:, :1], rows, (len(columns) - rows) // 2)
