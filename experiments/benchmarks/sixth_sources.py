"""Data of what was the sixth confirmation list."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor
from torch.nn import functional

from lipadvisor.experiments.benchmarks.sources import digits_images
from lipadvisor.experiments.benchmarks.splits import character_windows, cut, each, relabelled, standardised
from lipadvisor.experiments.workloads import Data, Split

__all__ = [
    "GLYPHS",
    "bearings",
    "cells_table",
    "checks_table",
    "clusters_table",
    "coarse_patches",
    "counts_table",
    "debuggers",
    "folds",
    "orders",
    "segments",
    "serum_table",
    "services",
    "tree_teacher",
    "turned_digits",
]

_SEED = 846_053  # of every set here
GLYPHS = 52  # characters of the texts: the most frequent ones, the rest are one symbol
_CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (2.0, 0.0), (2.0, 1.0))  # row and column of a display's
_BARS = ((0, 1), (1, 3), (3, 5), (4, 5), (2, 4), (0, 2), (2, 3))  # between which corners, a to g
_LIT = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")  # by digit


def _generator(place: int) -> torch.Generator:
    return torch.Generator().manual_seed(_SEED + place)


def _uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


@cache
def turned_digits(flat: bool = False, borrowed: float = 0.0) -> Data:
    """Return the digits, each turned by up to 25 degrees either way.

    Args:
        flat: rows of 64 pixels instead of images (1, 8, 8).
        borrowed: share of the *training* rows whose label is that of another row.
    """
    clean, generator = digits_images(), _generator(0)
    darkest = float(clean.train.inputs.min())  # what is turned in from outside is background

    def part(split: Split) -> Split:
        angle = _uniform(-25.0, 25.0, len(split.inputs), generator) * (torch.pi / 180.0)
        zero = torch.zeros_like(angle)
        turns = torch.stack((angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero), 1).view(-1, 2, 3)
        places = functional.affine_grid(turns, list(split.inputs.shape), align_corners=False)
        images = functional.grid_sample(split.inputs - darkest, places, align_corners=False) + darkest
        return Split(images.flatten(1) if flat else images, split.targets)

    whole = each(clean, part)
    labels = whole.train.targets
    others = labels[torch.randperm(len(labels), generator=generator)]
    mixed = torch.where(torch.rand(len(labels), generator=generator) < borrowed, others, labels)
    return Data(Split(whole.train.inputs, mixed), whole.validation, whole.test)


@cache
def segments(flat: bool = False, rows: int = 1300, noise: float = 0.3) -> Data:
    """Return images (1, 8, 8) of displays of seven bars, slanted, of any size and place, in noise; the digit shown."""
    generator, count = _generator(1), rows + 800
    digit = torch.randint(0, 10, (count,), generator=generator)
    height, width = _uniform(2.0, 2.8, count, generator), _uniform(2.4, 3.6, count, generator)
    top, left = _uniform(0.4, 1.6, count, generator), _uniform(1.0, 2.6, count, generator)
    slant = _uniform(-0.5, 0.5, count, generator)
    row, column = torch.tensor(_CORNERS).unbind(1)
    corners = torch.stack(
        (top[:, None] + height[:, None] * row,
         left[:, None] + width[:, None] * column + slant[:, None] * (row - 1.0)), 2,
    )  # fmt: skip
    start, end = (corners[:, [bar[side] for bar in _BARS]][:, :, None, None] for side in (0, 1))
    pixels = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"), 2)
    along = (((pixels - start) * (end - start)).sum(-1) / (end - start).square().sum(-1)).clamp(0.0, 1.0)
    far = (pixels - start - along[..., None] * (end - start)).square().sum(-1)  # (count, bars, 8, 8)
    lit = torch.tensor([[float(bar in digits) for bar in "abcdefg"] for digits in _LIT])[digit]
    bright = 0.6 + 0.8 * torch.rand(count, len(_BARS), generator=generator)
    images = ((lit * bright)[..., None, None] * torch.exp(-2.0 * far)).amax(1)
    images = (images - images.mean()) / images.std()
    images = (images + noise * torch.randn(images.shape, generator=generator)) / (1.0 + noise**2) ** 0.5
    return cut(images.flatten(1) if flat else images[:, None], digit, rows, 400)


@cache
def bearings(flat: bool = False, rows: int = 1200, copies: bool = False) -> Data:
    """Return images (1, 8, 8) of a light and a dark spot in noise; in which of eight directions the dark one lies.

    Args:
        flat: rows of 64 pixels instead of images.
        rows: of training.
        copies: the pixels are the target.
    """
    generator, count = _generator(2), rows + 800
    direction = torch.randint(0, 8, (count,), generator=generator)
    angle = torch.pi / 4.0 * (direction + _uniform(-0.35, 0.35, count, generator))
    far = _uniform(1.4, 2.6, count, generator)
    light = 2.5 + 2.0 * torch.rand(count, 2, generator=generator)
    dark = light + far[:, None] * torch.stack((angle.cos(), angle.sin()), 1)
    images = _spot(light, _uniform(0.9, 1.4, count, generator)) - _spot(dark, _uniform(0.6, 0.9, count, generator))
    images = images / images.std()
    images = (images + 0.3 * torch.randn(images.shape, generator=generator)) / (1.0 + 0.3**2) ** 0.5
    pixels = images.flatten(1)
    return cut(pixels if flat else images[:, None], pixels if copies else direction, rows, 400)


def _spot(centre: Tensor, radius: Tensor) -> Tensor:
    """Return images (n, 8, 8) of a round spot each; ``centre`` (n, 2), ``radius`` (n,), in pixels."""
    place = torch.arange(8.0)
    square = (place[:, None] - centre[:, 0, None, None]).square() + (place - centre[:, 1, None, None]).square()
    return torch.exp(-square / (2.0 * radius[:, None, None].square()))


@cache
def coarse_patches(noise: float = 0.1) -> Data:
    """Return 4 x 4 patches of the turned digits averaged over 2 x 2 pixels, with noise, and sharp: (n, 16) each."""
    generator = _generator(3)

    def part(split: Split) -> Split:
        patches = split.inputs[:, 0].unfold(1, 4, 2).unfold(2, 4, 2).reshape(-1, 1, 4, 4)
        coarse = functional.avg_pool2d(patches, 2)
        coarse = coarse + noise * torch.randn(coarse.shape, generator=generator)
        return Split(coarse.repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(1), patches.flatten(1))

    whole = each(turned_digits(), part)
    held_out = [Split(split.inputs[:1500], split.targets[:1500]) for split in (whole.validation, whole.test)]
    return Data(whole.train, *held_out)


@cache
def debuggers(length: int, windows: int = 5000, held_out: int = 300) -> Data:
    """Return windows of ``length`` characters of the source of tools that look at code, one ahead as target."""
    groups = (("pdb", "bdb", "pydoc", "trace", "dis", "pprint", "cmd", "contextlib"), ("code", "timeit"),
              ("pstats", "symtable"))  # fmt: skip
    return character_windows(groups, length=length, symbols=GLYPHS, windows=windows, held_out=held_out, seed=_SEED + 4)


@cache
def services(length: int, windows: int = 5000, held_out: int = 300) -> Data:
    """Return windows of ``length`` characters of the source of files and services, in lower case."""
    groups = (
        ("xmlrpc/client", "xmlrpc/server", "wsgiref/handlers", "html/parser", "tempfile", "os", "mimetypes", "gzip"),
        ("webbrowser", "csv"),
        ("posixpath", "wsgiref/headers"),
    )
    return character_windows(
        groups, length=length, symbols=GLYPHS, windows=windows, held_out=held_out, seed=_SEED + 5, fold=str.lower
    )


@cache
def tree_teacher(inputs: int, noise: float, rows: int = 1500) -> Data:
    """Return the value that a random tree of three soft decisions in a row gives, standardised, plus noise."""
    generator = _generator(6)
    x = torch.randn(rows + 1000, inputs, generator=generator)
    share = torch.ones(len(x), 1)  # of each node of a level
    for nodes in (1, 2, 4):
        turn = 3.0 * x @ torch.randn(inputs, nodes, generator=generator) / inputs**0.5
        left = torch.sigmoid(turn + torch.randn(nodes, generator=generator))
        share = torch.cat((share * left, share * (1.0 - left)), 1)
    y = standardised(share @ torch.randn(8, 1, generator=generator))
    return cut(x, y + noise * torch.randn(y.shape, generator=generator), rows, 500)


@cache
def folds(variables: int, noise: float = 0.01, rows: int = 1100) -> Data:
    """Return a step that is not quite sharp across waves, and a saddle, as a function of some variables."""
    generator = _generator(7)
    x = 2.0 * torch.rand(rows + 1000, variables, generator=generator) - 1.0
    across, along = functional.normalize(torch.randn(2, variables, generator=generator), dim=1)
    y = torch.atan(4.0 * x @ across) * (1.0 + 0.5 * torch.sin(4.0 * x @ along)) + x[:, 0].square() - x[:, -1].square()
    y = standardised(y)
    return cut(x * 3.0**0.5, (y + noise * torch.randn(len(y), generator=generator))[:, None], rows, 500)


@cache
def orders(inputs: int, rows: int, noise: float = 0.2) -> Data:
    """Return in which of six orders three random functions stand, blurred; as many rows as one pass takes."""
    generator = _generator(8)
    x = torch.randn(rows + 1200, inputs, generator=generator)
    hidden = torch.sin(1.2 * x @ torch.randn(inputs, 12, generator=generator) / inputs**0.5)
    values = hidden @ torch.randn(12, 3, generator=generator)
    values = values + noise * values.std() * torch.randn(values.shape, generator=generator)
    ranks = values.argsort(1)
    return cut(x, 2 * ranks[:, 0] + (ranks[:, 1] > ranks[:, 2]).long(), rows, 600)


@cache
def checks_table(rows: int, wrong: float = 0.1) -> Data:
    """Return ten columns; the class by the sign of a product of two and a share of a third, some drawn anew."""
    generator = _generator(9)
    x = torch.randn(rows + 800, 10, generator=generator)
    label = (x[:, 2] * x[:, 7] + 0.5 * x[:, 4] > 0).long()
    return cut(x, relabelled(label, wrong, 2, generator), rows, 400)


@cache
def clusters_table(rows: int) -> Data:
    """Return five overlapping clusters in four columns and six columns of noise; the cluster."""
    x, y, *_ = datasets.make_blobs(
        n_samples=rows + 800, n_features=4, centers=5, cluster_std=2.5, center_box=(-5.0, 5.0), random_state=_SEED
    )
    generator = _generator(10)
    useful = standardised(torch.tensor(np.asarray(x), dtype=torch.float32))
    inputs = torch.cat((useful, torch.randn(len(useful), 6, generator=generator)), 1)
    return cut(inputs, torch.tensor(np.asarray(y), dtype=torch.int64), rows, 400)


@cache
def counts_table(rows: int) -> Data:
    """Return nine columns and the logarithm of one more than a count whose rate three of them decide, standardised."""
    generator = _generator(11)
    x = torch.randn(rows + 800, 9, generator=generator)
    rate = torch.exp(0.8 + 0.6 * x[:, 1] - 0.5 * x[:, 5] + 0.4 * x[:, 1] * x[:, 8])
    y = standardised(torch.log1p(torch.poisson(rate.clamp_max(60.0), generator=generator)))
    return cut(x, y[:, None], rows, 400)


def _bundled(columns: Tensor, target: int, used: slice, rows: int, place: int) -> Data:
    """Return column ``target`` from the columns ``used``, rows shuffled, all standardised by the training rows."""
    columns = columns[torch.randperm(len(columns), generator=_generator(place))]
    columns = (columns - columns[:rows].mean(0)) / columns[:rows].std(0)
    kept = [index for index in range(columns.shape[1])[used] if index != target]
    return cut(columns[:, kept], columns[:, target : target + 1], rows, (len(columns) - rows) // 2)


@cache
def serum_table(rows: int) -> Data:
    """Return a serum measurement (``s5``) of scikit-learn's diabetes table from the nine other columns."""
    x, _ = datasets.load_diabetes(return_X_y=True)
    return _bundled(torch.tensor(np.asarray(x), dtype=torch.float32), 8, slice(None), rows, 12)


@cache
def cells_table(rows: int) -> Data:
    """Return the worst fractal dimension in scikit-learn's breast cancer table from the means of ten measurements."""
    x, _ = datasets.load_breast_cancer(return_X_y=True)
    return _bundled(torch.tensor(np.asarray(x), dtype=torch.float32), 29, slice(0, 10), rows, 13)
