"""What the sources share: the rows are those that were asked for, and the windows lie one character apart."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
import torch

from lipadvisor.experiments.benchmarks.other_sources import occluded_digits
from lipadvisor.experiments.benchmarks.seventh_networks import LinearRecurrence, RotaryTransformer
from lipadvisor.experiments.benchmarks.seventh_sources import ellipses, ghosts, parsers, rings, salted_patches
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


def test_mistaken_labels_are_those_of_fainter_digits_in_training_alone():
    clean, mistaken = ghosts(True), ghosts(True, 0.4)
    changed = clean.train.targets != mistaken.train.targets
    assert float(changed.float().mean()) == pytest.approx(0.36, abs=0.05)
    assert torch.equal(clean.train.inputs, mistaken.train.inputs)
    assert torch.equal(clean.test.targets, digits_images().test.targets)
    assert torch.equal(clean.validation.targets, mistaken.validation.targets)
    assert bool((clean.test.inputs >= digits_images().test.inputs.flatten(1)).all())  # what is behind only adds light


def test_a_ring_is_darkest_where_its_gap_is():
    shown = rings(noise=0.0).train
    place = torch.arange(8.0) - 3.5
    means = torch.stack([shown.inputs[shown.targets == gap, 0].mean(0) for gap in range(10)])
    lacking = (means.mean(0) - means).clamp_min(0.0)
    angle = torch.atan2((lacking.sum(2) @ place), (lacking.sum(1) @ place)) / (torch.pi / 5.0)
    off = (angle - torch.arange(10) + 5.0).remainder(10.0) - 5.0
    assert float(off.abs().max()) < 0.5


def test_an_ellipse_is_longest_in_the_direction_of_its_label():
    shown = ellipses().train
    ink = (shown.inputs[:, 0] - shown.inputs[:, 0].flatten(1).median(1).values[:, None, None]).clamp_min(0.0)
    ink = ink / ink.sum((1, 2), keepdim=True)
    place = torch.arange(8.0)
    down, right = (ink.sum(2) @ place)[:, None], (ink.sum(1) @ place)[:, None]
    rows, columns = (ink.sum(2) * (place - down).square()).sum(1), (ink.sum(1) * (place - right).square()).sum(1)
    both = torch.einsum("nrc,nr,nc->n", ink, place - down, place - right)
    angle = 0.5 * torch.atan2(2.0 * both, columns - rows) / (torch.pi / 6.0)
    off = (angle - shown.targets + 3.0).remainder(6.0) - 3.0
    assert float((off.abs() < 0.6).float().mean()) > 0.7


def test_salt_is_black_or_white_and_covers_a_share_of_the_pixels():
    data = salted_patches().train
    hit = data.inputs != data.targets
    assert float(hit.float().mean()) == pytest.approx(0.25, abs=0.05)  # some pixels were black before
    ends = (float(ghosts().train.inputs.min()), float(ghosts().train.inputs.max()))
    assert set(data.inputs[hit].tolist()) == set(ends)


def test_text_is_read_from_its_end():
    data = parsers(12, windows=50, held_out=30)
    torch.testing.assert_close(data.test.inputs[:, 1:], data.test.targets[:, :-1])
    folder = Path(sysconfig.get_path("stdlib"))
    whole = "".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in ("xml/dom/pulldom", "email/parser"))
    blanks = "".join("." if character == " " else " " for character in reversed(whole))
    assert all(
        "".join(" " if symbol else "." for symbol in row) in blanks for row in data.validation.inputs.tolist()
    )  # the most frequent character of source text is the blank, and has number 0


@pytest.mark.parametrize("model", [RotaryTransformer(20, 2, 6, 2), LinearRecurrence(20, 8, 12)])
def test_what_comes_later_changes_nothing_before(model):
    tokens = torch.randint(0, 20, (3, 9), generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 20
    before, after = model(tokens), model(other)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])
    swapped = tokens[:, [1, 0, 2, 3, 4, 5, 6, 7, 8]]
    assert not torch.allclose(model(swapped)[:, 4], before[:, 4])  # places are known
