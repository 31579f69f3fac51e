"""Networks of what was the second confirmation list; same rules as the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lipadvisor.experiments.benchmarks.networks import BatchNorm, Residual, conv, perceptron

__all__ = [
    "ElmanRegressor",
    "LstmLanguageModel",
    "PatchTransformer",
    "batchnorm_convnet",
    "denoising_convnet",
    "residual_perceptron",
]


class LstmLanguageModel(nn.Module):
    """Embedding, one long short-term memory (four gates in one matrix each way), head."""

    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.token = nn.Embedding(vocabulary, width)
        self.read, self.recur = nn.Linear(width, 4 * hidden), nn.Linear(hidden, 4 * hidden)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        given = self.read(self.token(tokens))
        state = cell = torch.zeros_like(given[:, 0, : self.hidden])
        states = []
        for step in range(given.shape[1]):
            i, f, g, o = (given[:, step] + self.recur(state)).chunk(4, -1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            state = torch.sigmoid(o) * torch.tanh(cell)
            states.append(state)
        y: Tensor = self.head(torch.stack(states, 1))
        return y


class ElmanRegressor(nn.Module):
    """A plain tanh recurrence over a sequence, read out at the end."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.read, self.recur = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden, bias=False)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 1) for sequences (B, T, inputs)."""
        given = self.read(x)
        state = torch.tanh(given[:, 0])
        for step in range(1, x.shape[1]):
            state = torch.tanh(given[:, step] + self.recur(state))
        y: Tensor = self.head(state)
        return y


class PatchTransformer(nn.Module):
    """A pre-LN Transformer that sees all 2 x 2 patches of an 8 x 8 image at once."""

    def __init__(self, width: int, heads: int, depth: int, classes: int) -> None:
        super().__init__()
        self.stem, self.position = nn.Linear(4, width), nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.Sequential(*(_OpenBlock(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) for images (B, 1, 8, 8)."""
        patches = images[:, 0].unfold(1, 2, 2).unfold(2, 2, 2).reshape(-1, 16, 4)
        y: Tensor = self.head(self.norm(self.blocks(self.stem(patches) + self.position)).mean(1))
        return y


class _OpenBlock(nn.Module):
    """One pre-LN block whose attention is not causal, with a matrix each for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.write = (nn.Linear(width, width) for _ in range(4))
        self.mlp = perceptron(width, 2 * width, width, activation=nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, width)."""
        rows, length, width = x.shape
        seen = self.norm_1(x)
        q, k, v = (
            part(seen).view(rows, length, self.heads, width // self.heads).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        mixed = (q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5).softmax(-1) @ v
        x = x + self.write(mixed.transpose(1, 2).reshape(rows, length, width))
        y: Tensor = x + self.mlp(self.norm_2(x))
        return y


def residual_perceptron(inputs: int, width: int, blocks: int, outputs: int) -> nn.Module:
    """Return a residual MLP: each branch a LayerNorm and two Linear layers."""
    branches = [
        Residual(nn.Sequential(nn.LayerNorm(width), perceptron(width, 2 * width, width, activation=nn.SiLU)))
        for _ in range(blocks)
    ]
    return nn.Sequential(nn.Linear(inputs, width), *branches, nn.Linear(width, outputs))


def batchnorm_convnet(width: int) -> nn.Module:
    """Return four plain convolutions with BatchNorm on 8 x 8 images, pooled to one vector."""
    layers: list[nn.Module] = []
    for index, inputs in enumerate((1, width, width, 2 * width)):
        outputs = width if index < 2 else 2 * width
        layers += [conv(inputs, outputs), BatchNorm(outputs), nn.ReLU()] + ([nn.AvgPool2d(2)] if index == 1 else [])
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def denoising_convnet(width: int) -> nn.Module:
    """Return three convolutions from an image to an image, no norms."""
    return nn.Sequential(conv(1, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, 1))
