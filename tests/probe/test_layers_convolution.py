"""Convolutions of every dimension in a model that trains: terms against dense operators and single samples."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from layer_twins import Batch, build, check_step
from torch import Tensor, nn

from lipadvisor.probe import Probe


def data(shape: tuple[int, ...], count: int = 4, samples: int = 6) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(samples, *shape, generator=generator, dtype=torch.float64),
            torch.randint(0, 3, (samples,), generator=generator),
        )
        for _ in range(count)
    ]


def one_dimensional() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding="same", padding_mode="circular"),
        nn.Tanh(),
        nn.Conv1d(4, 4, 4, padding="same", groups=2),  # pads more on one side
        nn.ELU(inplace=True),
        nn.ConvTranspose1d(4, 3, 3, stride=2, padding=1, output_padding=1),
        nn.Flatten(),
        nn.Linear(3 * 14, 3),
    )


def two_dimensional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, padding_mode="reflect"),
        nn.Tanh(),
        nn.ConvTranspose2d(3, 4, 3, stride=2, groups=1, dilation=1),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, stride=2, padding=(1, 2), padding_mode="replicate", groups=4),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def three_dimensional() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 2, 2, padding=1),
        nn.Tanh(),
        nn.ConvTranspose3d(2, 2, 2, stride=1, padding=1),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


class Repeated(nn.Module):
    """One convolution that acts twice, with an activation in place behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(25, 3)
        self.active = nn.ELU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.twice(self.active(self.twice(x))).flatten(1))
        return y


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (one_dimensional, (2, 7)),
    "2d": (two_dimensional, (1, 5, 5)),
    "3d": (three_dimensional, (1, 3, 3, 3)),
    "repeated": (Repeated, (1, 5, 5)),
}
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.02, momentum=0.9),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3, weight_decay=0.1),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_terms_are_those_of_dense_operators_and_single_samples(case: str, optimizer: str) -> None:
    make, shape = CASES[case]
    batches = data(shape)
    model = build(make, batches[0][0])
    probe = Probe(model, optimize := OPTIMIZERS[optimizer](model), interval=1)
    terms = check_step(model, optimize, probe, batches)
    assert not [skip for skip in probe.skipped if skip.name != "*.bias"]
    assert np.isfinite(terms.noise_curvature_L).all()
    expected = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    assert [layer.module for layer in probe.layers] == expected


def test_kinds_are_named_by_dimension_and_direction() -> None:
    model = nn.Sequential(nn.Conv3d(1, 2, 1), nn.ConvTranspose1d(4, 6, 3, groups=2), nn.Conv2d(4, 6, 3, groups=2))
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert [layer.kind for layer in probe.layers] == ["conv3d", "conv_transpose1d", "conv2d"]
    assert [layer.shape for layer in probe.layers] == [(2, 1), (6, 6), (6, 18)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_like_convolutions_of_any_kind_are_one_pack(optimizer: str) -> None:
    """Also where the sizes of their maps turn out to differ."""

    def make() -> nn.Module:
        like = [nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular", groups=2) for _ in range(3)]
        back = [nn.ConvTranspose1d(4, 4, 3, stride=2) for _ in range(2)]
        parts = [nn.Conv1d(2, 4, 3), nn.Tanh(), *like[:2], nn.Tanh(), back[0], like[2], nn.Tanh(), back[1]]
        return nn.Sequential(*parts, nn.Flatten(), nn.LazyLinear(3))

    batches = data((2, 7))
    model = build(make, batches[0][0])
    probe = Probe(model, optimize := OPTIMIZERS[optimizer](model), interval=1)
    assert sorted(len(pack.layers) for pack in probe._packs) == [1, 1, 2, 3]
    terms = check_step(model, optimize, probe, batches)
    assert sorted(len(pack.layers) for pack in probe._packs) == [1, 1, 1, 1, 1, 2]
    assert np.isfinite(terms.noise_curvature_L).all()


def test_a_thousand_transposes_are_set_up_as_one() -> None:
    model = nn.Sequential(*(nn.ConvTranspose1d(4, 4, 3, padding=1) for _ in range(1000)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    began = time.process_time()
    probe = Probe(model, optimizer, example_input=torch.zeros(1, 4, 8))
    terms = probe.spectrum()
    assert time.process_time() - began < 4.0  # 0.5 s on an idle processor, 11 s one by one
    assert len(probe._packs) == 1
    assert "not_converged" not in terms.status_L
