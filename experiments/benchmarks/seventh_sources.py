"""Data of what was the seventh confirmation list."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor

from lipadvisor.experiments.benchmarks.sources import digits_images
from lipadvisor.experiments.benchmarks.splits import character_windows, cut, each, standardised
from lipadvisor.experiments.workloads import Data, Split

__all__ = [
    "MARKS",
    "ellipses",
    "ghosts",
    "importers",
    "lookup_teacher",
    "nearest",
    "parsers",
    "poles",
    "preferences_table",
    "pressure_table",
    "regimes_table",
    "rings",
    "salted_patches",
    "tumours_table",
    "waiting_table",
]

_SEED = 1_370_429  # of every set here
MARKS = 54  # characters of the texts: the most frequent ones, the rest are one symbol


def _generator(place: int) -> torch.Generator:
    return torch.Generator().manual_seed(_SEED + place)


def _uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


@cache
def ghosts(flat: bool = False, mistaken: float = 0.0) -> Data:
    """Return the digits, each with a fainter one behind it; the label is that of the brighter.

    Args:
        flat: rows of 64 pixels instead of images (1, 8, 8).
        mistaken: share of the *training* rows whose label is that of the fainter one.
    """
    clean, generator = digits_images(), _generator(0)
    darkest = float(clean.train.inputs.min())

    def part(split: Split, share: float) -> Split:
        count = len(split.inputs)
        behind = torch.randperm(count, generator=generator)
        faint = _uniform(0.25, 0.55, count, generator)[:, None, None, None]
        images = torch.maximum(split.inputs, darkest + faint * (split.inputs[behind] - darkest))
        wrong = torch.rand(count, generator=generator) < share
        labels = torch.where(wrong, split.targets[behind], split.targets)
        return Split(images.flatten(1) if flat else images, labels)

    return Data(part(clean.train, mistaken), part(clean.validation, 0.0), part(clean.test, 0.0))


def _noisy(images: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Return ``images`` with mean 0 and variance 1, both before and after the noise."""
    images = (images - images.mean()) / images.std()
    seen: Tensor = (images + noise * torch.randn(images.shape, generator=generator)) / (1.0 + noise**2) ** 0.5
    return seen


def _from(centre: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows (n, 8, 1) and columns (n, 1, 8) of pixels, counted from ``centre`` (n, 2)."""
    place = torch.arange(8.0)
    return place[:, None] - centre[:, 0, None, None], place - centre[:, 1, None, None]


@cache
def rings(flat: bool = False, rows: int = 1300, noise: float = 0.3) -> Data:
    """Return images (1, 8, 8) of open rings in noise, of any size and place; in which of ten directions the gap is."""
    generator, count = _generator(1), rows + 800
    gap = torch.randint(0, 10, (count,), generator=generator)
    toward = torch.pi / 5.0 * (gap + _uniform(-0.3, 0.3, count, generator))[:, None, None]
    down, right = _from(2.7 + 1.6 * torch.rand(count, 2, generator=generator))
    radius, stroke, half = (
        _uniform(low, high, count, generator)[:, None, None] for low, high in ((1.8, 2.6), (0.5, 0.8), (0.5, 0.75))
    )
    off = (down.square() + right.square()).sqrt() - radius
    inside = torch.cos(torch.atan2(down, right) - toward) - half.cos()  # the gap: positive
    images = _noisy(torch.exp(-0.5 * (off / stroke).square()) * torch.sigmoid(-8.0 * inside), noise, generator)
    return cut(images.flatten(1) if flat else images[:, None], gap, rows, 400)


@cache
def ellipses(flat: bool = False, rows: int = 1200, copies: bool = False) -> Data:
    """Return images (1, 8, 8) of an ellipse in noise; to which of six directions its longer axis is turned.

    Args:
        flat: rows of 64 pixels instead of images.
        rows: of training.
        copies: the pixels are the target.
    """
    generator, count = _generator(2), rows + 800
    turned = torch.randint(0, 6, (count,), generator=generator)
    angle = torch.pi / 6.0 * (turned + _uniform(-0.35, 0.35, count, generator))[:, None, None]
    down, right = _from(2.7 + 1.6 * torch.rand(count, 2, generator=generator))
    longer = _uniform(2.2, 3.2, count, generator)[:, None, None]
    shorter = longer * _uniform(0.35, 0.55, count, generator)[:, None, None]
    bright = _uniform(0.7, 1.3, count, generator)[:, None, None]
    along, across = down * angle.sin() + right * angle.cos(), down * angle.cos() - right * angle.sin()
    far = ((along / longer).square() + (across / shorter).square()).sqrt()
    images = _noisy(bright * torch.sigmoid(5.0 * (1.0 - far)), 0.3, generator)
    pixels = images.flatten(1)
    return cut(pixels if flat else images[:, None], pixels if copies else turned, rows, 400)


@cache
def salted_patches(salted: float = 0.3) -> Data:
    """Return 4 x 4 patches of the digits' ghosts, a share of the pixels made black or white, and whole: (n, 16)."""
    generator = _generator(3)
    whole = ghosts()
    black, white = float(whole.train.inputs.min()), float(whole.train.inputs.max())

    def part(split: Split) -> Split:
        patches = split.inputs[:, 0].unfold(1, 4, 2).unfold(2, 4, 2).reshape(-1, 16)
        hit, light = torch.rand(2, *patches.shape, generator=generator)
        salt = torch.where(light < 0.5, black, white)
        return Split(torch.where(hit < salted, salt, patches), patches)

    found = each(whole, part)
    held_out = [Split(split.inputs[:1500], split.targets[:1500]) for split in (found.validation, found.test)]
    return Data(found.train, *held_out)


@cache
def importers(length: int, windows: int = 5000, held_out: int = 300) -> Data:
    """Return windows of ``length`` characters of the source of what finds, loads and compiles modules, one ahead."""
    groups = (
        ("importlib/_bootstrap_external", "importlib/_bootstrap", "pkgutil", "runpy", "modulefinder", "zipimport",
         "pickletools", "_pyio"),
        ("pyclbr", "tabnanny"),
        ("compileall", "py_compile"),
    )  # fmt: skip
    return character_windows(groups, length=length, symbols=MARKS, windows=windows, held_out=held_out, seed=_SEED + 4)


@cache
def parsers(length: int, windows: int = 5000, held_out: int = 300) -> Data:
    """Return windows of ``length`` characters of the source of parsers for mail and markup, read backwards."""
    groups = (
        ("xml/etree/ElementTree", "xml/dom/expatbuilder", "xml/sax/xmlreader", "email/_header_value_parser",
         "email/feedparser", "email/generator", "urllib/parse"),
        ("xml/dom/pulldom", "email/parser"),
        ("xml/sax/expatreader", "email/charset"),
    )  # fmt: skip
    return character_windows(
        groups, length=length, symbols=MARKS, windows=windows, held_out=held_out, seed=_SEED + 5,
        fold=lambda text: text[::-1],
    )  # fmt: skip


@cache
def lookup_teacher(inputs: int, noise: float, rows: int = 1500) -> Data:
    """Return what a random attention over eight keys looks up, standardised, plus noise."""
    generator = _generator(6)
    x = torch.randn(rows + 1000, inputs, generator=generator)
    keys, values = torch.randn(inputs, 8, generator=generator), torch.randn(8, 1, generator=generator)
    y = standardised(torch.softmax(3.0 * x @ keys / inputs**0.5, 1) @ values)
    return cut(x, y + noise * torch.randn(y.shape, generator=generator), rows, 500)


@cache
def poles(variables: int, noise: float = 0.01, rows: int = 1100) -> Data:
    """Return a plane divided by the distance from a place, and a wave of a product, as a function of some variables."""
    generator = _generator(7)
    x = 2.0 * torch.rand(rows + 1000, variables, generator=generator) - 1.0
    centre = torch.rand(variables, generator=generator) - 0.5
    tilt = torch.randn(variables, generator=generator)
    pole = (x @ (tilt / tilt.norm()) + 0.3) / (0.3 + (x - centre).square().sum(1))
    y = standardised(pole + 0.5 * torch.cos(4.0 * x[:, 0] * x[:, -1]))
    return cut(x * 3.0**0.5, (y + noise * torch.randn(len(y), generator=generator))[:, None], rows, 500)


@cache
def nearest(inputs: int, rows: int, noise: float = 0.2) -> Data:
    """Return which of five centres is the nearest in a bent space, blurred; as many rows as one pass takes."""
    generator = _generator(8)
    x = torch.randn(rows + 1200, inputs, generator=generator)
    bent = torch.tanh(1.5 * x @ torch.randn(inputs, 10, generator=generator) / inputs**0.5)
    centres = 0.6 * torch.randn(5, 10, generator=generator)
    far = (bent[:, None] - centres).square().sum(2)
    far = far + noise * far.std() * torch.randn(far.shape, generator=generator)
    return cut(x, far.argmin(1), rows, 600)


@cache
def preferences_table(rows: int) -> Data:
    """Return nine columns and a choice among three, drawn with the odds that five of the columns give."""
    generator = _generator(9)
    x = torch.randn(rows + 800, 9, generator=generator)
    odds = 1.2 * x[:, [0, 3, 6]] + 0.8 * (x[:, 4] * x[:, 8])[:, None] * torch.tensor([1.0, -1.0, 0.0])
    return cut(x, torch.multinomial(odds.softmax(1), 1, generator=generator)[:, 0], rows, 400)


@cache
def waiting_table(rows: int) -> Data:
    """Return ten columns and the logarithm of a waiting time whose rate four decide, cut off late; standardised."""
    generator = _generator(10)
    x = torch.randn(rows + 800, 10, generator=generator)
    rate = torch.exp(0.8 * x[:, 1] - 0.6 * x[:, 6] + 0.5 * x[:, 3] * x[:, 8])
    time = torch.empty(len(x)).exponential_(generator=generator) / rate
    return cut(x, standardised(torch.log(0.1 + time.clamp_max(4.0)))[:, None], rows, 400)


@cache
def regimes_table(rows: int, noise: float = 0.3) -> Data:
    """Return eight columns and a number that follows some of them in one regime and others in the other."""
    generator = _generator(11)
    x = torch.randn(rows + 800, 8, generator=generator)
    y = torch.where(x[:, 0] + 0.5 * x[:, 5] > 0, x[:, 2] + 0.5 * x[:, 7], x[:, 3] - x[:, 2])
    return cut(x, (standardised(y) + noise * torch.randn(len(y), generator=generator))[:, None], rows, 400)


def _shuffled(columns: np.ndarray, targets: np.ndarray, rows: int, place: int) -> tuple[Tensor, Tensor]:
    """Return columns standardised by the first ``rows``, and targets, in one random order."""
    order = torch.randperm(len(columns), generator=_generator(place))
    x = torch.tensor(np.asarray(columns), dtype=torch.float32)[order]
    return (x - x[:rows].mean(0)) / x[:rows].std(0), torch.tensor(np.asarray(targets))[order]


@cache
def pressure_table(rows: int) -> Data:
    """Return the blood pressure in scikit-learn's diabetes table from the nine other columns."""
    columns, _ = datasets.load_diabetes(return_X_y=True)
    x, _ = _shuffled(columns, columns[:, 3], rows, 12)
    others = [index for index in range(x.shape[1]) if index != 3]
    return cut(x[:, others], x[:, 3:4], rows, (len(x) - rows) // 2)


@cache
def tumours_table(rows: int) -> Data:
    """Return the two classes of scikit-learn's breast cancer table from the errors of its ten measurements alone."""
    columns, classes = datasets.load_breast_cancer(return_X_y=True)
    x, y = _shuffled(columns[:, 10:20], classes, rows, 13)
    return cut(x, y.long(), rows, (len(x) - rows) // 2)
