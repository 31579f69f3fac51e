"""The bench's networks, written so that ``vmap`` stacks them: no buffers, no dropout, PyTorch's own initialization."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "CharacterTransformer",
    "GruLanguageModel",
    "GruReader",
    "Mixer",
    "perceptron",
    "plain_convnet",
    "residual_convnet",
]


def perceptron(
    *sizes: int, activation: type[nn.Module] = nn.ReLU, bias: bool = True, norm: type[nn.Module] | None = None
) -> nn.Sequential:
    """Return Linear layers of the given sizes with ``activation`` (and ``norm`` before it) between them."""
    layers: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(fan_in, fan_out, bias=bias))
        if index < len(sizes) - 2:
            layers += ([norm(fan_out)] if norm is not None else []) + [activation()]
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """``x + f(x)``."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the input and the branch."""
        y: Tensor = x + self.branch(x)
        return y


class Attention(nn.Module):
    """Causal self-attention with one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.read = nn.Linear(width, 3 * width)
        self.write = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, width)."""
        rows, length, width = x.shape
        q, k, v = self.read(x).view(rows, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = logits.masked_fill(later, -1e9).softmax(-1) @ v
        y: Tensor = self.write(mixed.transpose(1, 2).reshape(rows, length, width))
        return y


class Block(nn.Module):
    """One Transformer block, norms before the branches (``pre``) or after the sums."""

    def __init__(self, width: int, heads: int, pre: bool) -> None:
        super().__init__()
        self.pre = pre
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = perceptron(width, 4 * width, width, activation=nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, width)."""
        if self.pre:
            x = x + self.attention(self.norm_1(x))
            y: Tensor = x + self.mlp(self.norm_2(x))
        else:
            x = self.norm_1(x + self.attention(x))
            y = self.norm_2(x + self.mlp(x))
        return y


class CharacterTransformer(nn.Module):
    """A small GPT over characters: learnt positions, ``depth`` blocks, untied head."""

    def __init__(self, vocabulary: int, length: int, width: int, heads: int, depth: int, pre: bool) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, pre) for _ in range(depth)))
        self.norm = nn.LayerNorm(width) if pre else nn.Identity()
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        x = self.token(tokens) + self.position.weight
        y: Tensor = self.head(self.norm(self.blocks(x)))
        return y


class GruCell(nn.Module):
    """A gated recurrent unit over a whole sequence, with the three gates in one matrix each way."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.read, self.recur = nn.Linear(inputs, 3 * hidden), nn.Linear(hidden, 3 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return all states (B, T, hidden) for inputs (B, T, inputs)."""
        given = self.read(x)
        state = torch.zeros_like(given[:, 0, : self.hidden])
        states = []
        for step in range(x.shape[1]):
            a_r, a_z, a_n = given[:, step].chunk(3, -1)
            b_r, b_z, b_n = self.recur(state).chunk(3, -1)
            update = torch.sigmoid(a_z + b_z)
            fresh = torch.tanh(a_n + torch.sigmoid(a_r + b_r) * b_n)
            state = fresh + update * (state - fresh)
            states.append(state)
        return torch.stack(states, 1)


class GruLanguageModel(nn.Module):
    """Embedding, one recurrent layer, head."""

    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.token, self.cell = nn.Embedding(vocabulary, width), GruCell(width, hidden)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        y: Tensor = self.head(self.cell(self.token(tokens)))
        return y


class GruReader(nn.Module):
    """Reads an image row by row and classifies the last state."""

    def __init__(self, hidden: int, classes: int) -> None:
        super().__init__()
        self.cell, self.head = GruCell(8, hidden), nn.Linear(hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) for images (B, 1, 8, 8)."""
        y: Tensor = self.head(self.cell(images[:, 0])[:, -1])
        return y


class MixerBlock(nn.Module):
    """Mixes the tokens, then the channels, each with a residual branch."""

    def __init__(self, tokens: int, width: int, bias: bool) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = (nn.LayerNorm(width, elementwise_affine=bias) for _ in range(2))
        self.tokens = perceptron(tokens, 2 * tokens, tokens, activation=nn.GELU, bias=bias)
        self.channels = perceptron(width, 2 * width, width, activation=nn.GELU, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, tokens, width)."""
        x = x + self.tokens(self.norm_1(x).transpose(1, 2)).transpose(1, 2)
        y: Tensor = x + self.channels(self.norm_2(x))
        return y


class Mixer(nn.Module):
    """An MLP-mixer on 8 x 8 images cut into 2 x 2 patches."""

    def __init__(self, width: int, depth: int, classes: int, bias: bool = True) -> None:
        super().__init__()
        self.stem = nn.Linear(4, width, bias=bias)
        self.blocks = nn.Sequential(*(MixerBlock(16, width, bias) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, elementwise_affine=bias)
        self.head = nn.Linear(width, classes, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) for images (B, 1, 8, 8)."""
        patches = images[:, 0].unfold(1, 2, 2).unfold(2, 2, 2).reshape(-1, 16, 4)
        y: Tensor = self.head(self.norm(self.blocks(self.stem(patches))).mean(1))
        return y


class BatchNorm(nn.Module):
    """Batch normalisation of images by the statistics of the batch at hand, in training and in evaluation alike.

    It keeps no running statistics, which ``vmap`` could not update in place.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W), each channel normalised over B, H and W."""
        y: Tensor = functional.batch_norm(x, None, None, self.weight, self.bias, training=True)
        return y


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a 3 x 3 convolution that keeps the image's size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def residual_convnet(width: int, blocks: int) -> nn.Module:
    """Return a BatchNorm ResNet for 8 x 8 images, pooled once."""
    layers: list[nn.Module] = [conv(1, width), BatchNorm(width), nn.ReLU(), nn.AvgPool2d(2)]
    for _ in range(blocks):
        layers.append(
            Residual(
                nn.Sequential(conv(width, width), BatchNorm(width), nn.ReLU(), conv(width, width), BatchNorm(width))
            )
        )
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def plain_convnet(width: int, norm: bool) -> nn.Module:
    """Return three convolutions and a head, with GroupNorm or without."""
    layers: list[nn.Module] = []
    for index, inputs in enumerate((1, width, width)):
        layers.append(conv(inputs, width))
        layers += [nn.GroupNorm(4, width)] if norm else []
        layers += [nn.ReLU()] + ([nn.AvgPool2d(2)] if index < 2 else [])
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width, 10))
