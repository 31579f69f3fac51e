"""The networks that the cost of measuring is told on: four of ordinary size, two so small that dispatch is all."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipadvisor.experiments.reproduce.convnet import conv_net

__all__ = ["WORKLOADS", "Workload", "deep_convolution", "deep_linear"]


@dataclass(frozen=True, slots=True)
class Workload:
    """One network with what it is trained on and by.

    Args:
        name: of its row.
        model: makes it.
        batch: makes inputs and labels of one batch.
        optimizer: makes its optimizer.
        drift_bar: largest allowed step with drift and noise measured, over a plain step; None where none is asked.
        full_bar: the same with everything measured.
        rival_model: makes the network for tools that cannot take train-mode BatchNorm; None where it is the same.
    """

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    drift_bar: float | None = None
    full_bar: float | None = None
    rival_model: Callable[[], nn.Module] | None = None


class _Residual(nn.Module):
    """``relu(x' + norm(conv(relu(norm(conv(x))))))``; ``x'`` is x, thinned and padded where the shape changes."""

    def __init__(self, before: int, after: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.before, self.after, self.stride = before, after, stride
        self.conv_1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv_2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm_1, self.norm_2 = norm(after), norm(after)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's maps (B, after, H / stride, W / stride)."""
        y = self.norm_2(self.conv_2(torch.relu(self.norm_1(self.conv_1(x)))))
        if self.before != self.after:
            x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.after - self.before))
        return torch.relu(x + y)


def _resnet(norm: Callable[[int], nn.Module]) -> nn.Module:
    """Return ResNet-20 for images of 3 x 32 x 32 (He et al. 2016, section 4.2)."""
    blocks = [_Residual(16, 16, 1, norm) for _ in range(3)]
    for before, after in ((16, 32), (32, 64)):
        blocks += [
            _Residual(before, after, 2, norm),
            _Residual(after, after, 1, norm),
            _Residual(after, after, 1, norm),
        ]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), norm(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class _Block(nn.Module):
    """A pre-LN Transformer block with a joint projection to queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.joint, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for tokens (B, T, D)."""
        parts = self.joint(self.norm_1(x)).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        mixed = nn.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        x = x + self.out(mixed.transpose(-3, -2).flatten(-2))
        y: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm_2(x))))
        return y


class _Transformer(nn.Module):
    """Predicts a token from those before it; the embedding is given as vectors, so that every weight is a matrix."""

    def __init__(self, width: int = 128, blocks: int = 4, heads: int = 4, classes: int = 96) -> None:
        super().__init__()
        self.inward = nn.Linear(classes, width)
        self.blocks = nn.Sequential(*[_Block(width, heads) for _ in range(blocks)])
        self.norm, self.outward = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes, T) of one-hot tokens (B, T, classes)."""
        logits: Tensor = self.outward(self.norm(self.blocks(self.inward(x)))).transpose(1, 2)
        return logits


def deep_linear(layers: int, width: int = 16) -> nn.Module:
    """Return a chain of ``layers`` matrices of four shapes."""
    sides = [width, 2 * width, 2 * width, width]
    return nn.Sequential(*[nn.Linear(sides[i % 4], sides[(i + 1) % 4]) for i in range(layers)])


def deep_convolution(layers: int, width: int = 8) -> nn.Module:
    """Return a chain of ``layers`` convolutions of one shape, for maps of ``width`` channels."""
    return nn.Sequential(*[nn.Conv2d(width, width, 3, padding=1) for _ in range(layers)], nn.Flatten())


def _mlp(*sides: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(sides):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _images(batch: int, *shape: int) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(batch, *shape, generator=generator), torch.randint(0, 10, (batch,), generator=generator)

    return draw


def _tokens(batch: int, length: int, classes: int) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(0, classes, (batch, length + 1), generator=generator)
        return nn.functional.one_hot(tokens[:, :-1], classes).float(), tokens[:, 1:]

    return draw


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)


WORKLOADS: tuple[Workload, ...] = (
    Workload("mlp-3x512", lambda: _mlp(784, 512, 512, 512, 10), _images(128, 784), _sgd, 1.12, 1.45),
    Workload("convnet", lambda: conv_net((3, 32, 32), 10), _images(128, 3, 32, 32), _sgd, 1.05, 1.10),
    Workload(
        "resnet-20",
        lambda: _resnet(nn.BatchNorm2d),
        _images(128, 3, 32, 32),
        _sgd,
        1.05,
        1.10,
        lambda: _resnet(lambda channels: nn.GroupNorm(8, channels)),
    ),
    Workload("transformer-d128-l4", _Transformer, _tokens(32, 64, 96), _adamw, 1.05, 1.10),
    Workload("transformer-sgd", _Transformer, _tokens(32, 64, 96), _sgd),
    Workload("digits-convnet", lambda: conv_net((1, 8, 8), 10), _images(64, 1, 8, 8), _sgd),
    Workload("digits-mlp", lambda: _mlp(64, 48, 48, 10), _images(64, 64), _sgd),
)
