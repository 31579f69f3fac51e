"""CIFAR files in their real formats, small: written here byte by byte, read back equal."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from lipadvisor.experiments.data import read_cifar
from lipadvisor.experiments.reproduce.images import load_images


def _short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def python2_pickle(data: np.ndarray, label_key: bytes, labels: list[int]) -> bytes:
    """Write what Python 2's cPickle wrote for these files: protocol 2, byte strings, numpy.core names."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01bq\x03\x87Rq\x04"
        b"(K\x01" + b"M" + struct.pack("<H", data.shape[0]) + b"M" + struct.pack("<H", data.shape[1]) + b"\x86"
        b"cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87Rq\x06(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", data.size) + data.tobytes() + b"tb"
    )
    listed = b"]q\x08(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return (
        b"\x80\x02}q\x00("
        + (_short(b"data") + array)
        + (_short(label_key) + listed)
        + (_short(b"batch_label") + _short(b"training batch 1 of 5"))
        + b"u."
    )


def _random(rows: int, classes: int, seed: int) -> tuple[np.ndarray, list[int]]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (rows, 3072)).astype(np.uint8), generator.integers(0, classes, rows).tolist()


def write(folder: Path, kind: str, binary: bool) -> dict[str, tuple[np.ndarray, list[int]]]:
    folder.mkdir(parents=True)
    classes = 10 if kind == "cifar10" else 100
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if classes == 10 else ["train", "test"]
    parts = {}
    for seed, name in enumerate(names):
        data, labels = parts[name] = _random(3, classes, seed)
        if binary:
            coarse = [] if classes == 10 else [7]
            rows = [bytes([*coarse, label]) + row.tobytes() for row, label in zip(data, labels, strict=True)]
            (folder / f"{name}.bin").write_bytes(b"".join(rows))
        else:
            key = b"labels" if classes == 10 else b"fine_labels"
            (folder / name).write_bytes(python2_pickle(data, key, labels))
    return parts


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
@pytest.mark.parametrize("binary", [True, False])
def test_reads_both_distributions(tmp_path: Path, kind: str, binary: bool) -> None:
    inside = {
        ("cifar10", True): "cifar-10-batches-bin",
        ("cifar10", False): "cifar-10-batches-py",
        ("cifar100", True): "cifar-100-binary",
        ("cifar100", False): "cifar-100-python",
    }[kind, binary]
    parts = list(write(tmp_path / inside, kind, binary).values())
    for path in (tmp_path, tmp_path / inside):
        found = read_cifar(kind, path)
        expected = np.concatenate([data for data, _ in parts[:-1]])
        np.testing.assert_array_equal(found.train_images.reshape(-1, 3072), expected)
        assert found.train_images.shape[1:] == (3, 32, 32)
        assert found.train_labels.tolist() == [label for _, labels in parts[:-1] for label in labels]
        assert found.test_labels.tolist() == parts[-1][1]
    images = load_images(f"{kind}:{tmp_path}")
    assert images.shape == (3, 32, 32)
    assert images.classes == (10 if kind == "cifar10" else 100)
    assert abs(float(images.train_inputs.mean())) < 1e-4


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "c", "cifar10", True)
    (tmp_path / "c" / "data_batch_3.bin").unlink()
    with pytest.raises(ValueError, match=r"data_batch_3\.bin"):
        read_cifar("cifar10", tmp_path / "c")


def test_a_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    write(tmp_path / "b", "cifar100", True)
    content = (tmp_path / "b" / "train.bin").read_bytes()
    (tmp_path / "b" / "train.bin").write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"train\.bin must hold whole records of 3074"):
        read_cifar("cifar100", tmp_path / "b")
    write(tmp_path / "p", "cifar10", False)
    content = (tmp_path / "p" / "data_batch_1").read_bytes()
    (tmp_path / "p" / "data_batch_1").write_bytes(content[:-200])
    with pytest.raises(ValueError, match="data_batch_1 cannot be read"):
        read_cifar("cifar10", tmp_path / "p")


def test_labels_out_of_range_and_empty_folders(tmp_path: Path) -> None:
    write(tmp_path / "c", "cifar10", True)
    path = tmp_path / "c" / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(ValueError, match=r"labels in 0\.\.9, got 10"):
        read_cifar("cifar10", tmp_path / "c")
    with pytest.raises(ValueError, match="no CIFAR files"):
        read_cifar("cifar10", tmp_path)
    for bad in ("cifar10", "cifar10:", "mnist:here"):
        with pytest.raises(ValueError, match="--data must be"):
            load_images(bad)


def test_the_home_folder_is_meant_and_an_archive_is_to_be_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "c", "cifar100", True)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_cifar("cifar100", "~/c").classes == 100  # no shell expands it after cifar100:
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(ValueError, match=r"archive is to be unpacked.*cifar-100-python\.tar\.gz"):
        read_cifar("cifar100", tmp_path / "cifar-100-python.tar.gz")


def test_what_is_no_array_and_no_list_of_numbers_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    write(folder, "cifar100", False)
    images = np.zeros((2, 3072), np.uint8)
    for content, told in (
        ({"data": [[0] * 3072] * 2, "fine_labels": [1, 2]}, "an array as 'data', got a list"),
        ({"data": images, "fine_labels": [[1], [2]]}, "whole numbers as 'fine_labels'"),
        ({"data": images, "fine_labels": None}, "whole numbers as 'fine_labels'"),
    ):
        (folder / "train").write_bytes(pickle.dumps(content, 2))
        with pytest.raises(ValueError, match=told):
            read_cifar("cifar100", folder)
