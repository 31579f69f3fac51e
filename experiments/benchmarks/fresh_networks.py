"""Networks of what was the fourth confirmation list; same rules as the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lipadvisor.experiments.benchmarks.networks import BatchNorm, CharacterTransformer, Residual, conv

__all__ = ["MinimalGatedModel", "groupnorm_stack", "preactivation_resnet", "transformer", "wave_convnet"]


class MinimalGatedModel(nn.Module):
    """Embedding, one recurrent layer with a single gate (Zhou et al. 2016), head: a character model."""

    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.read, self.gate = nn.Linear(width, 2 * hidden), nn.Linear(hidden, hidden, bias=False)
        self.recur, self.head = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary)."""
        given = self.read(self.token(tokens))
        state = torch.zeros_like(given[:, 0].chunk(2, -1)[0])
        states = []
        for step in range(given.shape[1]):
            for_gate, for_state = given[:, step].chunk(2, -1)
            keep = torch.sigmoid(for_gate + self.gate(state))
            fresh = torch.tanh(for_state + self.recur(keep * state))
            state = state + keep * (fresh - state)
            states.append(state)
        y: Tensor = self.head(torch.stack(states, 1))
        return y


def transformer(vocabulary: int, length: int, heads: int, head_width: int, depth: int, pre: bool) -> nn.Module:
    """Return a character Transformer of ``depth`` blocks, norms before the branches (``pre``) or after the sums."""
    return CharacterTransformer(vocabulary, length, width=heads * head_width, heads=heads, depth=depth, pre=pre)


def preactivation_resnet(width: int, blocks: int) -> nn.Module:
    """Return a BatchNorm ResNet whose norms and activations stand before its convolutions (He et al. 2016)."""
    layers: list[nn.Module] = [conv(1, width), nn.MaxPool2d(2)]
    for _ in range(blocks):
        parts = [part for _ in range(2) for part in (BatchNorm(width), nn.ReLU(), conv(width, width))]
        layers.append(Residual(nn.Sequential(*parts)))
    return nn.Sequential(*layers, BatchNorm(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, 10))  # fmt: skip


def groupnorm_stack(groups: int, channels: int, depth: int) -> nn.Module:
    """Return ``depth`` convolutions of ``groups * channels`` channels with GroupNorm and SiLU, pooled twice."""
    width = groups * channels
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [conv(1 if index == 0 else width, width), nn.GroupNorm(groups, width), nn.SiLU()]
        layers += [nn.AvgPool2d(2)] if index in (0, depth - 1) else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width, 10))


def wave_convnet(width: int, depth: int) -> nn.Module:
    """Return ``depth`` plain convolutions with GELU and a head on their mean over the image."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [conv(1 if index == 0 else width, width), nn.GELU()] + ([nn.MaxPool2d(2)] if index == 0 else [])
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10))
