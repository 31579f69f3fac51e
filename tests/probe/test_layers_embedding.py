"""Tables in a model that trains: terms against the table's SVD and the gradients of single samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from layer_twins import Batch, build, check_step, take_step
from torch import Tensor, nn

from lipadvisor.probe import Probe
from lipadvisor.probe.kinds.embedding import BagUse


def data(high: int = 9, count: int = 4, samples: int = 6, length: int = 5) -> list[Batch]:
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.randint(0, high, (samples, length), generator=generator),
            torch.randint(0, 3, (samples,), generator=generator),
        )
        for _ in range(count)
    ]


class Words(nn.Module):
    """A table, a layer, a mean over the words, a head."""

    def __init__(self, rows: int = 9, padding_idx: int | None = None, max_norm: float | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 4, padding_idx=padding_idx, max_norm=max_norm)
        self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.head(torch.tanh(self.inner(self.table(tokens))).mean(1))
        return y


class Bags(nn.Module):
    """A bag of words with weights, and a head."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.table, self.head = nn.EmbeddingBag(9, 4, mode=mode, padding_idx=2), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        weights = None if self.mode == "mean" else torch.cos(tokens.double())
        y: Tensor = self.head(torch.tanh(self.table(tokens, per_sample_weights=weights)))
        return y


CASES: dict[str, Callable[[], nn.Module]] = {
    "plain": Words,
    "tall": lambda: Words(rows=40),
    "padding": lambda: Words(padding_idx=3),
    "mean_bag": lambda: Bags("mean"),
    "sum_bag": lambda: Bags("sum"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("adam", [False, True])
def test_terms_are_those_of_the_table_and_single_samples(case: str, adam: bool) -> None:
    model = build(CASES[case])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3) if adam else torch.optim.SGD(model.parameters(), lr=0.05)
    probe = Probe(model, optimizer, interval=1)
    terms = check_step(model, optimizer, probe, data())
    assert terms.kinds[0] == "embedding"
    assert terms.shapes[0][0] == 4
    assert terms.composition_L[0] == 0.0
    assert terms.network_log_norm == pytest.approx(terms.log_norm_L[1:].sum())
    assert np.isnan(terms.log_gain_L[0])
    assert np.isfinite(terms.noise_curvature_L).all()


def test_rows_that_are_renormalised_in_the_forward_pass_are_measured_as_they_are() -> None:
    model = build(lambda: Words(max_norm=1.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    probe = Probe(model, optimizer, interval=1)
    x, y = data(count=1)[0]
    with torch.no_grad():
        model(x)
    terms = take_step(model, optimizer, probe, (x, y), 0, nn.functional.cross_entropy)
    s_1 = torch.linalg.svdvals(model.table.weight.detach())[0]
    assert terms.log_norm_after_L[0] == pytest.approx(float(s_1.log()), abs=1e-6)


@pytest.mark.parametrize("last", [False, True])
def test_bags_of_different_sizes_are_told_apart(last: bool) -> None:
    module = build(lambda: nn.EmbeddingBag(7, 3, mode="mean", include_last_offset=last))
    assert isinstance(module, nn.EmbeddingBag)
    index, starts = torch.tensor([0, 3, 3, 6, 1, 2, 5]), [0, 2, 2, 6]
    ends = [*starts[1:], len(index)]
    offsets = torch.tensor(starts + ([len(index)] if last else []))
    use = BagUse(module)
    kept = use.read((index, offsets), {})
    assert kept is not None
    assert kept.count == 4
    generator = torch.Generator().manual_seed(0)
    grad, jacobian = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (4, 7))
    weights = torch.randn(4, generator=generator, dtype=torch.float64)
    per_sample = []
    for bag, (start, end) in enumerate(zip(starts, ends, strict=True)):
        out = module(index[start:end], torch.tensor([0, end - start] if last else [0]))
        per_sample.append(torch.autograd.grad((out[0] * grad[bag]).sum(), module.weight)[0])
    expected = torch.stack([(g * jacobian).sum() for g in per_sample])
    torch.testing.assert_close(use.scalars(jacobian, kept, grad), expected, rtol=1e-10, atol=1e-12)
    total = sum(w * g for w, g in zip(weights, per_sample, strict=True))
    torch.testing.assert_close(use.weighted(weights, kept, grad), total, rtol=1e-10, atol=1e-12)


class Positions(nn.Module):
    """Positions that all samples share: their lookups do not say whose gradient is whose."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places, self.head = nn.Embedding(9, 4), nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens) + self.places(torch.arange(tokens.shape[1]))
        y: Tensor = self.head(torch.tanh(x).mean(1))
        return y


@pytest.mark.parametrize("samples", [5, 6, 10])
def test_shared_positions_are_never_taken_for_samples(samples: int) -> None:
    model = build(Positions)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    probe = Probe(model, optimizer, interval=1)
    terms = check_step(
        model, optimizer, probe, data(count=2, samples=samples), noisy=lambda layer: layer.name != "places",
        statuses=frozenset({"ok", "gap_limited"}),
    )  # fmt: skip
    assert terms.status_L[1] == "not_measured"


def test_sparse_gradients_are_left_out_with_the_reason() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2))
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert [layer.name for layer in probe.layers] == ["1"]
    reasons = {skip.name: skip.reason for skip in probe.skipped}
    assert "sparse" in reasons["0"]
