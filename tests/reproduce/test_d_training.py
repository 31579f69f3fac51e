"""The shared pieces of the reproductions of [D]: network, regularizers, labels, one measured run, its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lipadvisor.experiments.reproduce.convnet import conv_net, initialize
from lipadvisor.experiments.reproduce.images import Images, load_images, noisy_labels
from lipadvisor.experiments.reproduce.regularizers import REGULARIZERS, soft_cross_entropy
from lipadvisor.experiments.reproduce.run_log import RunLog, kept_run
from lipadvisor.experiments.reproduce.training import Recipe, train
from lipadvisor.terms import Terms


@pytest.fixture(scope="module")
def images() -> Images:
    return load_images("digits")


def small(width: int = 4) -> nn.Module:
    return conv_net((1, 8, 8), 10, width=width)


def test_there_are_nine_settings_and_five_layers() -> None:
    assert len(REGULARIZERS) == 9
    weights = [p for p in conv_net((3, 32, 32), 100).parameters() if p.dim() > 1]
    assert len(weights) == 5
    assert conv_net((3, 32, 32), 100)(torch.zeros(2, 3, 32, 32)).shape == (2, 100)
    with pytest.raises(ValueError, match="divisible by 4"):
        conv_net((1, 6, 8), 10)


@pytest.mark.parametrize("name", [n for n, s in REGULARIZERS.items() if s.transform is not None])
def test_transforms_keep_shapes_and_probabilities(images: Images, name: str) -> None:
    model, transform = small(), REGULARIZERS[name].transform
    assert transform is not None
    inputs = images.train_inputs[:16]
    target = torch.eye(10)[images.train_targets[:16]]
    made = [transform(model, inputs, target, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert made[0][0].shape == inputs.shape
    torch.testing.assert_close(made[0][1].sum(1), torch.ones(16))
    assert torch.equal(made[0][0], made[1][0])
    assert name == "label_smoothing" or not torch.equal(made[0][0], made[2][0])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_attack_stays_in_its_box_and_raises_the_loss(images: Images) -> None:
    model, transform = small(8), REGULARIZERS["adversarial"].transform
    assert transform is not None
    inputs, target = images.train_inputs[:64], torch.eye(10)[images.train_targets[:64]]
    moved, _ = transform(model, inputs, target, torch.Generator().manual_seed(0))
    assert float((moved - inputs).abs().max()) <= 0.1 + 1e-6
    with torch.no_grad():
        assert soft_cross_entropy(model(moved), target) > soft_cross_entropy(model(inputs), target)


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_that_many_labels_are_wrong(images: Images, rate: float) -> None:
    noisy = noisy_labels(images, rate, seed=3)
    wrong = float((noisy.train_targets != images.train_targets).double().mean())
    assert wrong == pytest.approx(rate, abs=1.0 / len(images.train_targets))
    assert torch.equal(noisy.test_targets, images.test_targets)


def test_initializations_have_the_norms_that_theory_gives() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for kind, norm in (("pytorch", 1.155), ("xavier", 2.0), ("kaiming", 2.828), ("orthogonal", 1.0)):
            layer = nn.Linear(300, 300)
            initialize(layer, kind)
            assert float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) == pytest.approx(norm, rel=0.05)
    with pytest.raises(ValueError, match="kind"):
        initialize(nn.Linear(2, 2), "zeros")


def test_a_run_repeats_itself_and_leaves_the_generator_alone(images: Images) -> None:
    recipe = Recipe("sgd", 4, regularizer=REGULARIZERS["dropout"])
    before = torch.get_rng_state()
    found: list[list[Terms]] = []
    for _ in range(2):
        terms_T: list[Terms] = []

        def on_step(step: int, loss: float, terms: Terms | None, terms_T: list[Terms] = terms_T) -> None:
            assert terms is not None
            terms_T.append(terms)

        train(recipe, images, lambda: conv_net((1, 8, 8), 10, dropout=0.25, width=4), on_step)
        found.append(terms_T)
    assert torch.equal(before, torch.get_rng_state())
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one.log_norm_L, two.log_norm_L)
        np.testing.assert_array_equal(one.noise_LL, two.noise_LL)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
@pytest.mark.parametrize("setting", ["weight_decay", "clipping", "batch_norm"])
def test_the_predicted_change_is_the_observed_one(images: Images, optimizer: str, setting: str) -> None:
    regularizer = REGULARIZERS[setting]
    terms_T: list[Terms] = []

    def on_step(step: int, loss: float, terms: Terms | None) -> None:
        assert terms is not None
        terms_T.append(terms)

    recipe = Recipe(optimizer, 12, regularizer=regularizer)  # type: ignore[arg-type]
    train(recipe, images, lambda: conv_net((1, 8, 8), 10, 0.0, regularizer.batch_norm, 4), on_step)
    predicted = np.sum([terms.change_L for terms in terms_T[:-1]], axis=0)
    observed = terms_T[-1].log_norm_L - terms_T[0].log_norm_L
    np.testing.assert_allclose(predicted, observed, atol=2e-4 + 0.02 * np.abs(observed).max())


def test_noise_is_carried_between_its_measurements(images: Images) -> None:
    terms_T: list[Terms] = []

    def on_step(step: int, loss: float, terms: Terms | None) -> None:
        assert terms is not None
        terms_T.append(terms)

    train(Recipe("sgd", 5, noise_interval=4), images, small, on_step)
    for carried in terms_T[1:4]:
        np.testing.assert_array_equal(carried.noise_LL, terms_T[0].noise_LL)
    assert not np.array_equal(terms_T[4].noise_LL, terms_T[0].noise_LL)


def test_a_run_is_kept_read_back_and_not_run_again(images: Images, tmp_path: Path) -> None:
    path, lines = tmp_path / "run.npz", []
    recipe = Recipe("momentum", 6, interval=2)
    first = kept_run(path, recipe, images, small, lines.append)
    second = kept_run(path, recipe, images, small, lines.append)
    assert "kept" in lines[-1]
    assert len(first) == len(second) == 3
    for one, two in zip(first.terms(), second.terms(), strict=True):
        for name in ("step", "names", "shapes", "optimizer", "status_L", "network_log_norm"):
            assert getattr(one, name) == getattr(two, name)
        np.testing.assert_array_equal(one.first_L, two.first_L)
        np.testing.assert_array_equal(one.noise_LL, two.noise_LL)
    other = kept_run(path, Recipe("momentum", 4, interval=2), images, small, lines.append)
    assert len(other) == 2
    path.write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"not a recorded run|pickle"):
        RunLog.load(path)
