"""The images a reproduction trains on: scikit-learn's digits, or a user's local copy of CIFAR."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Images", "load_images", "noisy_labels"]


@dataclass(frozen=True, slots=True)
class Images:
    """Two splits, centred and scaled by the training split's mean and standard deviation (per channel)."""

    name: str
    train_inputs: Tensor  # (n, C, H, W), float32
    train_targets: Tensor  # (n,), int64
    test_inputs: Tensor
    test_targets: Tensor
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train_inputs.shape[1:]
        return (channels, height, width)


def load_images(data: str) -> Images:
    """Return the images that ``data`` names.

    Args:
        data: ``"digits"``, ``"cifar10:PATH"`` or ``"cifar100:PATH"``, PATH a folder with the binary or the python
            distribution's files; ``~`` is the user's own.

    Raises:
        ValueError: the name is unknown, or the files are not there or not what they should be.
    """
    if data == "digits":
        return _digits()
    kind, colon, path = data.partition(":")
    if kind not in ("cifar10", "cifar100") or not colon or not path:
        raise ValueError(f"--data must be digits, cifar10:PATH or cifar100:PATH, got {data!r}.")
    from lipadvisor.experiments.data import read_cifar

    raw = read_cifar(kind, os.path.expanduser(path))
    train, test = (torch.from_numpy(part).float() for part in (raw.train_images, raw.test_images))
    mean, std = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True).clamp_min(1e-6)
    labels = (torch.from_numpy(part).long() for part in (raw.train_labels, raw.test_labels))
    train_targets, test_targets = labels
    return Images(kind, (train - mean) / std, train_targets, (test - mean) / std, test_targets, raw.classes)


def noisy_labels(images: Images, rate: float, seed: int) -> Images:
    """Return the images with a share ``rate`` of the training labels replaced by uniformly random other ones.

    Raises:
        ValueError: ``rate`` is not in [0, 1].
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"noisy_labels(rate=...) must be in [0, 1], got {rate!r}.")
    generator = torch.Generator().manual_seed(seed)
    count = len(images.train_targets)
    wrong = torch.randperm(count, generator=generator)[: round(rate * count)]
    shift = torch.randint(1, images.classes, (len(wrong),), generator=generator)
    targets = images.train_targets.clone()
    targets[wrong] = (targets[wrong] + shift) % images.classes
    return Images(images.name, images.train_inputs, targets, images.test_inputs, images.test_targets, images.classes)


def _digits() -> Images:
    from lipadvisor.experiments.workloads.digits import digits_images

    data = digits_images()
    return Images("digits", data.train.inputs, data.train.targets, data.validation.inputs, data.validation.targets, 10)
