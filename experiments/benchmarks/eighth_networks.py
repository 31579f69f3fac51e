"""Networks of the confirmation list that the design list does not have; same rules as its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipadvisor.experiments.benchmarks.networks import BatchNorm, Residual, conv, perceptron

__all__ = [
    "CosineMixer",
    "LinearAttentionTransformer",
    "PacedRecurrence",
    "RecurrentHighway",
    "RelativeTransformer",
    "gated_resnet",
    "groupnorm_bowl",
]


class _LinearAttention(nn.Module):
    """Causal attention whose weights are products of positive features, without a softmax."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = self.read(x).view(rows, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        earlier = torch.ones(length, length, dtype=x.dtype).tril()
        weights = ((functional.elu(q) + 1.0) @ (functional.elu(k) + 1.0).transpose(-1, -2)) * earlier
        mixed = (weights / weights.sum(-1, keepdim=True)) @ v
        y: Tensor = self.write(mixed.transpose(1, 2).reshape(rows, length, width))
        return y


class LinearAttentionTransformer(nn.Module):
    """A pre-LN character model with learnt positions and linear attention (Katharopoulos et al. 2020).

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
        parts = [
            part
            for _ in range(depth)
            for part in (_LinearAttention(width, heads), perceptron(width, 4 * width, width, activation=nn.SiLU))
        ]
        self.blocks = nn.Sequential(*(Residual(nn.Sequential(nn.LayerNorm(width), part)) for part in parts))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        y: Tensor = self.head(self.norm(self.blocks(self.token(tokens) + self.position)))
        return y


class _RelativeAttention(nn.Module):
    """Causal self-attention with a learnt number for each head and distance."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.near = nn.Parameter(torch.zeros(heads, length))

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = self.read(x).view(rows, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        place = torch.arange(length)
        back = place[:, None] - place
        logits = q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5 + self.near[:, back.clamp_min(0)]
        mixed = logits.masked_fill(back < 0, -1e9).softmax(-1) @ v
        y: Tensor = self.write(mixed.transpose(1, 2).reshape(rows, length, width))
        return y


class RelativeTransformer(nn.Module):
    """A post-LN character model that knows places by learnt numbers for distances (Raffel et al. 2020).

    Args:
        vocabulary: symbols.
        length: of a window.
        heads: of each attention.
        head_width: channels of a head.
        depth: blocks.
        factor: of the perceptrons' width.
    """

    def __init__(self, vocabulary: int, length: int, heads: int, head_width: int, depth: int, factor: int) -> None:
        super().__init__()
        width = heads * head_width
        self.token = nn.Embedding(vocabulary, width)
        parts = [
            part
            for _ in range(depth)
            for part in (_RelativeAttention(width, heads, length), perceptron(width, factor * width, width))
        ]
        self.blocks = nn.Sequential(*(nn.Sequential(Residual(part), nn.LayerNorm(width)) for part in parts))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        y: Tensor = self.head(self.blocks(self.token(tokens)))
        return y


class RecurrentHighway(nn.Module):
    """A character model whose state takes two gated steps a character (Zilly et al. 2017)."""

    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.token, self.read = nn.Embedding(vocabulary, width), nn.Linear(width, 2 * hidden)
        self.first, self.second = nn.Linear(hidden, 2 * hidden, bias=False), nn.Linear(hidden, 2 * hidden)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        given = self.read(self.token(tokens))
        state = torch.zeros_like(given[:, 0, : given.shape[2] // 2])
        states = []
        for step in range(given.shape[1]):
            state = _gated(given[:, step] + self.first(state), state)
            state = _gated(self.second(state), state)
            states.append(state)
        y: Tensor = self.head(torch.stack(states, 1))
        return y


def _gated(wanted: Tensor, state: Tensor) -> Tensor:
    new, gate = wanted.chunk(2, -1)
    return state + torch.sigmoid(gate) * (torch.tanh(new) - state)


class PacedRecurrence(nn.Module):
    """A character model of a tanh recurrence whose units forget at fixed paces, from one step to sixteen.

    After Jaeger et al. 2007.
    """

    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.token, self.read = nn.Embedding(vocabulary, width), nn.Linear(width, hidden)
        self.recur, self.head = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        given = self.read(self.token(tokens))
        pace = 2.0 ** -torch.linspace(0.0, 4.0, given.shape[2])
        state = torch.zeros_like(given[:, 0])
        states = []
        for step in range(given.shape[1]):
            state = state + pace * (torch.tanh(given[:, step] + self.recur(state)) - state)
            states.append(state)
        y: Tensor = self.head(torch.stack(states, 1))
        return y


class CosineMixer(nn.Module):
    """A mixer on 8 x 8 images cut into 2 x 2 patches that mixes them by fixed cosines (Lee-Thorp et al. 2022).

    Args:
        width: channels.
        depth: blocks.
        classes: outputs.
        bias: whether the layers have biases, and the norms weights.
    """

    def __init__(self, width: int, depth: int, classes: int, bias: bool = True) -> None:
        super().__init__()
        self.stem = nn.Linear(4, width, bias=bias)
        self.blocks = nn.Sequential(*(_Waves(width, bias) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, elementwise_affine=bias)
        self.head = nn.Linear(width, classes, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) for images (B, 1, 8, 8)."""
        patches = images[:, 0].unfold(1, 2, 2).unfold(2, 2, 2).reshape(len(images), 16, 4)
        y: Tensor = self.head(self.norm(self.blocks(self.stem(patches))).mean(1))
        return y


class _Waves(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = (nn.LayerNorm(width, elementwise_affine=bias) for _ in range(2))
        self.mlp = perceptron(width, 3 * width, width, activation=nn.GELU, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(16.0)
        waves = torch.cos(torch.pi / 16.0 * (place + 0.5) * place[:, None]) * 8.0**-0.5  # rows of equal length but one
        x = x + waves @ self.norm_1(x)
        y: Tensor = x + self.mlp(self.norm_2(x))
        return y


class _Gate(nn.Module):
    """A branch that a gate opens in the place of what goes past it (Srivastava et al. 2015)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            conv(width, width), BatchNorm(width), nn.ReLU(), conv(width, width), BatchNorm(width)
        )
        self.gate = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + torch.sigmoid(self.gate(x)) * (functional.relu(self.branch(x)) - x)
        return y


def gated_resnet(width: int, blocks: int, classes: int) -> nn.Module:
    """Return a BatchNorm ResNet with a gate between each branch and what goes past it."""
    layers: list[nn.Module] = [conv(1, width), BatchNorm(width), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [_Gate(width) for _ in range(blocks)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, classes))


class _Bowl(nn.Module):
    """A convolution, the same on half the pixels a size below, and one that reads both."""

    def __init__(self, inputs: int, width: int, groups: int, depth: int) -> None:
        super().__init__()
        self.down = nn.Sequential(conv(inputs, width), nn.GroupNorm(groups, width), nn.SiLU())
        self.below = _Bowl(width, width, groups, depth - 1) if depth > 1 else nn.Identity()
        self.up = nn.Sequential(conv(2 * width, width), nn.GroupNorm(groups, width), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        coarse = self.below(functional.max_pool2d(x, 2))
        y: Tensor = self.up(torch.cat((x, coarse.repeat_interleave(2, -2).repeat_interleave(2, -1)), 1))
        return y


def groupnorm_bowl(groups: int, channels: int, depth: int) -> nn.Module:
    """Return a ConvNet with GroupNorm that goes down ``depth`` sizes and up again (Ronneberger et al. 2015)."""
    width = 2 * groups * channels
    return nn.Sequential(_Bowl(1, width, groups, depth), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(4 * width, 10))  # fmt: skip
