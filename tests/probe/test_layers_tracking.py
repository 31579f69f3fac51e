"""Norms of every kind of layer along a training, at every step against exact ones in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipadvisor.probe import Probe

VOCABULARY, LENGTH, STEPS = 60, 12, 150


class Reader(nn.Module):
    """A small language model: tied table, positions, a convolution and its transpose, attention, weight norm."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 4, batch_first=True)
        self.down = nn.Conv1d(width, 16, 3, stride=2, padding=1, padding_mode="replicate")
        self.up = nn.ConvTranspose1d(16, width, 3, stride=2, padding=1, output_padding=1)
        self.inner = nn.utils.parametrizations.weight_norm(nn.Linear(width, width))
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.norm(self.table(tokens) + self.places(torch.arange(LENGTH)))
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        h = h + self.attention(h, h, h, attn_mask=mask, is_causal=True, need_weights=False)[0]
        h = h + self.up(torch.relu(self.down(h.mT))).mT
        y: Tensor = self.head(torch.relu(self.inner(h)))
        return y


def walks(generator: torch.Generator, samples: int = 16) -> Tensor:
    """Random walks over the vocabulary: the next token is near the last one."""
    steps = torch.randint(-2, 3, (samples, LENGTH + 1), generator=generator)
    start = torch.randint(0, VOCABULARY, (samples, 1), generator=generator)
    return (start + steps.cumsum(1)) % VOCABULARY


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.02, momentum=0.9),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=2e-3, weight_decay=0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_norms_and_changes_are_followed_along_a_training(optimizer: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Reader()
    optimize = OPTIMIZERS[optimizer](model)
    probe = Probe(model, optimize, interval=1, gains=True, example_input=torch.zeros(1, LENGTH, dtype=torch.long))
    generator = torch.Generator().manual_seed(0)
    lr, wd = optimize.param_groups[0]["lr"], optimize.param_groups[0]["weight_decay"]

    def exact() -> np.ndarray:
        logs = []
        for index, layer in enumerate(probe.layers):
            operator = layer.operator(probe._capture.input_shapes.get(index))
            assert operator is not None
            dense = operator.apply(layer.value().double(), torch.eye(operator.inputs, dtype=torch.float64))
            logs.append(0.5 * float(torch.linalg.eigvalsh(dense.mT @ dense)[-1].log()))
        return np.array(logs)

    errors, drifts, before = [], [], exact()
    start, total = before, np.zeros(len(before))
    for step in range(STEPS):
        text = walks(generator)
        probe.arm(step)
        nn.functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten()).backward()
        probe.before_update()
        optimize.step()
        probe.after_update({0: lr}, {0: wd if optimizer == "adamw" else 0.0})
        optimize.zero_grad()
        terms = probe.collect(step)
        assert terms is not None
        now = exact()
        errors.append(np.abs(terms.log_norm_after_L - now))
        total += terms.change_L
        drifts.append(np.abs(total - (now - start)))
    assert len(probe.layers) == 10
    table = dict(zip(terms.names, np.quantile(errors, 0.95, axis=0), strict=True))
    assert max(table.values()) < 1e-4, table
    far = dict(zip(terms.names, np.max(drifts, axis=0), strict=True))
    assert max(far.values()) < 0.02, far
    assert abs(now - start).max() > 0.1  # it has moved
