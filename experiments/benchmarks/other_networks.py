"""Networks of what was the fifth confirmation list; same rules as the others."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipadvisor.experiments.benchmarks.networks import Attention, BatchNorm, GruCell, Residual, conv, perceptron

__all__ = [
    "CoupledModel",
    "GatedMixer",
    "ParallelTransformer",
    "SineTransformer",
    "StackedGru",
    "groupnorm_resnet",
    "projected_resnet",
]


class ParallelTransformer(nn.Module):
    """A pre-LN character model whose attention and perceptron read the same norm, side by side.

    Args:
        vocabulary: symbols.
        length: of a window.
        heads: of each attention.
        head_width: channels of a head.
        depth: blocks.
    """

    def __init__(self, vocabulary: int, length: int, heads: int, head_width: int, depth: int) -> None:
        super().__init__()
        width = heads * head_width
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Residual(_SideBySide(width, heads)) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        y: Tensor = self.head(self.norm(self.blocks(self.token(tokens) + self.position)))
        return y


class _SideBySide(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.mlp = perceptron(width, 3 * width, width, activation=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.norm(x)
        y: Tensor = self.attention(seen) + self.mlp(seen)
        return y


class SineTransformer(nn.Module):
    """A post-LN character model with ReLU and positions that are sines (Vaswani et al. 2017), not learnt.

    Args:
        vocabulary: symbols.
        heads: of each attention.
        head_width: channels of a head.
        depth: blocks.
        factor: of the perceptrons' width.
    """

    def __init__(self, vocabulary: int, heads: int, head_width: int, depth: int, factor: int) -> None:
        super().__init__()
        self.width = heads * head_width
        self.token = nn.Embedding(vocabulary, self.width)
        self.blocks = nn.Sequential(*(_PostBlock(self.width, heads, factor) for _ in range(depth)))
        self.head = nn.Linear(self.width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        place = torch.arange(tokens.shape[-1], dtype=torch.float32)[:, None]
        rate = torch.exp(-math.log(100.0) * torch.arange(0, self.width, 2) / self.width)
        waves = torch.cat((torch.sin(place * rate), torch.cos(place * rate)), 1)
        y: Tensor = self.head(self.blocks(self.token(tokens) + waves))
        return y


class _PostBlock(nn.Module):
    def __init__(self, width: int, heads: int, factor: int) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(width, heads), perceptron(width, factor * width, width)
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_1(x + self.attention(x))
        y: Tensor = self.norm_2(x + self.mlp(x))
        return y


class StackedGru(nn.Module):
    """Embedding, two gated recurrent layers of which the second reads past the first as well, head."""

    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.first, self.second = GruCell(width, hidden), GruCell(width + hidden, hidden)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        given = self.token(tokens)
        y: Tensor = self.head(self.second(torch.cat((given, self.first(given)), -1)))
        return y


class CoupledModel(nn.Module):
    """A character model of one long short-term memory that forgets as much as it takes in."""

    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.read, self.recur = nn.Linear(width, 3 * hidden), nn.Linear(hidden, 3 * hidden, bias=False)
        self.norm, self.head = nn.LayerNorm(hidden), nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        given = self.read(self.token(tokens))
        state = cell = torch.zeros_like(given[:, 0].chunk(3, -1)[0])
        states = []
        for step in range(given.shape[1]):
            keep, fresh, out = (given[:, step] + self.recur(state)).chunk(3, -1)
            cell = torch.tanh(fresh) + torch.sigmoid(keep) * (cell - torch.tanh(fresh))
            state = torch.sigmoid(out) * torch.tanh(self.norm(cell))
            states.append(state)
        y: Tensor = self.head(torch.stack(states, 1))
        return y


class GatedMixer(nn.Module):
    """A mixer on 8 x 8 images cut into rows, in which one half of the channels gates the other (Liu et al. 2021)."""

    def __init__(self, width: int, depth: int, classes: int, bias: bool = True) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width, bias=bias)
        self.blocks = nn.Sequential(*(Residual(_Gated(width, bias)) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, elementwise_affine=bias)
        self.head = nn.Linear(width, classes, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) for images (B, 1, 8, 8)."""
        y: Tensor = self.head(self.norm(self.blocks(self.stem(images[:, 0]))).mean(1))
        return y


class _Gated(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = (nn.LayerNorm(width, elementwise_affine=bias) for _ in range(2))
        self.open, self.tokens = nn.Linear(width, 2 * width, bias=bias), nn.Linear(8, 8, bias=bias)
        self.close = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        kept, gate = functional.gelu(self.open(self.norm_1(x))).chunk(2, -1)
        mixed = self.tokens(self.norm_2(gate).transpose(1, 2)).transpose(1, 2)
        y: Tensor = self.close(kept * (1.0 + mixed))
        return y


class _Projected(nn.Module):
    """A residual branch into more channels; the way past it is a convolution of 1 x 1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.past = nn.Conv2d(inputs, outputs, 1)
        self.branch = nn.Sequential(conv(inputs, outputs), BatchNorm(outputs), nn.ReLU(), conv(outputs, outputs),
                                    BatchNorm(outputs))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = functional.relu(self.past(x) + self.branch(x))
        return y


def projected_resnet(width: int, stages: int, classes: int) -> nn.Module:
    """Return a BatchNorm ResNet that widens by half at each of ``stages`` stages and pools after the first."""
    widths = [width + place * width // 2 for place in range(stages + 1)]
    layers: list[nn.Module] = [conv(1, width), BatchNorm(width), nn.ReLU()]
    for place in range(stages):
        layers += [_Projected(widths[place], widths[place + 1])] + ([nn.MaxPool2d(2)] if place == 0 else [])
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], classes))


def groupnorm_resnet(groups: int, channels: int, blocks: int) -> nn.Module:
    """Return a residual ConvNet with GroupNorm and ELU before each of its convolutions."""
    width = groups * channels
    layers: list[nn.Module] = [conv(1, width), nn.AvgPool2d(2)]
    for _ in range(blocks):
        parts = [part for _ in range(2) for part in (nn.GroupNorm(groups, width), nn.ELU(), conv(width, width))]
        layers.append(Residual(nn.Sequential(*parts)))
    return nn.Sequential(*layers, nn.GroupNorm(groups, width), nn.ELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(4 * width, 10))  # fmt: skip
