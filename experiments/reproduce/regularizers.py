"""The nine settings of [D] Fig 2: nothing, and eight ways to regularize, each as plain data and one function.

Targets are probabilities (B, classes), so that mixup, label smoothing and hard labels share one loss. What a setting
does to a batch it draws from the generator that it is handed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["REGULARIZERS", "Regularizer", "soft_cross_entropy"]

Transform = Callable[[nn.Module, Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]

_MIXUP_ALPHA = 0.4
_SMOOTHING = 0.1
_ATTACK = 0.1  # of the inputs' standard deviation


@dataclass(frozen=True, slots=True)
class Regularizer:
    """One setting.

    Attributes:
        name: as in tables and figures.
        summary: what it does, with its numbers.
        dropout: probability before each linear layer.
        batch_norm: whether BatchNorm follows each convolution.
        shrink: what the decoupled weight decay takes off each weight matrix per step, ``lr * weight_decay``.
        clip: largest norm of the whole gradient; None does not clip.
        transform: what becomes of a batch before the step.
    """

    name: str
    summary: str
    dropout: float = 0.0
    batch_norm: bool = False
    shrink: float = 0.0
    clip: float | None = None
    transform: Transform | None = None


def soft_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats of logits ``output`` against probabilities ``target``, both (B, C)."""
    return -(target * functional.log_softmax(output, dim=1)).sum(1).mean()


def _mixup(model: nn.Module, inputs: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blend each sample with another of the batch; one weight a batch, Beta(alpha, alpha) from two Gamma draws."""
    shape = torch.full((2,), _MIXUP_ALPHA)
    gamma = torch._standard_gamma(shape, generator=generator) + 1e-12
    share = gamma[0] / gamma.sum()
    order = torch.randperm(len(inputs), generator=generator)
    return share * inputs + (1 - share) * inputs[order], share * target + (1 - share) * target[order]


def _augment(model: nn.Module, inputs: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shift each image by up to one pixel in 8 either way (zeros come in), then add noise of 0.1."""
    reach = max(1, inputs.shape[-1] // 8)
    padded = functional.pad(inputs, (reach,) * 4, value=float(inputs.min()))
    height, width = inputs.shape[-2:]
    down, right = torch.randint(0, 2 * reach + 1, (2, len(inputs)), generator=generator)
    rows = (down[:, None] + torch.arange(height))[:, None, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, None, :]
    sample = torch.arange(len(inputs))[:, None, None, None]
    channel = torch.arange(inputs.shape[1])[None, :, None, None]
    return padded[sample, channel, rows, columns] + 0.1 * torch.randn(inputs.shape, generator=generator), target


def _smooth(model: nn.Module, inputs: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return inputs, (1 - _SMOOTHING) * target + _SMOOTHING / target.shape[1]


def _attack(model: nn.Module, inputs: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Move each input to where the loss is larger: one signed-gradient step from a random start in the box."""
    start = inputs + _ATTACK * (2 * torch.rand(inputs.shape, generator=generator) - 1)
    start.requires_grad_(True)
    (slope,) = torch.autograd.grad(soft_cross_entropy(model(start), target), start)
    moved = start.detach() + _ATTACK * slope.sign()
    return torch.minimum(torch.maximum(moved, inputs - _ATTACK), inputs + _ATTACK), target


REGULARIZERS: dict[str, Regularizer] = {
    setting.name: setting
    for setting in (
        Regularizer("none", "nothing"),
        Regularizer("dropout", "dropout 0.25 before each linear layer", dropout=0.25),
        Regularizer("batch_norm", "BatchNorm after each convolution", batch_norm=True),
        Regularizer("weight_decay", "decoupled weight decay, 2.5e-4 off each weight matrix a step", shrink=2.5e-4),
        Regularizer("mixup", f"mixup, alpha {_MIXUP_ALPHA}", transform=_mixup),
        Regularizer("augmentation", "shifts by up to an eighth of the side, and noise 0.1", transform=_augment),
        Regularizer("label_smoothing", f"label smoothing {_SMOOTHING}", transform=_smooth),
        Regularizer("adversarial", f"one signed-gradient step within {_ATTACK} from a random start", transform=_attack),
        Regularizer("clipping", "gradient norm clipped at 0.5", clip=0.5),
    )
}
