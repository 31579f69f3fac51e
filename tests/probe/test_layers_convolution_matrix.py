"""Both views of a convolution: two quantities, each right, told apart by the kind's name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from layer_twins import Batch, build, check_step, curvature, sample_gradients
from torch import nn

from lipadvisor.probe import Probe


def data(shape: tuple[int, ...], count: int = 4, samples: int = 6) -> list[Batch]:
    generator = torch.Generator().manual_seed(2)
    return [
        (
            torch.randn(samples, *shape, generator=generator, dtype=torch.float64),
            torch.randint(0, 3, (samples,), generator=generator),
        )
        for _ in range(count)
    ]


def flat_images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1, stride=2),
        nn.Tanh(),
        nn.Conv2d(5, 4, (2, 3), padding="same", dilation=(1, 2), padding_mode="reflect"),
        nn.Flatten(),
        nn.Linear(4 * 9, 3),
    )


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, groups=2),
        nn.Tanh(),
        nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2),
        nn.Tanh(),
        nn.ConvTranspose1d(6, 2, 2),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "images": (flat_images, (2, 6, 6)),
    "grouped": (grouped, (2, 6)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("adam", [False, True])
def test_the_matrix_view_is_that_of_reshaped_kernels_and_single_samples(case: str, adam: bool) -> None:
    make, shape = CASES[case]
    batches = data(shape)
    model = build(make, batches[0][0])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3) if adam else torch.optim.SGD(model.parameters(), lr=0.02)
    probe = Probe(model, optimizer, interval=1, conv_view="matrix")
    terms = check_step(model, optimizer, probe, batches)
    assert [kind.endswith("_matrix") for kind in terms.kinds] == [
        isinstance(m, nn.modules.conv._ConvNd) for m in (layer.module for layer in probe.layers)
    ]
    for layer in probe.layers:
        assert tuple(layer.value().shape) == layer.shape


def test_curvature_of_every_sample_is_taken_in_the_matrix_view() -> None:
    batches = data((2, 6, 6))
    model = build(flat_images)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    probe = Probe(model, optimizer, interval=1, conv_view="matrix")
    old = [layer.value().clone() for layer in probe.layers]
    grads = sample_gradients(model, probe, batches[0], nn.functional.cross_entropy)
    terms = check_step(model, optimizer, probe, batches[:1])
    for index in range(2):
        noise = torch.stack([g[index] for g in grads])
        s_1 = torch.linalg.svdvals(old[index])[0]
        q = torch.stack([curvature(old[index], g) for g in noise - noise.mean(0)]).sum()
        expected = q / s_1 / (len(grads) * (len(grads) - 1))
        np.testing.assert_allclose(terms.noise_curvature_L[index], float(expected), rtol=1e-5)


def test_the_two_views_differ_and_are_named_apart() -> None:
    model = build(flat_images)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    example = torch.zeros(1, 2, 6, 6, dtype=torch.float64)
    operator = Probe(model, optimizer, example_input=example).spectrum()
    matrix = Probe(model, optimizer, conv_view="matrix").spectrum()
    assert operator.kinds == ("conv2d", "conv2d", "linear")
    assert matrix.kinds == ("conv2d_matrix", "conv2d_matrix", "linear")
    assert (np.abs(operator.log_norm_L - matrix.log_norm_L)[:2] > 0.05).all()
    assert operator.log_norm_L[2] == pytest.approx(matrix.log_norm_L[2], abs=1e-12)
    np.testing.assert_allclose(operator.log_gain_L, matrix.log_gain_L)
    assert set(matrix.status_L) <= {"ok", "gap_limited"}  # no input size is needed


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"conv_view": "both"}, r"Probe\(conv_view=...\) must be one of"),
        ({"gains": 1}, r"Probe\(gains=...\) must be True or False, got 1"),
        ({"parameters": "yes"}, "parameters"),
    ],
)
def test_bad_choices_are_refused(arguments: dict[str, object], text: str) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=text):
        Probe(model, torch.optim.SGD(model.parameters(), lr=0.1), **arguments)  # type: ignore[arg-type]
