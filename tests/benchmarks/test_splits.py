"""What the sources share: the rows are those that were asked for, and the windows lie one character apart."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
import torch

from lipadvisor.experiments.benchmarks.eighth_networks import (
    CosineMixer,
    LinearAttentionTransformer,
    PacedRecurrence,
    RecurrentHighway,
    RelativeTransformer,
    groupnorm_bowl,
)
from lipadvisor.experiments.benchmarks.eighth_sources import (
    lit_balls,
    paths,
    pieces,
    series_table,
    sexes_table,
    sloped_patches,
    stretched_digits,
)
from lipadvisor.experiments.benchmarks.ninth_networks import (
    AntisymmetricRecurrence,
    AxialMixer,
    DelayedRecurrence,
    MemoryTransformer,
    TalkingTransformer,
    groupnorm_fractal,
)
from lipadvisor.experiments.benchmarks.ninth_sources import (
    inverted_patches,
    moon_phases,
    parity_table,
    processes,
    rippled_digits,
    waveform_table,
    weaves,
)
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


@pytest.mark.parametrize(
    "model",
    [
        RotaryTransformer(20, 2, 6, 2),
        LinearRecurrence(20, 8, 12),
        LinearAttentionTransformer(20, 9, 2, 6, 2),
        RelativeTransformer(20, 9, 2, 6, 2, 3),
        RecurrentHighway(20, 8, 12),
        PacedRecurrence(20, 8, 12),
        TalkingTransformer(20, 9, 2, 6, 2),
        MemoryTransformer(20, 9, 2, 6, 2, 3),
        AntisymmetricRecurrence(20, 8, 12),
        DelayedRecurrence(20, 8, 12),
    ],
    ids=lambda model: type(model).__name__,
)
def test_what_comes_later_changes_nothing_before(model):
    tokens = torch.randint(0, 20, (3, 9), generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 20
    before, after = model(tokens), model(other)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])
    swapped = tokens[:, [1, 0, 2, 3, 4, 5, 6, 7, 8]]
    assert not torch.allclose(model(swapped)[:, 4], before[:, 4])  # places are known


def test_labels_of_digits_alike_are_of_the_nearest_mean_and_in_training_alone():
    clean, alike = stretched_digits(True), stretched_digits(True, 0.4)
    changed = clean.train.targets != alike.train.targets
    assert float(changed.float().mean()) == pytest.approx(0.4, abs=0.05)
    assert torch.equal(clean.train.inputs, alike.train.inputs)
    assert torch.equal(clean.test.targets, digits_images().test.targets)
    assert torch.equal(clean.validation.targets, alike.validation.targets)
    means = torch.stack([clean.train.inputs[clean.train.targets == digit].mean(0) for digit in range(10)])
    for row in changed.nonzero()[:20, 0].tolist():
        far = [float((clean.train.inputs[row] - mean).norm()) for mean in means]
        far[int(clean.train.targets[row])] = float("inf")
        assert int(alike.train.targets[row]) == far.index(min(far))


def test_pieces_are_five_squares_of_four_pixels_each_in_ten_shapes():
    shown = pieces(noise=0.0).train
    images = shown.inputs[:, 0]
    ink = images > images.flatten(1).min(1).values[:, None, None] + 1e-3
    assert bool(ink.sum((1, 2)).eq(20).all())
    places: dict[int, set[tuple[bool, ...]]] = {}
    for label, seen in zip(shown.targets.tolist(), ink, strict=True):
        rows, columns = (seen.any(axis).nonzero()[:, 0] for axis in (1, 0))
        box = seen[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        places.setdefault(label, set()).add((box.shape[0] == 6, *box.flatten().tolist()))
    assert sorted(places) == list(range(10))
    assert all(len(shapes) <= 2 for shapes in places.values())  # a piece and its mirror image
    assert sum(len(shapes) for shapes in places.values()) == len(set().union(*places.values()))


def test_a_ball_is_brightest_on_the_side_of_its_label():
    shown = lit_balls().train
    place = torch.arange(8.0) - 3.5
    means = torch.stack([shown.inputs[shown.targets == side, 0].mean(0) for side in range(7)])
    more = means - means.mean(0)
    angle = torch.atan2(more.sum(2) @ place, more.sum(1) @ place)  # the label's angle has its cosine along rows
    off = ((torch.pi / 2.0 - angle) / (2.0 * torch.pi / 7.0) - torch.arange(7) + 3.5).remainder(7.0) - 3.5
    assert float(off.abs().max()) < 0.5


def test_the_slope_of_light_is_a_plane():
    data = sloped_patches(noise=0.0).train
    light = (data.inputs - data.targets).view(-1, 4, 4)
    torch.testing.assert_close(light.diff(n=2, dim=1), torch.zeros(len(light), 2, 4), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(light.diff(n=2, dim=2), torch.zeros(len(light), 4, 2), atol=1e-5, rtol=0.0)
    assert float(light.std()) > 0.5


def test_no_two_blanks_stand_side_by_side():
    data = paths(12, windows=400, held_out=30)
    torch.testing.assert_close(data.test.inputs[:, 1:], data.test.targets[:, :-1])
    blank = int(data.train.inputs.flatten().mode().values)
    pairs = (data.train.inputs[:, 1:] == blank) & (data.train.inputs[:, :-1] == blank)
    assert not bool(pairs.any())


def test_each_value_of_a_series_stands_before_the_next():
    data = series_table(100)
    assert tuple(data.train.inputs.shape) == (100, 8)
    rows, y = (
        torch.cat((data.validation.inputs, data.test.inputs)),
        torch.cat((data.validation.targets, data.test.targets)),
    )
    inner, early = rows[:, 6:8], torch.stack((rows[:, 6], rows[:, 5]), 1)
    along = torch.linalg.lstsq(torch.sin(1.6 * inner), y).solution
    before = torch.linalg.lstsq(torch.sin(1.6 * early), rows[:, 7:8]).solution
    torch.testing.assert_close(along[1], before[0], atol=0.2, rtol=0.2)  # the same law one place on


def test_a_measured_class_is_not_among_its_columns():
    data = sexes_table(120)
    assert set(data.train.targets.tolist()) == {0, 1}
    assert data.train.inputs.shape[1] == 9
    for column in data.train.inputs.T:
        assert len(column.unique()) > 2


def test_cosines_bring_each_patch_to_all_others_without_a_weight():
    block = CosineMixer(12, 1, 10, bias=False).blocks[0]
    patches = torch.randn(5, 16, 12, generator=torch.Generator().manual_seed(0))
    moved = patches.clone()
    moved[:, 3] = moved[:, 3].flip(1)
    assert bool((block(moved) - block(patches)).abs().amax(2).gt(1e-5).all())
    assert sorted(tuple(parameter.shape) for parameter in block.parameters()) == [(12, 36), (36, 12)]


@pytest.mark.parametrize("depth", [2, 3])
def test_a_bowl_sees_coarse_and_fine(depth):
    model = groupnorm_bowl(2, 2, depth)
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert tuple(model(images).shape) == (3, 10)
    assert sum(isinstance(part, torch.nn.Conv2d) for part in model.modules()) == 2 * depth


def test_wrong_labels_are_those_of_the_most_bent_digits_in_training_alone():
    straight, clean, wrong = digits_images(), rippled_digits(True), rippled_digits(True, 0.3)
    changed = clean.train.targets != wrong.train.targets
    assert float(changed.float().mean()) == pytest.approx(0.3, abs=1e-3)
    assert torch.equal(clean.train.inputs, wrong.train.inputs)
    assert torch.equal(clean.test.targets, straight.test.targets)
    assert torch.equal(clean.validation.targets, wrong.validation.targets)
    bent = (clean.train.inputs - straight.train.inputs.flatten(1)).norm(dim=1)
    assert float(bent[changed].mean()) > 1.5 * float(bent[~changed].mean())


def test_weaves_repeat_every_three_pixels_and_no_two_are_alike_wherever_they_begin():
    shown = weaves(noise=0.0).train
    images = shown.inputs[:, 0]
    torch.testing.assert_close(images[:, 3:], images[:, :-3])
    torch.testing.assert_close(images[:, :, 3:], images[:, :, :-3])
    patterns: dict[int, set[tuple[bool, ...]]] = {}
    for label, image in zip(shown.targets.tolist(), images, strict=True):
        patterns.setdefault(label, set()).add(tuple((image[:3, :3] > image.mean()).flatten().tolist()))
    assert sorted(patterns) == list(range(10))
    assert sum(len(begun) for begun in patterns.values()) == len(set().union(*patterns.values()))


def test_the_fuller_the_moon_the_brighter():
    shown = moon_phases().train
    ink = torch.stack([shown.inputs[shown.targets == phase].mean() for phase in range(6)])
    assert bool((ink.diff() > 0.0).all())


def test_half_of_the_patches_are_negatives():
    data = inverted_patches(noise=0.0).train
    same, turned = ((data.inputs - sign * data.targets).abs().amax(1) < 1e-6 for sign in (1.0, -1.0))
    assert bool((same ^ turned).all())
    assert float(turned.float().mean()) == pytest.approx(0.5, abs=0.03)


def test_text_without_vowels_has_fewer_letters():
    data = processes(12, windows=50, held_out=30)
    torch.testing.assert_close(data.test.inputs[:, 1:], data.test.targets[:, :-1])
    folder = Path(sysconfig.get_path("stdlib"))
    names = ("asyncio/futures", "concurrent/futures/thread")
    whole = "".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in names)
    blanks = "".join("." if letter == " " else " " for letter in whole if letter not in "aeiouAEIOU")
    assert all("".join(" " if symbol else "." for symbol in row) in blanks for row in data.validation.inputs.tolist())


def test_a_wave_is_highest_between_its_two_triangles():
    data = waveform_table(100)
    x, kind = (torch.cat([getattr(split, part) for split in (data.validation, data.test)])
               for part in ("inputs", "targets"))  # fmt: skip
    means = torch.stack([x[kind == two].mean(0) for two in range(3)])
    assert [int(means[:, top].argmin()) for top in (6, 14, 10)] == [2, 1, 0]  # where a class lacks the triangle


def test_odd_digits_are_told_from_ink_of_which_every_column_varies():
    data = parity_table(140)
    assert set(data.train.targets.tolist()) == {0, 1}
    torch.testing.assert_close(data.train.inputs.std(0), torch.ones(14))
    assert bool(data.test.inputs.isfinite().all())


def test_axes_reach_a_patch_from_its_row_and_column_alone():
    block = AxialMixer(12, 1, 10, bias=False).blocks[0]
    patches = torch.randn(5, 4, 4, 12, generator=torch.Generator().manual_seed(0))
    moved = patches.clone()
    moved[:, 1, 2] = moved[:, 1, 2].flip(1)
    reached = (block(moved) - block(patches)).abs().amax((0, 3)) > 1e-6
    line = torch.arange(4)
    assert torch.equal(reached, (line[:, None] == 1) | (line == 2))


@pytest.mark.parametrize("depth", [2, 3])
def test_a_fractal_has_one_layer_and_two_smaller_fractals(depth):
    model = groupnorm_fractal(2, 2, depth)
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert tuple(model(images).shape) == (3, 10)
    assert sum(isinstance(part, torch.nn.Conv2d) for part in model.modules()) == 2**depth
