"""The four small networks that the bars are measured on, all for the digits, each a few thousand weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lipadvisor.experiments.reproduce.convnet import conv_net

__all__ = ["NETWORKS"]


class _Residual(nn.Module):
    """``x + W_2 relu(W_1 x)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, of the input's shape."""
        y: Tensor = x + self.second(torch.relu(self.first(x)))
        return y


class _Block(nn.Module):
    """A pre-LN Transformer block: attention with two heads, then a perceptron of twice the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for tokens (B, T, D)."""
        h = self.norm_1(x)
        query, key, value = (self._split(layer(h)) for layer in (self.query, self.key, self.value))
        score = torch.softmax(query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5, dim=-1)
        x = x + self.out((score @ value).transpose(-3, -2).flatten(-2))
        y: Tensor = x + self.down(torch.relu(self.up(self.norm_2(x))))
        return y

    def _split(self, x: Tensor) -> Tensor:
        y: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)
        return y


class _Transformer(nn.Module):
    """Reads an image row by row: eight tokens of eight pixels."""

    def __init__(self, width: int = 16, blocks: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.position = nn.Parameter(0.1 * torch.randn(8, width))
        self.blocks = nn.Sequential(*[_Block(width, heads) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 10) of images (B, 1, 8, 8)."""
        tokens = self.blocks(self.embed(x.squeeze(1)) + self.position)
        logits: Tensor = self.head(self.norm(tokens).mean(1))
        return logits


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))


def _convnet() -> nn.Module:
    return conv_net((1, 8, 8), 10, width=8)


def _residual() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), *[_Residual(24) for _ in range(3)], nn.Linear(24, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": _mlp,
    "convnet": _convnet,
    "residual": _residual,
    "transformer": _Transformer,
}
