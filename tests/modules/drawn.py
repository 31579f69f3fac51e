"""Modules of random shapes and options, with the shape of one sample's input: one of each family from a seed."""

import random
from collections.abc import Callable

from torch import nn
from torch.nn.utils import parametrizations

from lipadvisor.modules import (
    CenterNorm,
    DotProductAttention,
    FeedForward,
    L2Attention,
    Residual,
    ScaledCosineAttention,
    TransformerBlock,
)

Drawn = tuple[nn.Module, tuple[int, ...]]


def sides(r: random.Random, count: int, low: int = 1, high: int = 5) -> tuple[int, ...]:
    return tuple(r.randint(low, high) for _ in range(count))


def activation(r: random.Random) -> Drawn:
    kinds: list[Callable[[], nn.Module]] = [
        lambda: nn.LeakyReLU(r.uniform(0.0, 3.0)),
        lambda: nn.ELU(r.uniform(0.2, 3.0)),
        lambda: nn.Hardtanh(-r.uniform(0.1, 2.0), r.uniform(0.1, 2.0)),
        lambda: nn.Softplus(r.uniform(0.5, 4.0)),
        lambda: nn.Softshrink(r.uniform(0.05, 1.0)),
        nn.GELU,
        nn.SiLU,
        nn.Mish,
        nn.Hardswish,
        nn.Tanh,
        nn.Sigmoid,
    ]
    return r.choice(kinds)(), sides(r, r.randint(1, 3))


def linear(r: random.Random) -> Drawn:
    n = r.randint(1, 7)
    return nn.Linear(n, r.randint(1, 7), bias=r.random() < 0.5), (*sides(r, r.randint(0, 2), 1, 3), n)


def convolution(r: random.Random) -> Drawn:
    dims, groups = r.randint(1, 3), r.choice([1, 1, 2])
    inner, outer = groups * r.randint(1, 2), groups * r.randint(1, 2)
    kernel, dilation = r.randint(1, 3), r.randint(1, 2)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    padding, stride = r.randint(0, 2), r.randint(1, 3)
    module = kind(inner, outer, kernel, stride, padding, dilation, groups)
    least = dilation * (kernel - 1) + 1
    return module, (inner, *(r.randint(least, least + 4 - dims) for _ in range(dims)))


def transposed(r: random.Random) -> Drawn:
    dims, inner = r.randint(1, 2), r.randint(1, 3)
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dims - 1]
    kernel, stride = r.randint(2, 3), r.randint(1, 3)
    return kind(inner, r.randint(1, 3), kernel, stride, r.randint(0, 1)), (inner, *sides(r, dims, 2, 4))


def pooling(r: random.Random) -> Drawn:
    kernel = r.randint(1, 3)
    stride = r.randint(1, 3)
    shape = (r.randint(1, 2), *sides(r, 2, kernel, kernel + 3))
    kind: Callable[..., nn.Module] = r.choice([nn.AvgPool2d, nn.MaxPool2d])
    return kind(kernel, stride, r.randint(0, kernel // 2)), shape


def softmax(r: random.Random) -> Drawn:
    return nn.Softmax(-1), (*sides(r, r.randint(0, 1), 1, 3), r.randint(2, 6))


def batch_norm(r: random.Random) -> Drawn:
    channels = r.randint(1, 5)
    return nn.BatchNorm2d(channels, eps=10 ** -r.uniform(2, 5)), (channels, *sides(r, 2, 1, 3))


def center_norm(r: random.Random) -> Drawn:
    n = r.randint(2, 8)
    return CenterNorm(n), (*sides(r, r.randint(0, 1), 1, 3), n)


def weight_norm(r: random.Random) -> Drawn:
    n = r.randint(1, 6)
    return parametrizations.weight_norm(nn.Linear(n, r.randint(1, 6))), (n,)


def layer_norm(r: random.Random) -> Drawn:
    n = r.randint(2, 7)
    return r.choice([nn.LayerNorm, nn.RMSNorm])(n), (*sides(r, r.randint(0, 1), 1, 3), n)


def group_norm(r: random.Random) -> Drawn:
    groups, each = sides(r, 2, 1, 3)
    return nn.GroupNorm(groups, groups * each), (groups * each, r.randint(2, 4))


def attention(r: random.Random) -> Drawn:
    heads, width = r.randint(1, 2), r.randint(1, 3)
    whole, tokens = heads * width, r.randint(2, 5)
    kinds: list[Callable[[], nn.Module]] = [
        lambda: DotProductAttention(whole, heads, causal=r.random() < 0.5),
        lambda: L2Attention(whole, heads),
        lambda: ScaledCosineAttention(whole, heads, tau=r.uniform(0.5, 4.0), eps=r.uniform(0.05, 0.5)),
    ]
    return r.choice(kinds)(), (tokens, whole)


def residual(r: random.Random) -> Drawn:
    n = r.randint(1, 6)
    branch = nn.Sequential(nn.Linear(n, r.randint(1, 6)), nn.Tanh())
    branch.append(nn.Linear(branch[0].out_features, n))
    return Residual(branch, alpha=r.uniform(0.1, 2.0)), (n,)


def feed_forward(r: random.Random) -> Drawn:
    n = r.randint(1, 5)
    return FeedForward(n, r.randint(1, 8)), (r.randint(1, 4), n)


def transformer_block(r: random.Random) -> Drawn:
    heads = r.randint(1, 2)
    width = heads * r.randint(1, 3) + (heads == 1)  # a LayerNorm over one entry is a constant
    order = r.choice(["pre", "post"])
    return TransformerBlock(width, L2Attention(width, heads), r.randint(2, 7), order=order), (r.randint(2, 4), width)


EXACT = (activation, linear, convolution, transposed, pooling, softmax, batch_norm, center_norm, weight_norm)
BOUNDED = (layer_norm, group_norm, attention, residual, feed_forward, transformer_block)
