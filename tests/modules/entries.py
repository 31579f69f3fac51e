"""Modules of every kind, small and with weights redrawn in float64, with the shape of one sample's input."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils import parametrizations

from lipadvisor.modules import (
    CenterNorm,
    DotProductAttention,
    DropPath,
    FeedForward,
    L2Attention,
    Residual,
    ResNetBlock,
    ScaledCosineAttention,
    TransformerBlock,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomized(module: nn.Module, seed: int = 0, size: float = 1.0) -> nn.Module:
    """In float64, with every parameter and running variance redrawn."""
    g = generator(seed)
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        parameter.data = torch.randn(parameter.shape, generator=g, dtype=torch.float64) * size / math.sqrt(fan_in)
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            buffer.data = torch.rand(buffer.shape, generator=g) + 0.5
    return module.double()


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    return randomized(build(), seed).eval()


ACTIVATIONS = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(-0.5, 2.0),
    "leaky": lambda: nn.LeakyReLU(0.2),
    "leaky_steep": lambda: nn.LeakyReLU(2.5),
    "rrelu": nn.RReLU,
    "sigmoid": nn.Sigmoid,
    "hardsigmoid": nn.Hardsigmoid,
    "tanh": nn.Tanh,
    "tanhshrink": nn.Tanhshrink,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "elu": lambda: nn.ELU(1.7),
    "celu": lambda: nn.CELU(0.5),
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "softplus": lambda: nn.Softplus(beta=2.0),
    "softsign": nn.Softsign,
    "logsigmoid": nn.LogSigmoid,
    "softshrink": lambda: nn.Softshrink(0.3),
}
OTHERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "prelu": (lambda: nn.PReLU(3), (3, 4)),
    "threshold": (lambda: nn.Threshold(0.1, 0.1), (6,)),
    "hardshrink": (lambda: nn.Hardshrink(0.3), (6,)),
    "softmax": (lambda: nn.Softmax(-1), (3, 5)),
    "softmin": (lambda: nn.Softmin(-1), (5,)),
    "softmax2d": (nn.Softmax2d, (3, 2, 2)),
    "log_softmax": (lambda: nn.LogSoftmax(-1), (4,)),
    "linear": (lambda: nn.Linear(4, 3), (5, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, padding=1), (2, 7)),
    "conv2d_strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 6, 5)),
    "conv2d_dilated": (lambda: nn.Conv2d(2, 3, 3, dilation=2, padding=2), (2, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(2, 2, 3, 2), (2, 5)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(2, 3, 3, 2, 1), (2, 4, 4)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(1, 2, 2), (1, 2, 2, 2)),
    "avg_pool": (lambda: nn.AvgPool2d(2), (2, 4, 4)),
    "avg_pool_overlapping": (lambda: nn.AvgPool2d(3, 1, 1), (2, 4, 4)),
    "global_average": (lambda: nn.AdaptiveAvgPool2d(1), (2, 4, 4)),
    "max_pool": (lambda: nn.MaxPool2d(2), (2, 4, 4)),
    "max_pool_overlapping": (lambda: nn.MaxPool2d(3, 2, 1), (2, 6, 6)),
    "max_pool_ceil": (lambda: nn.MaxPool2d(3, 2, ceil_mode=True), (1, 6, 6)),
    "max_pool_dilated": (lambda: nn.MaxPool1d(3, 1, dilation=2), (2, 9)),
    "pixel_shuffle": (lambda: nn.PixelShuffle(2), (4, 2, 2)),
    "upsample": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 3)),
    "reflection_pad": (lambda: nn.ReflectionPad2d(1), (2, 3, 3)),
    "unfold": (lambda: nn.Unfold(2), (2, 3, 3)),
    "batch_norm": (lambda: nn.BatchNorm2d(3), (3, 2, 2)),
    "instance_norm_running": (lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True), (3, 4)),
    "dropout": (lambda: nn.Dropout(0.4), (6,)),
    "center_norm": (lambda: CenterNorm(5), (3, 5)),
    "drop_path": (lambda: DropPath(0.3), (5,)),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 3)), (4,)),
    "weight_norm_whole": (lambda: parametrizations.weight_norm(nn.Linear(4, 3), dim=None), (4,)),
    "weight_norm_conv": (lambda: parametrizations.weight_norm(nn.Conv2d(2, 3, 3, padding=1)), (2, 4, 4)),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(4, 3)), (4,)),
    "spectral_norm_conv": (lambda: parametrizations.spectral_norm(nn.Conv2d(2, 3, 3, padding=1)), (2, 4, 4)),
    "center_norm_wide": (lambda: CenterNorm(9), (9,)),
}
NORMALIZATIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer_norm": (lambda: nn.LayerNorm(5), (3, 5)),
    "layer_norm_2": (lambda: nn.LayerNorm((3, 4)), (2, 3, 4)),
    "rms_norm": (lambda: nn.RMSNorm(5), (3, 5)),
    "group_norm": (lambda: nn.GroupNorm(2, 4), (4, 3, 2)),
    "instance_norm": (lambda: nn.InstanceNorm1d(3, affine=True), (3, 6)),
}
COMPOSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dot_product": (lambda: DotProductAttention(6, 2), (4, 6)),
    "dot_product_causal": (lambda: DotProductAttention(4, 1, causal=True), (5, 4)),
    "l2": (lambda: L2Attention(6, 2), (4, 6)),
    "cosine": (lambda: ScaledCosineAttention(6, 2, tau=3.0, eps=0.1), (4, 6)),
    "residual": (lambda: Residual(nn.Linear(5, 5)), (5,)),
    "residual_weighted": (lambda: Residual(nn.Sequential(nn.Linear(5, 5), nn.Tanh()), alpha=0.3), (5,)),
    "residual_drop_path": (lambda: Residual(nn.Sequential(nn.Linear(5, 5), DropPath(0.4))), (5,)),
    "feed_forward": (lambda: FeedForward(4, 7), (3, 4)),
    "resnet_block": (lambda: ResNetBlock(2, 3, 2), (2, 6, 6)),
    "transformer_pre": (lambda: TransformerBlock(4, DotProductAttention(4, 2), 6), (3, 4)),
    "transformer_post": (lambda: TransformerBlock(4, L2Attention(4, 2), 6, order="post"), (3, 4)),
}
EXACT = {name: (build, (6,)) for name, build in ACTIVATIONS.items()} | OTHERS
EVERY = EXACT | NORMALIZATIONS | COMPOSED
NOT_LIPSCHITZ = {"hardshrink"}
