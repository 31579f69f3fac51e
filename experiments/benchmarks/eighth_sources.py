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
    "RUNES",
    "arithmetic",
    "bumps_teacher",
    "concavity_table",
    "doses_table",
    "grades_table",
    "lit_balls",
    "paths",
    "pieces",
    "series_table",
    "sexes_table",
    "sloped_patches",
    "stretched_digits",
    "swing",
    "tallies",
]

_SEED = 1_903_877  # of every set here; none of them is shared with the design list
RUNES = 56  # characters of the texts: the most frequent ones, the rest are one symbol
_PIECES = (
    ".XX/XX./.X.", "XX/XX/X.", "XXX/.X./.X.", "X.X/XXX", "X../X../XXX", "X../XX./.XX", ".X./XXX/.X.", "XX./.X./.XX",
    "X.../XXXX", ".X../XXXX",
)  # fmt: skip


def _generator(place: int) -> torch.Generator:
    return torch.Generator().manual_seed(_SEED + place)


def _uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


@cache
def stretched_digits(flat: bool = False, alike: float = 0.0) -> Data:
    """Return the digits, each leaning by its own slope, and stretched its own way along rows and columns.

    Args:
        flat: rows of 64 pixels instead of images (1, 8, 8).
        alike: share of the *training* rows whose label is that of the other digit whose mean looks most like the row.
    """
    clean, generator = digits_images(), _generator(0)
    darkest = float(clean.train.inputs.min())  # what is drawn in from outside is background

    def part(split: Split) -> Split:
        count = len(split.inputs)
        wide, high = (torch.exp(_uniform(-0.25, 0.25, count, generator)) for _ in range(2))
        lean, zero = _uniform(-0.4, 0.4, count, generator), torch.zeros(count)
        maps = torch.stack((wide, lean, zero, zero, high, zero), 1).view(-1, 2, 3)
        places = functional.affine_grid(maps, list(split.inputs.shape), align_corners=False)
        images = functional.grid_sample(split.inputs - darkest, places, align_corners=False) + darkest
        return Split(images.flatten(1) if flat else images, split.targets)

    whole = each(clean, part)
    pixels, labels = whole.train.inputs.flatten(1), whole.train.targets
    means = torch.stack([pixels[labels == digit].mean(0) for digit in range(10)])
    far = (pixels[:, None] - means).square().sum(2).scatter(1, labels[:, None], torch.inf)
    mixed = torch.where(torch.rand(len(labels), generator=generator) < alike, far.argmin(1), labels)
    return Data(Split(whole.train.inputs, mixed), whole.validation, whole.test)


def _noisy(images: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Return ``images`` with mean 0 and variance 1, both before and after the noise."""
    images = (images - images.mean()) / images.std()
    seen: Tensor = (images + noise * torch.randn(images.shape, generator=generator)) / (1.0 + noise**2) ** 0.5
    return seen


def _drawn(piece: str, mirrored: bool) -> tuple[Tensor, int, int]:
    """Return a piece in the corner of an image (8, 8), two pixels a square, with its rows and columns of pixels."""
    squares = torch.tensor([[float(square == "X") for square in row] for row in piece.split("/")])
    squares = squares.flip(1) if mirrored else squares
    pixels = squares.repeat_interleave(2, 0).repeat_interleave(2, 1)
    rows, columns = pixels.shape
    return functional.pad(pixels, (0, 8 - columns, 0, 8 - rows)), rows, columns


@cache
def pieces(flat: bool = False, rows: int = 1300, noise: float = 0.6) -> Data:
    """Return images (1, 8, 8) of five joined squares, mirrored or not, at any place, in noise; which of ten kinds."""
    generator, count = _generator(1), rows + 800
    drawn = [_drawn(piece, mirrored) for piece in _PIECES for mirrored in (False, True)]
    images = torch.stack([image for image, *_ in drawn])
    sizes = torch.tensor([size for _, *size in drawn])
    kind = torch.randint(0, len(drawn), (count,), generator=generator)
    corner = (torch.rand(count, 2, generator=generator) * (9 - sizes[kind])).long()
    down, right = ((torch.arange(8) - corner[:, axis, None]) % 8 for axis in range(2))
    bright = _uniform(0.7, 1.3, count, generator)[:, None, None]
    seen = _noisy(bright * images[kind[:, None, None], down[:, :, None], right[:, None, :]], noise, generator)
    return cut(seen.flatten(1) if flat else seen[:, None], kind // 2, rows, 400)


@cache
def lit_balls(flat: bool = False, rows: int = 1200, copies: bool = False) -> Data:
    """Return images (1, 8, 8) of a ball under a lamp, in noise; from which of seven sides the light comes.

    Args:
        flat: rows of 64 pixels instead of images.
        rows: of training.
        copies: the pixels are the target.
    """
    generator, count = _generator(2), rows + 800
    side = torch.randint(0, 7, (count,), generator=generator)
    angle = 2.0 * torch.pi / 7.0 * (side + _uniform(-0.3, 0.3, count, generator))[:, None, None]
    height = _uniform(0.3, 1.0, count, generator)[:, None, None]  # of the lamp, radians
    radius = _uniform(2.0, 3.2, count, generator)[:, None, None]
    centre, place = 2.7 + 1.6 * torch.rand(count, 2, generator=generator), torch.arange(8.0)
    down, right = (place[:, None] - centre[:, 0, None, None]) / radius, (place - centre[:, 1, None, None]) / radius
    far = down.square() + right.square()
    lit = height.cos() * (angle.cos() * down + angle.sin() * right) + height.sin() * (1.0 - far).clamp_min(0.0).sqrt()
    inside = torch.sigmoid(3.0 * radius * (1.0 - far.sqrt()))
    images = _noisy(inside * (0.15 + lit.clamp_min(0.0)), 0.3, generator)
    pixels = images.flatten(1)
    return cut(pixels if flat else images[:, None], pixels if copies else side, rows, 400)


@cache
def sloped_patches(slope: float = 0.8, noise: float = 0.1) -> Data:
    """Return 4 x 4 patches of the stretched digits under a slope of light, with noise, and evenly lit: (n, 16) each."""
    generator = _generator(3)
    across = torch.linspace(-1.0, 1.0, 4)
    planes = torch.stack((across[:, None].expand(4, 4), across.expand(4, 4))).flatten(1)

    def part(split: Split) -> Split:
        patches = split.inputs[:, 0].unfold(1, 4, 2).unfold(2, 4, 2).reshape(-1, 16)
        light = slope * torch.randn(len(patches), 2, generator=generator) @ planes
        return Split(patches + light + noise * torch.randn(patches.shape, generator=generator), patches)

    found = each(stretched_digits(), part)
    held_out = [Split(split.inputs[:1500], split.targets[:1500]) for split in (found.validation, found.test)]
    return Data(found.train, *held_out)


@cache
def arithmetic(length: int, windows: int = 5000, held_out: int = 300) -> Data:
    """Return windows of ``length`` characters of the source of numbers, dates, orders and codes, one ahead."""
    groups = (
        ("_pydecimal", "_strptime", "graphlib", "zoneinfo/_zoneinfo", "base64"),
        ("operator", "quopri"),
        ("numbers", "hmac", "colorsys"),
    )
    return character_windows(groups, length=length, symbols=RUNES, windows=windows, held_out=held_out, seed=_SEED + 4)


@cache
def paths(length: int, windows: int = 5000, held_out: int = 300) -> Data:
    """Return windows of ``length`` characters of the source of paths, files and settings, blanks in a row as one."""
    groups = (
        ("ntpath", "filecmp", "fileinput", "lzma", "site", "logging/config", "http/server"),
        ("shlex", "genericpath"),
        ("glob", "netrc"),
    )
    return character_windows(
        groups, length=length, symbols=RUNES, windows=windows, held_out=held_out, seed=_SEED + 5,
        fold=lambda text: re.sub(" +", " ", text),
    )  # fmt: skip


@cache
def bumps_teacher(inputs: int, noise: float, rows: int = 1500) -> Data:
    """Return a sum of twelve round hills and hollows at random places, standardised, plus noise."""
    generator = _generator(6)
    x, centres = (torch.randn(count, inputs, generator=generator) for count in (rows + 1000, 12))
    near = torch.exp(-(x[:, None] - centres).square().sum(2) / inputs)
    y = standardised(near @ torch.randn(12, 1, generator=generator))
    return cut(x, y + noise * torch.randn(y.shape, generator=generator), rows, 500)


@cache
def swing(variables: int, noise: float = 0.01, rows: int = 1100) -> Data:
    """Return where a swing is that loses its pace, by time, losses, pace and phase, of some variables."""
    generator = _generator(7)
    x = 2.0 * torch.rand(rows + 1000, variables, generator=generator) - 1.0
    time = 1.2 * (1.0 + x[:, 0])
    y = torch.exp(-(0.5 + 0.3 * x[:, 1]) * time) * torch.cos((3.0 + x[:, -1]) * time + 0.7 * x.sum(1))
    y = standardised(y)
    return cut(x * 3.0**0.5, (y + noise * torch.randn(len(y), generator=generator))[:, None], rows, 500)


@cache
def tallies(inputs: int, rows: int, noise: float = 0.2) -> Data:
    """Return how many of four random functions are positive, blurred; as many rows as one pass takes."""
    generator = _generator(8)
    x = torch.randn(rows + 1200, inputs, generator=generator)
    bent = functional.softplus(2.0 * x @ torch.randn(inputs, 14, generator=generator) / inputs**0.5)
    values = standardised(bent @ torch.randn(14, 4, generator=generator))
    return cut(x, (values + noise * torch.randn(values.shape, generator=generator) > 0.0).sum(1), rows, 600)


@cache
def grades_table(rows: int) -> Data:
    """Return nine columns, neighbours alike, and which of three grades a blurred score of four of them reaches."""
    generator = _generator(9)
    x = torch.randn(rows + 800, 9, generator=generator)
    x = (x + 0.7 * x.roll(1, 1)) / 1.49**0.5
    odds = torch.rand(len(x), generator=generator).clamp(1e-6, 1.0 - 1e-6)
    score = 1.2 * x[:, 0] + 0.8 * x[:, 4] - 0.6 * x[:, 2] * x[:, 7] + 0.5 * torch.logit(odds)
    return cut(x, torch.bucketize(score, torch.tensor([-0.9, 0.9])), rows, 400)


@cache
def doses_table(rows: int, noise: float = 0.25) -> Data:
    """Return ten columns and a response that saturates with a dose, standardised, plus noise with far outliers."""
    generator = _generator(10)
    x = torch.randn(rows + 800, 10, generator=generator)
    dose = torch.exp(0.9 * x[:, 2] + 0.6 * x[:, 5])
    y = standardised(dose.square() / (1.0 + dose.square()) * (1.0 + 0.4 * x[:, 8]) - 0.2 * x[:, 1])
    chi = torch.randn(len(x), 3, generator=generator).square().mean(1).sqrt()
    return cut(x, (y + noise * torch.randn(len(x), generator=generator) / chi)[:, None], rows, 400)


@cache
def series_table(rows: int, noise: float = 0.3) -> Data:
    """Return eight values of a noisy series one after the other and the next; columns and target standardised."""
    generator = _generator(11)
    values = [torch.randn(rows + 800, generator=generator) for _ in range(3)]
    for _ in range(30):  # the first of them are forgotten
        shock = noise * torch.randn(len(values[0]), generator=generator)
        values.append(1.4 * torch.sin(1.6 * values[-1]) - 0.5 * values[-3] + shock)
    last = standardised(torch.stack(values[-9:], 1))
    return cut(last[:, :-1], last[:, -1:], rows, 400)


def _shuffled(columns: np.ndarray, rows: int, place: int) -> Tensor:
    """Return all columns in one random order of rows, standardised by the first ``rows``."""
    x = torch.tensor(np.asarray(columns), dtype=torch.float32)
    x = x[torch.randperm(len(x), generator=_generator(place))]
    return (x - x[:rows].mean(0)) / x[:rows].std(0)


@cache
def sexes_table(rows: int) -> Data:
    """Return the sex in scikit-learn's diabetes table from the nine other columns."""
    columns, _ = datasets.load_diabetes(return_X_y=True)
    x = _shuffled(columns, rows, 12)
    others = [index for index in range(x.shape[1]) if index != 1]
    return cut(x[:, others], (x[:, 1] > 0.0).long(), rows, (len(x) - rows) // 2)


@cache
def concavity_table(rows: int) -> Data:
    """Return the worst concavity in scikit-learn's breast cancer table from the errors of ten measurements."""
    columns, _ = datasets.load_breast_cancer(return_X_y=True)
    x = _shuffled(columns, rows, 13)
    return cut(x[:, 10:20], x[:, 26:27], rows, (len(x) - rows) // 2)
