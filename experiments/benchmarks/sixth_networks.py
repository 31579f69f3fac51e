"""Networks of what was the sixth confirmation list; same rules as the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipadvisor.experiments.benchmarks.networks import BatchNorm, Residual, conv, perceptron

__all__ = [
    "DistanceTransformer",
    "MultiQueryTransformer",
    "NormedRecurrence",
    "QuasiRecurrent",
    "ShiftMixer",
    "bottleneck_resnet",
    "groupnorm_densenet",
]


def _causal(logits: Tensor) -> Tensor:
    """Return the weights of attention to no later place, for ``logits`` (..., T, T)."""
    later = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
    return logits.masked_fill(later, -1e9).softmax(-1)


class MultiQueryTransformer(nn.Module):
    """A pre-LN character model whose heads share keys and values (Shazeer 2019), with gated perceptrons (2020).

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
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        parts = [part for _ in range(depth) for part in (_SharedKeys(width, heads), _GatedPerceptron(width))]
        self.blocks = nn.Sequential(*(Residual(nn.Sequential(nn.LayerNorm(width), part)) for part in parts))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        y: Tensor = self.head(self.norm(self.blocks(self.token(tokens) + self.position.weight)))
        return y


class _SharedKeys(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ask, self.write = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(width, width // heads), nn.Linear(width, width // heads)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        asked = self.ask(x).view(rows, length, self.heads, width // self.heads).transpose(1, 2)
        keys, values = self.key(x)[:, None], self.value(x)[:, None]
        mixed = _causal(asked @ keys.transpose(-1, -2) / (width // self.heads) ** 0.5) @ values
        y: Tensor = self.write(mixed.transpose(1, 2).reshape(rows, length, width))
        return y


class _GatedPerceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.open, self.gate = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.close = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.close(self.open(x) * functional.silu(self.gate(x)))
        return y


class DistanceTransformer(nn.Module):
    """A post-LN character model that knows places by distance alone (ALiBi, Press et al. 2022).

    Args:
        vocabulary: symbols.
        heads: of each attention.
        head_width: channels of a head.
        depth: blocks.
        factor: of the perceptrons' width.
    """

    def __init__(self, vocabulary: int, heads: int, head_width: int, depth: int, factor: int) -> None:
        super().__init__()
        width = heads * head_width
        self.token = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*(_NearBlock(width, heads, factor) for _ in range(depth)))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        y: Tensor = self.head(self.blocks(self.token(tokens)))
        return y


class _NearBlock(nn.Module):
    def __init__(self, width: int, heads: int, factor: int) -> None:
        super().__init__()
        self.heads = heads
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = perceptron(width, factor * width, width, activation=nn.GELU)
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = self.read(x).view(rows, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        place = torch.arange(length, dtype=x.dtype)
        slope = 2.0 ** -torch.arange(1, self.heads + 1, dtype=x.dtype)[:, None, None]
        logits = q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5 + slope * (place - place[:, None])
        mixed = (_causal(logits) @ v).transpose(1, 2).reshape(rows, length, width)
        x = self.norm_1(x + self.write(mixed))
        y: Tensor = self.norm_2(x + self.mlp(x))
        return y


class QuasiRecurrent(nn.Module):
    """A character model whose gates see two characters and no state (Bradbury et al. 2017)."""

    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.read, self.head = nn.Linear(2 * width, 3 * hidden), nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        x = self.token(tokens)
        before = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1)
        fresh, keep, out = self.read(torch.cat((before, x), -1)).chunk(3, -1)
        fresh, keep = torch.tanh(fresh), torch.sigmoid(keep)
        state = torch.zeros_like(fresh[:, 0])
        states = []
        for step in range(x.shape[1]):
            state = fresh[:, step] + keep[:, step] * (state - fresh[:, step])
            states.append(state)
        y: Tensor = self.head(torch.sigmoid(out) * torch.stack(states, 1))
        return y


class NormedRecurrence(nn.Module):
    """A character model of one plain recurrence that is normalised before its tanh (Ba et al. 2016)."""

    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.read, self.recur = nn.Linear(width, hidden), nn.Linear(hidden, hidden, bias=False)
        self.norm, self.head = nn.LayerNorm(hidden), nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        given = self.read(self.token(tokens))
        state = torch.zeros_like(given[:, 0])
        states = []
        for step in range(given.shape[1]):
            state = torch.tanh(self.norm(given[:, step] + self.recur(state)))
            states.append(state)
        y: Tensor = self.head(torch.stack(states, 1))
        return y


class ShiftMixer(nn.Module):
    """A mixer on 8 x 8 images cut into 2 x 2 patches that moves quarters of its channels by a patch (Yu et al. 2022).

    Args:
        width: channels, a multiple of four.
        depth: blocks.
        classes: outputs.
        bias: whether the layers have biases, and the norms weights.
    """

    def __init__(self, width: int, depth: int, classes: int, bias: bool = True) -> None:
        super().__init__()
        self.stem = nn.Linear(4, width, bias=bias)
        self.blocks = nn.Sequential(*(Residual(_Shifted(width, bias)) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, elementwise_affine=bias)
        self.head = nn.Linear(width, classes, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) for images (B, 1, 8, 8)."""
        patches = images[:, 0].unfold(1, 2, 2).unfold(2, 2, 2).flatten(-2)  # (B, 4, 4, 4)
        y: Tensor = self.head(self.norm(self.blocks(self.stem(patches))).mean((1, 2)))
        return y


class _Shifted(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=bias)
        self.open, self.close = nn.Linear(width, 2 * width, bias=bias), nn.Linear(2 * width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        up, down, left, right = functional.gelu(self.open(self.norm(x))).chunk(4, -1)
        moved = (
            torch.cat((up[:, 1:], up[:, -1:]), 1),  # what leaves at an edge stays there
            torch.cat((down[:, :1], down[:, :-1]), 1),
            torch.cat((left[:, :, 1:], left[:, :, -1:]), 2),
            torch.cat((right[:, :, :1], right[:, :, :-1]), 2),
        )
        y: Tensor = self.close(torch.cat(moved, -1))
        return y


def bottleneck_resnet(width: int, blocks: int, classes: int) -> nn.Module:
    """Return a BatchNorm ResNet whose branches narrow by half, convolve and widen again (He et al. 2016)."""
    half = width // 2
    layers: list[nn.Module] = [conv(1, width), BatchNorm(width), nn.ReLU(), nn.MaxPool2d(2)]
    for _ in range(blocks):
        branch = nn.Sequential(
            nn.Conv2d(width, half, 1), BatchNorm(half), nn.ReLU(), conv(half, half), BatchNorm(half), nn.ReLU(),
            nn.Conv2d(half, width, 1), BatchNorm(width),
        )  # fmt: skip
        layers += [Residual(branch), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, classes))


class _Beside(nn.Module):
    """``x`` and ``f(x)``, one after the other along the channels."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.branch(x)), 1)


def groupnorm_densenet(groups: int, channels: int, depth: int) -> nn.Module:
    """Return a ConvNet with GroupNorm whose ``depth`` convolutions read all before them (Huang et al. 2017)."""
    width = groups * channels
    layers: list[nn.Module] = [conv(1, width), nn.MaxPool2d(2)]
    for place in range(1, depth + 1):
        layers.append(
            _Beside(nn.Sequential(nn.GroupNorm(groups, place * width), nn.ReLU(), conv(place * width, width)))
        )
    last = (depth + 1) * width
    return nn.Sequential(*layers, nn.GroupNorm(groups, last), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(4 * last, 10))  # fmt: skip
