"""The optimizers' directions on stacked parameters: ``W' = W + lr U`` for B members at once, exactly as PyTorch's own.

Every parameter is a tensor (B, ...); a member never sees another's numbers. The learning rate and the decoupled weight
decay are left out: whoever drives the population applies them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from lipadvisor.experiments.benchmarks.task import OptimizerKind

__all__ = ["Adam", "Momentum", "Muon", "Update", "make_update"]

Stack = dict[str, Tensor]


class Update(ABC):
    """The memory of one optimizer for a population, and the direction that follows from a gradient."""

    name: str
    momentum: float  # coefficient of the first moment, as an observation reports it

    def __init__(self) -> None:
        self.taken = 0
        self.moments: dict[str, Stack] = {}

    def direction(self, gradients: Stack) -> Stack:
        """Return ``U`` for each parameter, (B, ...), and take the gradients into the memory."""
        self.taken += 1
        return {key: self._direction(key, gradient) for key, gradient in gradients.items()}

    @abstractmethod
    def _direction(self, key: str, gradient: Tensor) -> Tensor: ...

    def _moment(self, kind: str, key: str, like: Tensor) -> Tensor:
        return self.moments.setdefault(kind, {}).setdefault(key, torch.zeros_like(like))


class Momentum(Update):
    """SGD with momentum, no dampening: ``buffer = momentum * buffer + g``, ``U = -buffer``."""

    name = "sgd"

    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum

    def _direction(self, key: str, gradient: Tensor) -> Tensor:
        return self._moment("first", key, gradient).mul_(self.momentum).add_(gradient).neg()


class Adam(Update):
    """Adam (Kingma and Ba 2015) with PyTorch's defaults; with a decoupled decay it is AdamW."""

    name = "adamw"

    def __init__(self, beta_1: float = 0.9, beta_2: float = 0.999, eps: float = 1e-8) -> None:
        super().__init__()
        self.momentum, self.beta_2, self.eps = beta_1, beta_2, eps

    def _direction(self, key: str, gradient: Tensor) -> Tensor:
        first = self._moment("first", key, gradient).lerp_(gradient, 1.0 - self.momentum)
        second = self._moment("second", key, gradient).mul_(self.beta_2)
        second.addcmul_(gradient, gradient, value=1.0 - self.beta_2)
        root = (second / (1.0 - self.beta_2**self.taken)).sqrt_().add_(self.eps)
        return (first / root).mul_(-1.0 / (1.0 - self.momentum**self.taken))


class Muon(Update):
    """Muon (Jordan et al. 2024): Nesterov momentum, orthogonalised by five Newton-Schulz steps. Matrices only."""

    name = "muon"

    def __init__(self, momentum: float = 0.95) -> None:
        super().__init__()
        self.momentum = momentum

    def _direction(self, key: str, gradient: Tensor) -> Tensor:
        if gradient.dim() != 3:
            raise ValueError(f"Muon needs matrices, got {key!r} of shape {tuple(gradient.shape[1:])}.")
        buffer = self._moment("first", key, gradient).lerp_(gradient, 1.0 - self.momentum)
        rows, columns = gradient.shape[1:]
        whole = orthogonalised(gradient.lerp(buffer, self.momentum))
        return whole.mul_(-(max(1.0, rows / columns) ** 0.5))


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return matrices (B, m, n) with their singular values brought near 1 (quintic Newton-Schulz, as torch's Muon)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp_min(1e-7)[:, None, None]
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2).contiguous() if tall else x


def make_update(kind: OptimizerKind) -> Update:
    """Return a fresh optimizer of ``kind`` with PyTorch's default coefficients (SGD: momentum 0.9)."""
    kinds: dict[str, Callable[[], Update]] = {"sgd": Momentum, "adamw": Adam, "muon": Muon}
    return kinds[kind]()
