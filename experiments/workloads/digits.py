"""scikit-learn's digits: 1,797 grey images of 8 x 8 pixels in ten classes, split once and for all."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from lipadvisor.experiments.workloads.workload import Data, Split

__all__ = ["digits_images", "digits_vectors"]

_SPLIT_SEED = 20_250  # fixed: another split would make results of two versions incomparable
_HELD_OUT = 360  # rows of the validation split, and of the test split


@cache
def digits_images() -> Data:
    """Return the splits (1077, 360, 360 rows), stratified by class, as images (n, 1, 8, 8).

    Inputs are centred and scaled by the training split's overall mean and standard deviation.
    """
    pixels, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=_HELD_OUT, random_state=_SPLIT_SEED, stratify=labels
    )
    train, validation = train_test_split(rest, test_size=_HELD_OUT, random_state=_SPLIT_SEED + 1, stratify=labels[rest])
    mean, std = pixels[train].mean(), pixels[train].std()
    inputs = torch.tensor((pixels - mean) / std, dtype=torch.float32).reshape(-1, 1, 8, 8)
    targets = torch.tensor(labels, dtype=torch.int64)

    def part(rows: np.ndarray) -> Split:
        return Split(inputs[rows], targets[rows])

    return Data(part(train), part(validation), part(test))


@cache
def digits_vectors() -> Data:
    """Return the same splits as rows of 64 pixels, (n, 64)."""
    images = digits_images()

    def flat(part: Split) -> Split:
        return Split(part.inputs.flatten(1), part.targets)

    return Data(flat(images.train), flat(images.validation), flat(images.test))
