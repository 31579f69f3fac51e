"""Networks of what was the third confirmation list; same rules as the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lipadvisor.experiments.benchmarks.networks import BatchNorm, Block, GruCell, conv

__all__ = ["ElmanLanguageModel", "GruColumns", "RowTransformer", "batchnorm_stack", "sharpening_convnet"]


class ElmanLanguageModel(nn.Module):
    """Embedding, a plain tanh recurrence, head."""

    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.read, self.recur = nn.Linear(width, hidden), nn.Linear(hidden, hidden, bias=False)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        given = self.read(self.token(tokens))
        state = torch.tanh(given[:, 0])
        states = [state]
        for step in range(1, given.shape[1]):
            state = torch.tanh(given[:, step] + self.recur(state))
            states.append(state)
        y: Tensor = self.head(torch.stack(states, 1))
        return y


class GruColumns(nn.Module):
    """Reads an image column by column and classifies the mean of all states."""

    def __init__(self, hidden: int, classes: int) -> None:
        super().__init__()
        self.cell, self.head = GruCell(8, hidden), nn.Linear(hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) for images (B, 1, 8, 8)."""
        y: Tensor = self.head(self.cell(images[:, 0].transpose(1, 2)).mean(1))
        return y


class RowTransformer(nn.Module):
    """A causal Transformer over the rows of an 8 x 8 image, norms before the branches (``pre``) or after the sums."""

    def __init__(self, width: int, heads: int, depth: int, classes: int, pre: bool) -> None:
        super().__init__()
        self.stem, self.position = nn.Linear(8, width), nn.Parameter(0.02 * torch.randn(8, width))
        self.blocks = nn.Sequential(*(Block(width, heads, pre) for _ in range(depth)))
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) for images (B, 1, 8, 8)."""
        y: Tensor = self.head(self.blocks(self.stem(images[:, 0]) + self.position)[:, -1])
        return y


def batchnorm_stack(width: int, depth: int) -> nn.Module:
    """Return ``depth`` plain convolutions with BatchNorm and GELU on 8 x 8 images, pooled twice."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [conv(1 if index == 0 else width, width), BatchNorm(width), nn.GELU()]
        layers += [nn.MaxPool2d(2)] if index in (0, depth - 1) else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width, 10))


def sharpening_convnet(width: int) -> nn.Module:
    """Return four convolutions with GroupNorm from an image to an image."""
    inner = [(conv(width, width), nn.GroupNorm(2, width), nn.SiLU()) for _ in range(2)]
    return nn.Sequential(conv(1, width), nn.SiLU(), *(m for block in inner for m in block), conv(width, 1))
