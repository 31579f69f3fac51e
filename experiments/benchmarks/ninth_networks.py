"""Networks of the confirmation list that the design list does not have; same rules as its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipadvisor.experiments.benchmarks.networks import BatchNorm, Residual, conv, perceptron

__all__ = [
    "AntisymmetricRecurrence",
    "AxialMixer",
    "DelayedRecurrence",
    "MemoryTransformer",
    "TalkingTransformer",
    "groupnorm_fractal",
    "twin_resnet",
]

_SLOTS = 4  # learnt keys, with their values, of each attention that remembers


class _TalkingAttention(nn.Module):
    """Causal self-attention whose heads are mixed before the softmax and after it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.before, self.after = (nn.Linear(heads, heads, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = self.read(x).view(rows, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5
        logits = self.before(logits.movedim(1, -1)).movedim(-1, 1)
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = logits.masked_fill(later, -1e9).softmax(-1)
        mixed = self.after(weights.movedim(1, -1)).movedim(-1, 1) @ v
        y: Tensor = self.write(mixed.transpose(1, 2).reshape(rows, length, width))
        return y


class TalkingTransformer(nn.Module):
    """A pre-LN character model with learnt positions whose heads talk to each other (Shazeer et al. 2020).

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
            for part in (_TalkingAttention(width, heads), perceptron(width, 3 * width, width, activation=nn.GELU))
        ]
        self.blocks = nn.Sequential(*(Residual(nn.Sequential(nn.LayerNorm(width), part)) for part in parts))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        y: Tensor = self.head(self.norm(self.blocks(self.token(tokens) + self.position)))
        return y


class _RememberingAttention(nn.Module):
    """Causal self-attention to earlier places and to learnt keys that are the same everywhere."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.kept = nn.Parameter(width**-0.5 * torch.randn(_SLOTS, 2 * width))  # keys and values

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = self.read(x).view(rows, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        keys, values = self.kept.view(_SLOTS, 2, self.heads, width // self.heads).permute(1, 2, 0, 3)
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        seen = (q @ k.transpose(-1, -2)).masked_fill(later, -1e9)
        logits = torch.cat((q @ keys.transpose(-1, -2), seen), -1) / (width // self.heads) ** 0.5
        weights = logits.softmax(-1)
        mixed = weights[..., :_SLOTS] @ values + weights[..., _SLOTS:] @ v
        y: Tensor = self.write(mixed.transpose(1, 2).reshape(rows, length, width))
        return y


class MemoryTransformer(nn.Module):
    """A post-LN character model with learnt positions and persistent memory (Sukhbaatar et al. 2019).

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
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Parameter(0.02 * torch.randn(length, width))
        parts = [
            part
            for _ in range(depth)
            for part in (_RememberingAttention(width, heads), perceptron(width, factor * width, width))
        ]
        self.blocks = nn.Sequential(*(nn.Sequential(Residual(part), nn.LayerNorm(width)) for part in parts))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        y: Tensor = self.head(self.blocks(self.token(tokens) + self.position))
        return y


class AntisymmetricRecurrence(nn.Module):
    """A character model whose state moves by small steps along ``W - W'``, which neither grow nor fade (Chang 2019)."""

    def __init__(self, vocabulary: int, width: int, hidden: int, pace: float = 0.3, friction: float = 0.1) -> None:
        super().__init__()
        self.pace, self.friction = pace, friction
        self.token, self.read = nn.Embedding(vocabulary, width), nn.Linear(width, hidden)
        self.recur, self.head = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        given = self.read(self.token(tokens))
        state = torch.zeros_like(given[:, 0])
        states = []
        for step in range(given.shape[1]):
            turned = self.recur(state) - state @ self.recur.weight
            state = state + self.pace * torch.tanh(given[:, step] + turned - self.friction * state)
            states.append(state)
        y: Tensor = self.head(torch.stack(states, 1))
        return y


class DelayedRecurrence(nn.Module):
    """A character model of a tanh recurrence that reads its state of one step ago and of three (Lin et al. 1996)."""

    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.token, self.read = nn.Embedding(vocabulary, width), nn.Linear(width, hidden)
        self.recur, self.recall = (nn.Linear(hidden, hidden, bias=False) for _ in range(2))
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        given = self.read(self.token(tokens))
        states = [torch.zeros_like(given[:, 0])] * 3
        for step in range(given.shape[1]):
            states.append(torch.tanh(given[:, step] + self.recur(states[-1]) + self.recall(states[-3])))
        y: Tensor = self.head(torch.stack(states[3:], 1))
        return y


class AxialMixer(nn.Module):
    """A mixer on 8 x 8 images cut into 2 x 2 patches that mixes rows and columns, each by itself (Tang et al. 2022).

    Args:
        width: channels.
        depth: blocks.
        classes: outputs.
        bias: whether the layers have biases, and the norms weights.
    """

    def __init__(self, width: int, depth: int, classes: int, bias: bool = True) -> None:
        super().__init__()
        self.stem = nn.Linear(4, width, bias=bias)
        self.blocks = nn.Sequential(*(_Axes(width, bias) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, elementwise_affine=bias)
        self.head = nn.Linear(width, classes, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) for images (B, 1, 8, 8)."""
        patches = images[:, 0].unfold(1, 2, 2).unfold(2, 2, 2).flatten(-2)  # (B, 4, 4, 4)
        y: Tensor = self.head(self.norm(self.blocks(self.stem(patches))).mean((1, 2)))
        return y


class _Axes(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = (nn.LayerNorm(width, elementwise_affine=bias) for _ in range(2))
        self.down, self.across = (nn.Linear(4, 4, bias=bias) for _ in range(2))
        self.mlp = perceptron(width, 3 * width, width, activation=nn.GELU, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.norm_1(x)
        x = x + self.down(seen.transpose(1, 3)).transpose(1, 3) + self.across(seen.transpose(2, 3)).transpose(2, 3)
        y: Tensor = x + self.mlp(self.norm_2(x))
        return y


class _Twins(nn.Module):
    """A residual block of two branches, one of convolutions and one of single pixels (after Gastaldi 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.field = nn.Sequential(conv(width, width), BatchNorm(width), nn.ReLU(), conv(width, width),
                                   BatchNorm(width))  # fmt: skip
        self.point = nn.Sequential(nn.Conv2d(width, 2 * width, 1), BatchNorm(2 * width), nn.ReLU(),
                                   nn.Conv2d(2 * width, width, 1), BatchNorm(width))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + 0.5 * (self.field(x) + self.point(x)))


def twin_resnet(width: int, blocks: int, classes: int) -> nn.Module:
    """Return a BatchNorm ResNet with two branches a block, their mean added to what goes past them."""
    layers: list[nn.Module] = [conv(1, width), BatchNorm(width), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [_Twins(width) for _ in range(blocks)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, classes))


class _Fractal(nn.Module):
    """The mean of one convolution and of two smaller fractals one after the other."""

    def __init__(self, width: int, groups: int, depth: int) -> None:
        super().__init__()
        self.short = nn.Sequential(conv(width, width), nn.GroupNorm(groups, width), nn.SiLU())
        self.long = nn.Sequential(*(_Fractal(width, groups, depth - 1) for _ in range(2))) if depth > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.short(x)
        return y if self.long is None else 0.5 * (y + self.long(x))


def groupnorm_fractal(groups: int, channels: int, depth: int) -> nn.Module:
    """Return a fractal ConvNet with GroupNorm (Larsson et al. 2017): its longest way has ``2^(depth-1)`` layers."""
    width = 2 * groups * channels
    return nn.Sequential(conv(1, width), nn.MaxPool2d(2), _Fractal(width, groups, depth), nn.AdaptiveAvgPool2d(2),
                         nn.Flatten(), nn.Linear(4 * width, 10))  # fmt: skip
