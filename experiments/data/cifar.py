"""CIFAR-10 and CIFAR-100 from a user's folder, in the binary or in the python distribution.

Binary: records of label bytes (one, or coarse and fine) and 3,072 pixels, red, green, blue planes row by row. Python:
pickled dicts of Python 2 with ``data`` (n, 3072) and ``labels`` or ``fine_labels``; read without unpickling.

References:
    Krizhevsky (2009), *Learning multiple layers of features from tiny images*; the formats are described on the
    data sets' page.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipadvisor.experiments.data.plain_pickle import PickleError, load_plain_pickle

__all__ = ["Cifar", "read_cifar"]

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the files of one data set lie."""

    classes: int
    label_bytes: int  # the last one is the label that counts
    label_key: str
    binary: tuple[tuple[str, ...], str]  # training files, test file
    python: tuple[tuple[str, ...], str]
    folders: tuple[str, str]  # that the archives unpack to: binary, python


_LAYOUTS = {
    "cifar10": _Layout(
        10,
        1,
        "labels",
        (tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"),
        (tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch"),
        ("cifar-10-batches-bin", "cifar-10-batches-py"),
    ),
    "cifar100": _Layout(
        100,
        2,
        "fine_labels",
        (("train.bin",), "test.bin"),
        (("train",), "test"),
        ("cifar-100-binary", "cifar-100-python"),
    ),
}


@dataclass(frozen=True, slots=True)
class Cifar:
    """Images (n, 3, 32, 32) and labels (n,), both uint8."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]
    classes: int


def read_cifar(kind: str, path: str | os.PathLike[str]) -> Cifar:
    """Read a copy of CIFAR.

    Args:
        kind: ``"cifar10"`` or ``"cifar100"``.
        path: the folder with the files, or the one that holds the unpacked archive's folder.

    Raises:
        ValueError: ``kind`` is unknown, no distribution is there, a file is missing or not in its format; names it.
    """
    if kind not in _LAYOUTS:
        raise ValueError(f"read_cifar(kind=...) must be one of {', '.join(_LAYOUTS)}, got {kind!r}.")
    layout = _LAYOUTS[kind]
    folder, binary = _find(Path(path).expanduser(), layout)
    train_names, test_name = layout.binary if binary else layout.python
    missing = [name for name in (*train_names, test_name) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{kind} at {folder} lacks the file {missing[0]!r}.")
    read = _read_binary if binary else _read_python
    parts = [read(folder / name, layout) for name in train_names]
    test_images, test_labels = read(folder / test_name, layout)
    train_images = np.concatenate([images for images, _ in parts])
    train_labels = np.concatenate([labels for _, labels in parts])
    return Cifar(train_images, train_labels, test_images, test_labels, layout.classes)


def _find(path: Path, layout: _Layout) -> tuple[Path, bool]:
    if path.is_file():
        raise ValueError(f"the path of a CIFAR copy must be a folder (an archive is to be unpacked first), got {path}.")
    for folder in (path, *(path / name for name in layout.folders)):
        for names, binary in ((layout.binary, True), (layout.python, False)):
            if (folder / names[1]).is_file():
                return folder, binary
    raise ValueError(
        f"no CIFAR files at {path}: it must hold {layout.binary[1]!r} (binary) or {layout.python[1]!r} (python), "
        f"itself or in {' or '.join(repr(name) for name in layout.folders)}."
    )


def _read_binary(path: Path, layout: _Layout) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    raw = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    record = layout.label_bytes + _PIXELS
    if len(raw) == 0 or len(raw) % record:
        raise ValueError(f"{path} must hold whole records of {record} bytes, it has {len(raw)} bytes.")
    rows = raw.reshape(-1, record)
    return _checked(path, layout, rows[:, layout.label_bytes :], rows[:, layout.label_bytes - 1])


def _read_python(path: Path, layout: _Layout) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    try:
        content = load_plain_pickle(path.read_bytes())
    except PickleError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dict, it holds a {type(content).__name__}.")
    named: dict[str, Any] = {k.decode("latin-1") if isinstance(k, bytes) else str(k): v for k, v in content.items()}
    for key in ("data", layout.label_key):
        if key not in named:
            raise ValueError(f"{path} has no {key!r}; it has {sorted(named)}.")
    raw, pixels = named[layout.label_key], named["data"]
    flat = isinstance(raw, np.ndarray) or (isinstance(raw, list) and all(isinstance(label, int) for label in raw))
    labels = np.asarray(raw) if flat else np.zeros(0)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{path} must hold whole numbers as {layout.label_key!r}.")
    if not isinstance(pixels, np.ndarray):
        raise ValueError(f"{path} must hold an array as 'data', got a {type(pixels).__name__}.")
    return _checked(path, layout, pixels, labels)


def _checked(
    path: Path, layout: _Layout, pixels: NDArray[Any], labels: NDArray[Any]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), _PIXELS):
        raise ValueError(f"{path} must hold uint8 of {_PIXELS} a row, one row for each of its {len(labels)} labels.")
    if len(labels) and not (labels.min() >= 0 and labels.max() < layout.classes):
        raise ValueError(f"{path} must hold labels in 0..{layout.classes - 1}, got {labels.max()}.")
    return pixels.reshape(-1, 3, 32, 32).copy(), labels.astype(np.uint8)
