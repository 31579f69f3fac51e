"""What the sources share: the rows are those that were asked for, and the windows lie one character apart."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
import torch

from lipadvisor.experiments.benchmarks.other_sources import occluded_digits
from lipadvisor.experiments.benchmarks.sixth_sources import bearings, segments, turned_digits
from lipadvisor.experiments.benchmarks.sources import digits_images
from lipadvisor.experiments.benchmarks.splits import character_windows, cut, each, relabelled, standardised
from lipadvisor.experiments.workloads import Split


def test_rows_are_cut_in_order_and_every_split_is_changed():
    data = cut(torch.arange(12.0)[:, None], torch.arange(12), 5, 3)
    assert [split.targets.tolist() for split in (data.train, data.validation, data.test)] == [
        [0, 1, 2, 3, 4], [5, 6, 7], [8, 9, 10],
    ]  # fmt: skip
    doubled = each(data, lambda split: Split(2.0 * split.inputs, split.targets))
    assert doubled.test.inputs.flatten().tolist() == [16.0, 18.0, 20.0]
    assert doubled.train.inputs.flatten().tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_each_column_is_standardised():
    y = standardised(torch.randn(400, 2, generator=torch.Generator().manual_seed(0)) * 3.0 + torch.tensor([1.0, -5.0]))
    torch.testing.assert_close(y.mean(0), torch.zeros(2), atol=1e-6, rtol=0.0)
    torch.testing.assert_close(y.std(0), torch.ones(2))


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_share_of_the_labels_is_drawn_anew(share):
    labels = torch.zeros(20_000, dtype=torch.int64)
    changed = relabelled(labels, share, 4, torch.Generator().manual_seed(0))
    assert float((changed != labels).float().mean()) == pytest.approx(0.75 * share, abs=0.02)
    assert int(changed.max()) <= 3


def test_windows_are_of_the_modules_named_and_targets_one_ahead():
    data = character_windows(
        (("heapq", "json"), ("bisect",), ("keyword",)), length=9, symbols=30, windows=50, held_out=20, seed=3
    )
    assert tuple(data.train.inputs.shape) == (50, 9)
    assert tuple(data.test.targets.shape) == (20, 9)
    for split in (data.train, data.validation, data.test):
        torch.testing.assert_close(split.inputs[:, 1:], split.targets[:, :-1])
        assert int(split.inputs.max()) <= 29
    whole = (Path(sysconfig.get_path("stdlib")) / "keyword.py").read_text(encoding="utf-8")
    assert "".join(" " if symbol else "." for symbol in data.test.inputs[0].tolist()) in "".join(
        "." if character == " " else " " for character in whole
    )  # the most frequent character of source text is the blank, and has number 0


def test_confused_labels_are_mirrored_in_training_alone():
    clean, confused = occluded_digits(True), occluded_digits(True, 0.3)
    changed = clean.train.targets != confused.train.targets
    assert float(changed.float().mean()) == pytest.approx(0.3, abs=0.05)
    assert bool((clean.train.targets + confused.train.targets)[changed].eq(9).all())
    assert torch.equal(clean.test.targets, digits_images().test.targets)
    assert torch.equal(clean.validation.targets, confused.validation.targets)
    covered = (clean.train.inputs.view(-1, 8, 8) == 0.0).sum((1, 2))
    assert int(covered.min()) >= 9


def test_borrowed_labels_are_those_of_other_training_rows_alone():
    clean, borrowed = turned_digits(True), turned_digits(True, 0.4)
    changed = clean.train.targets != borrowed.train.targets
    assert float(changed.float().mean()) == pytest.approx(0.36, abs=0.05)
    assert torch.equal(clean.train.inputs, borrowed.train.inputs)
    assert torch.equal(clean.test.targets, digits_images().test.targets)
    assert torch.equal(clean.validation.targets, borrowed.validation.targets)


def test_an_eight_has_all_bars_of_a_display_and_a_one_the_fewest():
    shown = segments(noise=0.0).train
    ink = torch.stack([shown.inputs[shown.targets == digit].mean() for digit in range(10)])
    assert int(ink.argmax()) == 8
    assert int(ink.argmin()) == 1


def test_the_dark_spot_lies_where_the_label_says():
    shown = bearings().train
    place = torch.arange(8.0)
    images = shown.inputs[:, 0]
    light, dark = (images.clamp_min(0.0).square(), (-images).clamp_min(0.0).square())

    def centre(weights):
        rows, columns = weights.sum(2) @ place, weights.sum(1) @ place
        return torch.stack((rows, columns), 1) / weights.sum((1, 2))[:, None]

    far = centre(dark) - centre(light)
    angle = torch.atan2(far[:, 1], far[:, 0]) / (torch.pi / 4.0)
    off = (angle - shown.targets + 4.0).remainder(8.0) - 4.0
    assert float((off.abs() < 0.5).float().mean()) > 0.8
