"""Residual joins and whole blocks: constants that follow from those of their parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lipadvisor.modules.attention import DotProductAttention
from lipadvisor.modules.constant import Constant, Kind
from lipadvisor.modules.normalization import local_constant
from lipadvisor.modules.registry import Entry, constant_of, find, jacobian_of, register, register_all

__all__ = ["DropPath", "FeedForward", "ResNetBlock", "Residual", "TransformerBlock", "chain_constant"]

SOURCE = "arXiv 2306.09338, section 3 (residual connections)"


class Residual(nn.Module):
    """``skip(x) + alpha * branch(x)``; ``alpha`` is fixed, or learned where ``learn`` is set.

    Args:
        branch: any module that keeps the shape (or matches ``skip``).
        alpha: weight of the branch.
        skip: the other path; identity if not given.
        learn: make ``alpha`` a parameter (ReZero where it starts at 0).
    """

    def __init__(
        self, branch: nn.Module, alpha: float = 1.0, skip: nn.Module | None = None, learn: bool = False
    ) -> None:
        super().__init__()
        self.branch = branch
        self.skip = nn.Identity() if skip is None else skip
        self.alpha: Tensor
        if learn:
            self.alpha = nn.Parameter(torch.tensor(float(alpha)))
        else:
            self.register_buffer("alpha", torch.tensor(float(alpha)))

    def forward(self, x: Tensor) -> Tensor:
        """Join both paths."""
        joined: Tensor = self.skip(x) + self.alpha * self.branch(x)
        return joined


class DropPath(nn.Module):
    """Stochastic depth: in training a sample's branch is dropped with probability ``p``.

    Args:
        p: probability, in [0, 1).
        rescale: divide what survives by 1 - p in training; otherwise (Huang et al. 2016) multiply by 1 - p in
            evaluation, which makes a residual block the map with constant 1 + (1 - p) K that holds in expectation.
    """

    def __init__(self, p: float, rescale: bool = False) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"DropPath(p=...) must be in [0, 1), got {p}.")
        self.p, self.rescale = p, rescale

    def forward(self, x: Tensor) -> Tensor:
        """Drop whole samples of ``x`` (batch first)."""
        if not self.training:
            return x if self.rescale else x * (1 - self.p)
        keep = torch.rand(len(x), *(1,) * (x.ndim - 1), device=x.device) >= self.p
        return x * keep.to(x.dtype) / ((1 - self.p) if self.rescale else 1.0)


class FeedForward(nn.Sequential):
    """Linear, activation, Linear on the last axis."""

    def __init__(self, dim: int, hidden: int, activation: Callable[[], nn.Module] = nn.GELU) -> None:
        super().__init__(nn.Linear(dim, hidden), activation(), nn.Linear(hidden, dim))


class ResNetBlock(nn.Module):
    """Two 3x3 convolutions with normalisation, a skip (1x1 where the shape changes) and a ReLU after the join."""

    def __init__(
        self, width_in: int, width: int, stride: int = 1, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        skip: nn.Module | None = None
        if stride != 1 or width_in != width:
            skip = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), norm(width))
        branch = nn.Sequential(
            nn.Conv2d(width_in, width, 3, stride, 1, bias=False),
            norm(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            norm(width),
        )
        self.join = Residual(branch, skip=skip)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, width_in, h, w) to (batch, width, h / stride, w / stride)."""
        y: Tensor = self.activation(self.join(x))
        return y


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each with a residual join.

    Args:
        dim: width of a token.
        attention: the attention module; dot-product with 4 heads if not given.
        hidden: width of the feed-forward; 4 dim if not given.
        order: ``"pre"`` normalises before each branch, ``"post"`` after each join, ``"none"`` not at all.
        norm: class of the normalisation.
        alpha: weight of both branches.
    """

    def __init__(
        self,
        dim: int,
        attention: nn.Module | None = None,
        hidden: int | None = None,
        order: str = "pre",
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        alpha: float = 1.0,
    ) -> None:
        super().__init__()
        if order not in ("pre", "post", "none"):
            raise ValueError(f'TransformerBlock(order=...) must be "pre", "post" or "none", got {order!r}.')
        attend = DotProductAttention(dim, 4) if attention is None else attention
        feed = FeedForward(dim, 4 * dim if hidden is None else hidden)
        if order == "pre":
            self.steps = nn.Sequential(
                Residual(nn.Sequential(norm(dim), attend), alpha), Residual(nn.Sequential(norm(dim), feed), alpha)
            )
        elif order == "post":
            self.steps = nn.Sequential(Residual(attend, alpha), norm(dim), Residual(feed, alpha), norm(dim))
        else:
            self.steps = nn.Sequential(Residual(attend, alpha), Residual(feed, alpha))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, N, dim) to the same shape."""
        y: Tensor = self.steps(x)
        return y


def chain_constant(modules: Sequence[nn.Module], inputs: tuple[Tensor, ...]) -> Constant:
    """Return the product of the constants along a chain, each read on what reaches it.

    Raises:
        KeyError: a part has no entry.
    """
    value, kinds, conditions = 1.0, set[Kind](), []
    x = inputs
    for module in modules:
        if find(module) is None:
            raise KeyError(f"no entry for {type(module).__name__}; use register({type(module).__name__}, Entry(...)).")
        part = constant_of(module, *x)
        value, kinds = value * part.value, kinds | {part.kind}
        if part.kind is Kind.LOCAL:
            conditions.append(type(module).__name__)
        if x:
            with torch.no_grad():
                x = (module(*x),)
    kind = Kind.LOCAL if Kind.LOCAL in kinds else Kind.UPPER if len(modules) > 1 or Kind.UPPER in kinds else Kind.EXACT
    return Constant(value, kind, f"local in {', '.join(conditions)}" if conditions else "", "product of the parts")


def _chain(module: nn.Sequential, inputs: tuple[Tensor, ...]) -> Constant:
    return chain_constant(list(module), inputs)


def _chain_jacobian(module: nn.Sequential, x: Tensor) -> Tensor:
    J = torch.eye(x.numel(), dtype=x.dtype)
    for part in module:
        J = jacobian_of(part, x) @ J
        with torch.no_grad():
            x = part(x.unsqueeze(0)).squeeze(0)
    return J


def _residual(module: Residual, inputs: tuple[Tensor, ...]) -> Constant:
    skip, branch = constant_of(module.skip, *inputs), constant_of(module.branch, *inputs)
    kind = Kind.LOCAL if Kind.LOCAL in (skip.kind, branch.kind) else Kind.UPPER
    value = skip.value + abs(float(module.alpha)) * branch.value
    return Constant(value, kind, branch.condition, SOURCE)


def _residual_jacobian(module: Residual, x: Tensor) -> Tensor:
    return jacobian_of(module.skip, x) + module.alpha.detach() * jacobian_of(module.branch, x)


def _drop_path(module: DropPath, inputs: tuple[Tensor, ...]) -> Constant:
    if module.training:
        value = 1 / (1 - module.p) if module.rescale else 1.0
        note = f"training mode, over all draws; {1.0 if module.rescale else 1 - module.p:.4g} in expectation"
        return Constant(value, Kind.EXACT, note, SOURCE)
    return Constant(1.0 if module.rescale else 1 - module.p, Kind.EXACT, "evaluation mode", SOURCE)


def _foreign_drop_path(module: Any, inputs: tuple[Tensor, ...]) -> Constant:
    """Other libraries' stochastic depth: the identity in evaluation mode."""
    p = float(getattr(module, "drop_prob", None) or getattr(module, "p", None) or 0.0)
    scaled = getattr(module, "scale_by_keep", True)
    value = 1 / (1 - p) if module.training and scaled and 0 < p < 1 else 1.0
    return Constant(value, Kind.EXACT, f"{'training' if module.training else 'evaluation'} mode", SOURCE)


def _drop_path_jacobian(module: DropPath, x: Tensor) -> Tensor:
    if module.training and module.p > 0:
        raise ValueError("DropPath has a fixed Jacobian in evaluation mode only: call eval() first.")
    return torch.eye(x.numel(), dtype=x.dtype) * (1.0 if module.rescale else 1 - module.p)


def _parts(*names: str) -> Callable[[Any, tuple[Tensor, ...]], Constant]:
    return lambda module, inputs: chain_constant([getattr(module, name) for name in names], inputs)


def _parts_jacobian(*names: str) -> Callable[[Any, Tensor], Tensor]:
    return lambda module, x: _chain_jacobian(nn.Sequential(*(getattr(module, name) for name in names)), x)


register(nn.Sequential, Entry("chain", _chain, _chain_jacobian, composite=True))
register(Residual, Entry("residual", _residual, _residual_jacobian, composite=True))
register(DropPath, Entry("drop_path", _drop_path, _drop_path_jacobian))
for _name in ("DropPath", "StochasticDepth"):
    register(_name, Entry("drop_path", _foreign_drop_path))
register(ResNetBlock, Entry("resnet_block", _parts("join", "activation"), _parts_jacobian("join", "activation"), True))
register(TransformerBlock, Entry("transformer_block", _parts("steps"), _parts_jacobian("steps"), True))
register_all(
    (nn.TransformerEncoderLayer, nn.TransformerEncoder, nn.TransformerDecoderLayer, nn.TransformerDecoder),
    Entry("transformer_block", local_constant, composite=True),
)
register(nn.Transformer, Entry("transformer", local_constant, composite=True))
