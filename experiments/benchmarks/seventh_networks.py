"""Networks of what was the seventh confirmation list; same rules as the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipadvisor.experiments.benchmarks.networks import BatchNorm, Residual, conv, perceptron

__all__ = [
    "CosineTransformer",
    "LinearRecurrence",
    "MultiplicativeRecurrence",
    "PoolMixer",
    "RotaryTransformer",
    "excited_resnet",
    "groupnorm_branches",
]

_SHARPNESS = 6.0  # of attention by cosines


class _Mixing(nn.Module):
    """Causal self-attention whose queries and keys are turned by their place, or are unit vectors.

    Args:
        width: channels.
        heads: of the attention.
        turned: rotated by the place (Su et al. 2021); otherwise normalised (Henry et al. 2020).
    """

    def __init__(self, width: int, heads: int, turned: bool) -> None:
        super().__init__()
        self.heads, self.turned = heads, turned
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = self.read(x).view(rows, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if self.turned:
            logits = _turned(q) @ _turned(k).transpose(-1, -2) / (width // self.heads) ** 0.5
        else:
            logits = _SHARPNESS * functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).transpose(-1, -2)
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = logits.masked_fill(later, -1e9).softmax(-1) @ v
        y: Tensor = self.write(mixed.transpose(1, 2).reshape(rows, length, width))
        return y


def _turned(x: Tensor) -> Tensor:
    """Return ``x`` (..., T, channels), an even number of channels, each pair of them turned by an angle of its own."""
    half = x.shape[-1] // 2
    rate = 100.0 ** (-torch.arange(half, dtype=x.dtype) / half)  # radians a place
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * rate
    first, second = x[..., :half], x[..., half:]
    return torch.cat(
        (first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()), -1
    )  # fmt: skip


class RotaryTransformer(nn.Module):
    """A pre-LN character model that knows places by turned queries and keys alone.

    Args:
        vocabulary: symbols.
        heads: of each attention.
        head_width: channels of a head, even.
        depth: blocks.
    """

    def __init__(self, vocabulary: int, heads: int, head_width: int, depth: int) -> None:
        super().__init__()
        width = heads * head_width
        self.token = nn.Embedding(vocabulary, width)
        parts = [
            part
            for _ in range(depth)
            for part in (_Mixing(width, heads, True), perceptron(width, 3 * width, width, activation=nn.GELU))
        ]
        self.blocks = nn.Sequential(*(Residual(nn.Sequential(nn.LayerNorm(width), part)) for part in parts))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        y: Tensor = self.head(self.norm(self.blocks(self.token(tokens))))
        return y


class CosineTransformer(nn.Module):
    """A post-LN character model with learnt positions whose attention goes by cosines.

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
            for part in (_Mixing(width, heads, False), perceptron(width, factor * width, width, activation=nn.SiLU))
        ]
        self.blocks = nn.Sequential(*(nn.Sequential(Residual(part), nn.LayerNorm(width)) for part in parts))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        y: Tensor = self.head(self.blocks(self.token(tokens) + self.position))
        return y


class MultiplicativeRecurrence(nn.Module):
    """A character model of a tanh recurrence in which each character scales what is read of the state.

    After Sutskever et al. 2011.
    """

    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.read, self.scale = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.recall, self.recur = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        x = self.token(tokens)
        given, scale = self.read(x), self.scale(x)
        state = torch.zeros_like(given[:, 0])
        states = []
        for step in range(given.shape[1]):
            state = torch.tanh(given[:, step] + self.recur(scale[:, step] * self.recall(state)))
            states.append(state)
        y: Tensor = self.head(torch.stack(states, 1))
        return y


class LinearRecurrence(nn.Module):
    """A character model whose state forgets at a learnt pace and mixes nothing; a gated layer reads it.

    After Orvieto et al. 2023, with real numbers.
    """

    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.token, self.write = nn.Embedding(vocabulary, width), nn.Linear(width, hidden)
        self.keep = nn.Parameter(torch.linspace(-1.0, 3.0, hidden))  # log odds of what is kept from place to place
        self.open, self.gate = nn.Linear(hidden, hidden), nn.Linear(width, hidden)
        self.norm, self.head = nn.LayerNorm(hidden), nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        x = self.token(tokens)
        given, keep = self.write(x), torch.sigmoid(self.keep)
        state = torch.zeros_like(given[:, 0])
        states = []
        for step in range(given.shape[1]):
            state = given[:, step] + keep * (state - given[:, step])
            states.append(state)
        seen = self.open(self.norm(torch.stack(states, 1))) * functional.silu(self.gate(x))
        y: Tensor = self.head(seen)
        return y


class PoolMixer(nn.Module):
    """A mixer on 8 x 8 images cut into 2 x 2 patches that mixes them by local means (Yu et al. 2022).

    Args:
        width: channels.
        depth: blocks.
        classes: outputs.
        bias: whether the layers have biases, and the norms weights.
    """

    def __init__(self, width: int, depth: int, classes: int, bias: bool = True) -> None:
        super().__init__()
        self.stem = nn.Linear(4, width, bias=bias)
        self.blocks = nn.Sequential(*(_Pooled(width, bias) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, elementwise_affine=bias)
        self.head = nn.Linear(width, classes, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) for images (B, 1, 8, 8)."""
        patches = images[:, 0].unfold(1, 2, 2).unfold(2, 2, 2).flatten(-2)  # (B, 4, 4, 4)
        y: Tensor = self.head(self.norm(self.blocks(self.stem(patches))).mean((1, 2)))
        return y


class _Pooled(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = (nn.LayerNorm(width, elementwise_affine=bias) for _ in range(2))
        self.mlp = perceptron(width, 3 * width, width, activation=nn.GELU, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.norm_1(x).permute(0, 3, 1, 2)
        near = functional.avg_pool2d(seen, 3, stride=1, padding=1, count_include_pad=False)
        x = x + (near - seen).permute(0, 2, 3, 1)
        y: Tensor = x + self.mlp(self.norm_2(x))
        return y


class _Excited(nn.Module):
    """A residual branch whose channels are scaled by what they hold in the mean (Hu et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            conv(width, width), BatchNorm(width), nn.ReLU(), conv(width, width), BatchNorm(width)
        )
        self.squeeze, self.excite = nn.Linear(width, width // 2), nn.Linear(width // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branch(x)
        scale = torch.sigmoid(self.excite(functional.relu(self.squeeze(y.mean((2, 3))))))
        return functional.relu(x + y * scale[:, :, None, None])


def excited_resnet(width: int, blocks: int, classes: int) -> nn.Module:
    """Return a BatchNorm ResNet with squeezing and excitation; ``width`` is even."""
    layers: list[nn.Module] = [conv(1, width), BatchNorm(width), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [_Excited(width) for _ in range(blocks)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, classes))


class _TwoWays(nn.Module):
    """Convolutions of 1 x 1 and of 3 x 3 side by side, one after the other along the channels."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.point, self.field = nn.Conv2d(inputs, width, 1), conv(inputs, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.point(x), self.field(x)), 1)


def groupnorm_branches(groups: int, channels: int, depth: int) -> nn.Module:
    """Return a ConvNet with GroupNorm whose layers see a point and a field at once (Szegedy et al. 2015)."""
    width = groups * channels
    layers: list[nn.Module] = []
    for place in range(depth):
        layers += [_TwoWays(1 if place == 0 else 2 * width, width), nn.GroupNorm(groups, 2 * width), nn.SiLU()]
        layers += [nn.MaxPool2d(2)] if place == 0 else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, 10))
