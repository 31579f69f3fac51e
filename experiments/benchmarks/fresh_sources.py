"""Data of what was the fourth confirmation list."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from sklearn import datasets

from lipadvisor.experiments.benchmarks.sources import digits_images
from lipadvisor.experiments.benchmarks.splits import character_windows, cut, relabelled, standardised
from lipadvisor.experiments.workloads import Data, Split

__all__ = [
    "SIGNS",
    "gratings",
    "hastie_table",
    "inpainting",
    "library",
    "phase_table",
    "pinwheel",
    "resonance",
    "shifted_digits",
    "sine_teacher",
    "stream",
]

_SEED = 110_917  # of every set here
SIGNS = 56  # characters of the library: the most frequent ones, the rest are one symbol
_SHIFT = 1  # pixels that a digit is moved by, at most, either way


@cache
def shifted_digits(flat: bool = True, wrong: float = 0.0, copies: bool = False) -> Data:
    """Return the digits, each moved by up to a pixel either way; flat or as images.

    Args:
        flat: rows of 64 pixels instead of images (1, 8, 8).
        wrong: share of the *training* labels drawn anew.
        copies: the pixels are their own targets.
    """
    clean, generator = digits_images(), torch.Generator().manual_seed(_SEED)

    def part(split: Split, share: float) -> Split:
        moves = torch.randint(-_SHIFT, _SHIFT + 1, (len(split.inputs), 2), generator=generator).tolist()
        images = torch.stack(
            [image.roll((up, left), (1, 2)) for image, (up, left) in zip(split.inputs, moves, strict=True)]
        )
        labels = relabelled(split.targets, share, 10, generator)
        inputs = images.flatten(1) if flat else images
        return Split(inputs, inputs if copies else labels)

    return Data(part(clean.train, wrong), part(clean.validation, 0.0), part(clean.test, 0.0))


@cache
def inpainting() -> Data:
    """Return 4 x 4 patches of the moved digits without their inner four pixels as input, whole as target: (n, 16)."""
    images = shifted_digits(flat=False)
    seen = torch.ones(4, 4)
    seen[1:3, 1:3] = 0.0

    def part(split: Split, rows: int | None) -> Split:
        patches = split.inputs[:, 0].unfold(1, 4, 2).unfold(2, 4, 2).reshape(-1, 4, 4)[:rows]
        return Split((patches * seen).flatten(1), patches.flatten(1))

    return Data(part(images.train, None), part(images.validation, 1500), part(images.test, 1500))


@cache
def gratings(flat: bool = False, rows: int = 1200, noise: float = 0.7) -> Data:
    """Return images (1, 8, 8) of waves in noise, of any phase and of many lengths; the class is one of ten slopes."""
    generator = torch.Generator().manual_seed(_SEED + 1)
    count = rows + 800
    slope = torch.randint(0, 10, (count,), generator=generator)
    angle = torch.pi * (slope + 0.4 * (torch.rand(count, generator=generator) - 0.5)) / 10.0
    wave = 0.8 + 0.7 * torch.rand(count, generator=generator)  # radians a pixel
    phase = 2.0 * torch.pi * torch.rand(count, generator=generator)
    place = torch.arange(8.0)
    across = wave[:, None, None] * (
        angle.cos()[:, None, None] * place[:, None] + angle.sin()[:, None, None] * place[None, :]
    )
    images = torch.sin(across + phase[:, None, None]) * 2.0**0.5
    images = (images + noise * torch.randn(images.shape, generator=generator)) / (1.0 + noise**2) ** 0.5
    return cut(images.flatten(1) if flat else images[:, None], slope, rows, 400)


@cache
def library(length: int, windows: int = 5000, held_out: int = 300) -> Data:
    """Return windows of ``length`` characters of the packages' own source, targets one character ahead."""
    groups = (
        ("logging/__init__", "logging/handlers", "json/decoder", "json/encoder", "email/message", "http/client",
         "http/cookiejar", "unittest/case", "unittest/mock", "concurrent/futures/_base"),
        ("email/header", "http/cookies"),
        ("unittest/loader", "xml/dom/minidom"),
    )  # fmt: skip
    return character_windows(groups, length=length, symbols=SIGNS, windows=windows, held_out=held_out, seed=_SEED + 2)


@cache
def sine_teacher(inputs: int, noise: float, rows: int = 1600) -> Data:
    """Return two sums of sines of random projections, standardised, plus noise."""
    generator = torch.Generator().manual_seed(_SEED + 3)
    x = torch.randn(rows + 1000, inputs, generator=generator)
    first = 1.2 * torch.randn(inputs, 20, generator=generator) / inputs**0.5
    phase = torch.rand(20, generator=generator) * torch.pi
    y = standardised(torch.sin(x @ first + phase) @ torch.randn(20, 2, generator=generator))
    return cut(x, y + noise * torch.randn(y.shape, generator=generator), rows, 500)


@cache
def resonance(variables: int, noise: float = 0.01, rows: int = 1000) -> Data:
    """Return a peak over a slope as a function of some variables, with almost no noise."""
    generator = torch.Generator().manual_seed(_SEED + 4)
    x = 2.0 * torch.rand(rows + 1000, variables, generator=generator) - 1.0
    centre = torch.rand(variables, generator=generator) - 0.5
    distance = (x - centre).square().mean(1)
    y = 1.0 / (0.15 + distance) + 2.0 * torch.sin(2.0 * x[:, 0]) * x[:, -1] + x.mean(1)
    y = standardised(y)
    return cut(x * 3.0**0.5, (y + noise * torch.randn(len(y), generator=generator))[:, None], rows, 500)


@cache
def stream(inputs: int, rows: int, noise: float = 0.3) -> Data:
    """Return the label of the larger of two random quadratic forms, blurred; as many rows as one pass takes."""
    generator = torch.Generator().manual_seed(_SEED + 5)
    x = torch.randn(rows + 1200, inputs, generator=generator)
    forms = torch.randn(3, inputs, inputs, generator=generator) / inputs
    values = torch.einsum("bi,kij,bj->bk", x, forms, x)
    values = values + noise * values.std() * torch.randn(values.shape, generator=generator)
    return cut(x, values.argmax(1), rows, 600)


@cache
def pinwheel(arms: int, rows: int = 900) -> Data:
    """Return the arms of a pinwheel in the plane, one class each."""
    generator = torch.Generator().manual_seed(_SEED + 6)
    count = rows + 1000
    label = torch.randint(0, arms, (count,), generator=generator)
    blob = torch.randn(count, 2, generator=generator) * torch.tensor([0.35, 0.12]) + torch.tensor([1.0, 0.0])
    angle = 2.0 * torch.pi * label / arms + 1.2 * blob[:, 0]
    turn = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), 1).view(-1, 2, 2)
    return cut(1.5 * torch.einsum("bij,bj->bi", turn, blob), label, rows, 500)


@cache
def hastie_table(rows: int) -> Data:
    """Return Hastie's ten columns of noise, the class whether their squares sum to more than usual."""
    x, y = datasets.make_hastie_10_2(n_samples=rows + 800, random_state=_SEED)
    return cut(torch.tensor(x, dtype=torch.float32), torch.tensor((y > 0).astype(np.int64)), rows, 400)


@cache
def phase_table(rows: int, noise: float = 0.4) -> Data:
    """Return Friedman's third function (a phase) of four variables and six columns of noise, standardised."""
    x, y = datasets.make_friedman3(n_samples=rows + 800, noise=0.0, random_state=_SEED)
    generator = torch.Generator().manual_seed(_SEED + 7)
    useful = standardised(torch.tensor(x, dtype=torch.float32))
    inputs = torch.cat((useful, torch.randn(len(useful), 6, generator=generator)), 1)
    target = standardised(torch.tensor(y, dtype=torch.float32))
    return cut(inputs, (target + noise * torch.randn(len(target), generator=generator))[:, None], rows, 400)
