"""One weight that acts in several places is one measured weight, whose samples' gradients are added up over them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from layer_twins import Batch, Loss, build, check_step, take_step
from torch import Tensor, nn

from lipadvisor.probe import Probe


def tokens(count: int = 4, samples: int = 6) -> list[Batch]:
    generator = torch.Generator().manual_seed(4)
    return [
        (
            torch.randint(0, 9, (samples, 5), generator=generator),
            torch.randint(0, 9, (samples,), generator=generator),
        )
        for _ in range(count)
    ]


def vectors(shape: tuple[int, ...], count: int = 4, samples: int = 6) -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(samples, *shape, generator=generator, dtype=torch.float64),
            torch.randint(0, 3, (samples,), generator=generator),
        )
        for _ in range(count)
    ]


class LanguageModel(nn.Module):
    """A table that is also the head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(9, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.tanh(self.inner(self.table(x))).mean(1))
        return y


class TwoPlaces(nn.Module):
    """One matrix in two layers, one of them called twice, over sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight
        self.active = nn.ELU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.active(self.first(x))
        x = self.active(self.second(x.mean(1)))
        y: Tensor = self.head(self.second(x))
        return y


class TwoScales(nn.Module):
    """One kernel on maps of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse, self.head = (
            nn.Conv1d(1, 1, 3, padding=1),
            nn.Conv1d(1, 1, 3, padding=1),
            nn.Linear(4, 3),
        )
        self.coarse.weight = self.fine.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.coarse(torch.tanh(self.fine(x))[..., ::2]).flatten(1))
        return y


CASES: dict[str, tuple[Callable[[], nn.Module], list[Batch]]] = {
    "language": (LanguageModel, tokens()),
    "matrix": (TwoPlaces, vectors((3, 4))),
}
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.02),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3, weight_decay=0.1),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_terms_are_those_of_single_samples(case: str, optimizer: str) -> None:
    make, batches = CASES[case]
    model = build(make)
    probe = Probe(model, optimize := OPTIMIZERS[optimizer](model), interval=1)
    terms = check_step(model, optimize, probe, batches)
    assert len(terms.names) == 2
    assert np.isfinite(terms.noise_curvature_L).all()
    assert [skip.name for skip in probe.skipped] == ["*.bias"]


def test_one_kernel_on_two_sizes_of_maps_has_exact_noise() -> None:
    model = build(TwoScales)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    probe = Probe(model, optimizer, interval=1)
    batches = vectors((1, 8))
    take_step(model, optimizer, probe, batches[0], 0, nn.functional.cross_entropy)
    assert len(probe.layers) == 2
    # The operator is that of the last size seen; the samples' gradients are of both.
    check_step(model, optimizer, probe, batches[1:])


def test_the_kind_is_that_which_counts_in_the_network() -> None:
    model = build(LanguageModel)
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.1))
    (table, _) = probe.layers
    assert (table.name, table.kind, table.shape, table.shared) == ("table", "linear", (9, 4), ("head",))
    assert table.composition == 1.0
    assert not table.flat


def test_an_excluded_name_leaves_the_other_use_counted() -> None:
    batches, loss = tokens(), nn.functional.cross_entropy
    noises = []
    for exclude in ((), ("table",)):
        model = build(LanguageModel)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        probe = Probe(model, optimizer, interval=1, exclude=exclude)
        terms = take_step(model, optimizer, probe, batches[0], 0, loss)
        noises.append(terms.noise_LL[list(terms.names).index("head" if exclude else "table")].max())
    assert noises[0] == pytest.approx(noises[1], rel=1e-6)


class Elsewhere(nn.Module):
    """A layer whose weight a module of the user's own uses too, in a way that cannot be seen."""

    class Own(nn.Module):
        def __init__(self, weight: nn.Parameter) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x @ self.weight)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.own = Elsewhere.Own(self.first.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.own(self.first(x)))
        return y


def test_a_use_that_cannot_be_seen_makes_no_wrong_noise() -> None:
    model = build(Elsewhere)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    probe = Probe(model, optimizer, interval=1)
    loss: Loss = nn.functional.cross_entropy
    check_step(model, optimizer, probe, vectors((4,), count=1), loss, noisy=lambda layer: layer.name == "head",
               statuses=frozenset({"ok", "gap_limited", "uncalibrated", "too_few_points"}))  # fmt: skip
    assert probe.layers[0].uses == ()
    assert {skip.name: skip.reason for skip in probe.skipped}["own"].startswith("Own is no known kind")
