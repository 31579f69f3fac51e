"""Samples that come in several backward passes, places flattened into the batch, and sequences first: every kind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from layer_twins import build, sample_gradients, top_pair
from torch import Tensor, nn

from lipadvisor.probe import Probe
from lipadvisor.terms import Terms


class Reader(nn.Module):
    """A tied table, a convolution along the sequence, attention with sequences first, gains."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv = nn.Embedding(9, 4), nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular")
        self.attention, self.norm = nn.MultiheadAttention(4, 2), nn.LayerNorm(4)
        self.inner = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.norm(self.conv(self.table(tokens).mT).mT).transpose(0, 1)
        h = (h + self.attention(h, h, h, need_weights=False)[0]).transpose(0, 1)
        y: Tensor = self.head(torch.tanh(self.inner(h)).mean(1))
        return y


class SequenceFirst(nn.Module):
    """A linear layer that is given (T, B, n) inside a model whose batch comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(9, 4), nn.Linear(4, 5), nn.Linear(5, 9)

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.tanh(self.inner(self.table(tokens).transpose(0, 1)))
        y: Tensor = self.head(h.mean(0))
        return y


class Flattened(nn.Module):
    """Windows of a sequence that are flattened into the batch before a convolution, a table and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv, self.inner, self.head = (
            nn.Embedding(9, 4),
            nn.Conv1d(4, 4, 2),
            nn.Linear(4, 4),
            nn.Linear(4, 9),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        windows = self.table(tokens.reshape(-1, 2)).mT  # (B x 3, 4, 2)
        h = torch.tanh(self.inner(self.conv(windows)[..., 0]))
        y: Tensor = self.head(h.reshape(len(tokens), 3, 4).mean(1))
        return y


def tokens(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 9, (samples, 6), generator=generator), torch.randint(0, 9, (samples,), generator=generator)


def measure(model: nn.Module, optimizer: torch.optim.Optimizer, probe: Probe, parts: int) -> tuple[Terms, np.ndarray]:
    """One step over eight samples in ``parts`` backward passes, and the covariance that single samples give."""
    x, y = tokens(8, 0)
    loss = nn.functional.cross_entropy
    grads = sample_gradients(model, probe, (x, y), loss)
    probe.arm(0)
    for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
        (loss(model(a), b) / parts).backward()
    probe.before_update()
    optimizer.step()
    probe.after_update({0: 0.02}, {0: 0.0})
    optimizer.zero_grad()
    terms = probe.collect(0)
    assert terms is not None
    rows = []
    for index, layer in enumerate(probe.layers):
        u, s_1, v = top_pair(probe, index)
        operator = layer.operator(probe._capture.input_shapes.get(index))
        assert operator is not None
        jacobian = operator.outer(u[None], v[None]).reshape(layer.form.kernel_shape) / s_1
        rows.append(torch.stack([(g[index] * jacobian).sum() for g in grads]).numpy())
    return terms, np.cov(np.stack(rows)) / len(x)


@pytest.mark.parametrize("make", [SequenceFirst, Flattened])
@pytest.mark.parametrize("parts", [1, 2])
def test_samples_are_found_where_they_are(make: Callable[[], nn.Module], parts: int) -> None:
    model = build(make)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    terms, expected = measure(model, optimizer, Probe(model, optimizer, interval=1), parts)
    np.testing.assert_allclose(terms.noise_LL, expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())
    assert set(terms.status_L) <= {"ok", "gap_limited"}


def test_accumulated_batches_may_be_of_different_lengths() -> None:
    model = build(SequenceFirst)
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.02), interval=1)
    probe.arm(0)
    for length in (3, 5, 4):
        x, y = tokens(8, length)
        nn.functional.cross_entropy(model(x[:, :length]), y).backward()
    for index, layer in enumerate(probe.layers[1:], start=1):
        batch = probe._capture.batch(index)
        assert isinstance(batch, tuple)
        inputs, grads = batch
        assert inputs.shape[0] == 24
        assert layer.weight.grad is not None
        torch.testing.assert_close(torch.einsum("btm,btn->mn", grads, inputs), layer.weight.grad)
    probe.close()


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_accumulated_batches_give_the_noise_of_one_batch(parts: int) -> None:
    model = build(Reader)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    probe = Probe(model, optimizer, interval=1, gains=True)
    plain = [index for index, layer in enumerate(probe.layers) if layer.name != "inner"]  # a computed weight
    assert len(plain) == 7
    terms, expected = measure(model, optimizer, probe, parts)
    found, wanted = terms.noise_LL[np.ix_(plain, plain)], expected[np.ix_(plain, plain)]
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12 * np.abs(wanted).max())
    assert set(terms.status_L) <= {"ok", "gap_limited"}


class EncoderOfSequences(nn.Module):
    """torch's own encoder layer, which keeps sequences first, behind a table that keeps samples first."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0)

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.head(self.encoder(self.table(tokens).transpose(0, 1)).mean(0))
        return y


@pytest.mark.parametrize("places", [3, 12, 6])
def test_samples_that_come_second_are_found_or_not_made_up(places: int) -> None:
    """Twelve places are twice the samples, six as many: then nothing tells which is which."""
    model, generator = build(EncoderOfSequences), torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probe = Probe(model, optimizer, interval=1, gains=True)
    tokens = torch.randint(0, 9, (6, places), generator=generator)
    weights = [layer.weight for layer in probe.layers]
    grads = []
    for row in tokens:
        loss = nn.functional.cross_entropy(model(row[None]), row[:1])
        grads.append([g.detach() for g in torch.autograd.grad(loss, weights)])
    probe.arm(0)
    nn.functional.cross_entropy(model(tokens), tokens[:, 0]).backward()
    probe.before_update()
    optimizer.step()
    probe.after_update({0: 0.01}, {0: 0.0})
    terms = probe.collect(0)
    assert terms is not None
    for index, layer in enumerate(probe.layers):
        if places == 6 and layer.name in ("encoder.linear1", "encoder.linear2", "encoder.norm1", "encoder.norm2"):
            assert np.isnan(terms.noise_LL[index, index]), layer.name
            continue
        u, s, v = top_pair(probe, index)
        matrices = [layer.view(g[index]) for g in grads]
        each = [u @ (m * v if m.dim() == 1 else m @ v) / s for m in matrices]
        np.testing.assert_allclose(
            terms.noise_LL[index, index], float(torch.stack(each).var()) / 6, rtol=1e-9, err_msg=layer.name
        )
    assert set(terms.status_L) <= {"ok", "gap_limited", "too_few_points"}
