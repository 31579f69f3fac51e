"""The five-layer ConvNet of [D]: three 3 x 3 convolutions and two linear layers, for any small image."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["INITIALIZATIONS", "conv_net", "initialize"]

INITIALIZATIONS = ("pytorch", "kaiming", "xavier", "orthogonal")


def conv_net(
    image: tuple[int, int, int],
    classes: int,
    dropout: float = 0.0,
    batch_norm: bool = False,
    width: int | None = None,
) -> nn.Sequential:
    """Return the network, drawn from torch's default generator.

    Args:
        image: channels, height and width of an input; both sides divisible by 4.
        classes: number of logits.
        dropout: probability, in [0, 1), of dropping the inputs of each linear layer.
        batch_norm: whether a BatchNorm follows each convolution.
        width: channels of the first two convolutions; the third has twice as many. Default 16 on images below 16
            pixels, 32 above.

    Raises:
        ValueError: a side of the image is not divisible by 4.
    """
    channels, height, side = image
    if height % 4 or side % 4:
        raise ValueError(f"conv_net(image=...) must have sides divisible by 4, got {image}.")
    width = width or (16 if height < 16 else 32)
    layers: list[nn.Module] = []
    for fan_in, fan_out, pool in ((channels, width, False), (width, width, True), (width, 2 * width, True)):
        layers.append(nn.Conv2d(fan_in, fan_out, 3, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(fan_out))
        layers.append(nn.ReLU())
        if pool:
            layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    for fan_in, fan_out in ((2 * width * (height // 4) * (side // 4), 4 * width), (4 * width, classes)):
        if dropout:
            layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(fan_in, fan_out))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers[:-1])


def initialize(model: nn.Module, kind: str, gain: float = 1.0) -> None:
    """Draw every weight matrix and kernel anew from torch's default generator; biases become zero.

    Args:
        model: its ``nn.Linear`` and ``nn.Conv2d`` weights are overwritten.
        kind: one of ``INITIALIZATIONS``; ``"pytorch"`` leaves weights and biases as they were drawn.
        gain: factor on every weight, > 0.

    Raises:
        ValueError: ``kind`` is unknown, or ``gain`` is not positive.
    """
    if kind not in INITIALIZATIONS:
        raise ValueError(f"initialize(kind=...) must be one of {', '.join(INITIALIZATIONS)}, got {kind!r}.")
    if not gain > 0.0:
        raise ValueError(f"initialize(gain=...) must be > 0, got {gain!r}.")
    for module in model.modules():
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        weight = module.weight
        if kind == "kaiming":
            nn.init.kaiming_normal_(weight, nonlinearity="relu")
        elif kind == "xavier":
            nn.init.xavier_normal_(weight)
        elif kind == "orthogonal":
            nn.init.orthogonal_(weight)
        if kind != "pytorch" and module.bias is not None:
            nn.init.zeros_(module.bias)
        with torch.no_grad():
            weight.mul_(gain)
