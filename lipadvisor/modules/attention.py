"""Three kinds of self-attention, their constants and Jacobians.

With ``y_i = sum_j P_ij v_j``, ``P_i = softmax_j(S_ij)`` and ``v'_i = y_i``, in all three kinds

    dy_i = sum_j P_ij dv_j + sum_j P_ij (v_j - y_i) dS_ij

so one function assembles the Jacobian from the derivatives of the values and of the scores.

Dot-product attention is not Lipschitz on unbounded inputs (Kim et al., arXiv 2006.04710, Thm 3.1): it has a local
constant, and a bound for tokens of norm at most R. The bounds of the other two are derived in ``docs/modules.md``;
they are below the published ones.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lipadvisor.modules.constant import Constant, Kind
from lipadvisor.modules.normalization import local_constant
from lipadvisor.modules.operator_norm import matrix_norm
from lipadvisor.modules.registry import Entry, register

__all__ = ["DotProductAttention", "L2Attention", "ScaledCosineAttention", "dot_product_bound", "inverse_x_exp"]


def _check(name: str, dim: int, heads: int) -> None:
    if heads < 1 or dim % heads:
        raise ValueError(f"{name}(heads=...) must divide dim, got dim {dim} and heads {heads}.")


class _Attention(nn.Module):
    """Projections shared by the three kinds; bias-free."""

    def __init__(self, dim: int, heads: int, tied: bool = False) -> None:
        super().__init__()
        _check(type(self).__name__, dim, heads)
        self.dim, self.heads = dim, heads
        self.query = nn.Linear(dim, dim, bias=False)
        if not tied:
            self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)  # (..., heads, N, dim/heads)
        return heads

    def _join(self, x: Tensor) -> Tensor:
        joined: Tensor = self.out(x.transpose(-2, -3).flatten(-2))
        return joined


class DotProductAttention(_Attention):
    """Softmax of ``q k' / sqrt(d)``: the usual one.

    Args:
        dim: width of a token.
        heads: number of heads, a divisor of ``dim``.
        causal: tokens see only what came before.
    """

    def __init__(self, dim: int, heads: int = 1, causal: bool = False) -> None:
        super().__init__(dim, heads)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        """Attend within ``x`` (batch, N, dim)."""
        q, k, v = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        return self._join(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal))


class L2Attention(_Attention):
    """Softmax of ``-|q_i - q_j|^2 / sqrt(d)`` with tied query and key, values through ``A = Wq' Wq / sqrt(d)``.

    References:
        Kim, Papamakarios, Mnih: The Lipschitz constant of self-attention, ICML 2021 (arXiv 2006.04710), section 3.2.
    """

    def __init__(self, dim: int, heads: int = 1) -> None:
        super().__init__(dim, heads, tied=True)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within ``x`` (batch, N, dim)."""
        P, values = self._weights(x)
        return self._join(P @ values)

    def _weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q = self._split(self.query(x))
        square = (q * q).sum(-1)
        distance = square.unsqueeze(-1) + square.unsqueeze(-2) - 2 * q @ q.transpose(-1, -2)
        P = torch.softmax(-distance / math.sqrt(self.dim // self.heads), -1)
        mixed = (q @ self._value_of_query()) / math.sqrt(self.dim // self.heads)
        return P, mixed

    def _value_of_query(self) -> Tensor:
        """``Wq_h Wv_h'`` (heads, d, d): a query turned into the head's value."""
        Wq, Wv = (W.weight.unflatten(0, (self.heads, -1)) for W in (self.query, self.value))
        product: Tensor = Wq @ Wv.transpose(-1, -2)
        return product


class ScaledCosineAttention(_Attention):
    """Softmax of ``tau cos(q, k)`` on values that are normalised too, times ``nu``.

    Args:
        dim: width of a token.
        heads: number of heads, a divisor of ``dim``.
        tau: inverse temperature, > 0.
        nu: size of the output, > 0.
        eps: added to the squared norms, > 0.

    References:
        Qi et al., LipsFormer, ICLR 2023 (arXiv 2304.09856), section 4.2.
    """

    def __init__(self, dim: int, heads: int = 1, tau: float = 12.0, nu: float = 1.0, eps: float = 1e-3) -> None:
        super().__init__(dim, heads)
        for name, value in (("tau", tau), ("nu", nu), ("eps", eps)):
            if not value > 0:
                raise ValueError(f"ScaledCosineAttention({name}=...) must be positive, got {value}.")
        self.tau, self.nu, self.eps = tau, nu, eps

    def forward(self, x: Tensor) -> Tensor:
        """Attend within ``x`` (batch, N, dim)."""
        q, k, v = (self._unit(self._split(W(x))) for W in (self.query, self.key, self.value))
        return self._join(self.nu * torch.softmax(self.tau * q @ k.transpose(-1, -2), -1) @ v)

    def _unit(self, z: Tensor) -> Tensor:
        return z * torch.rsqrt((z * z).sum(-1, keepdim=True) + self.eps)


def inverse_x_exp(y: float) -> float:
    """Return the c >= 0 with ``c exp(c + 1) = y``, to rounding, by Newton's method on the logarithm.

    The largest ``sum_j t_j e^-t_j / (1 + sum_j e^-t_j)`` over N - 1 distances is this at y = N - 1.
    """
    if y < 0:
        raise ValueError(f"inverse_x_exp(y=...) must be at least 0, got {y}.")
    if y == 0:
        return 0.0
    c = min(y / math.e, math.log(1 + y))
    for _ in range(60):
        c = max(c - (math.log(c) + c + 1 - math.log(y)) / (1 / c + 1), c / 10)
    return c


def _heads(W: nn.Linear, heads: int) -> Tensor:
    parts: Tensor = W.weight.detach().unflatten(0, (heads, -1))
    return parts


def _l2(module: L2Attention, inputs: tuple[Tensor, ...]) -> Constant:
    if not inputs:
        return Constant(math.inf, Kind.UPPER, "grows with sqrt(N): give an input", "arXiv 2006.04710, Thm 3.2")
    N, d = inputs[0].shape[-2], module.dim // module.heads
    c = inverse_x_exp(N - 1)
    mixing = math.sqrt(N) + 2 * c + 2 * math.sqrt(c * N * inverse_x_exp(1))
    total = 0.0
    for Wq, Wv in zip(_heads(module.query, module.heads), _heads(module.value, module.heads), strict=True):
        total += (mixing * matrix_norm(Wq) * matrix_norm(Wq @ Wv.T)) ** 2 / d
    value = math.sqrt(total) * matrix_norm(module.out.weight)
    return Constant(value, Kind.UPPER, f"for sequences of {N}", "after arXiv 2006.04710, Thm 3.2; docs/modules.md")


def _cosine(module: ScaledCosineAttention, inputs: tuple[Tensor, ...]) -> Constant:
    if not inputs:
        return Constant(math.inf, Kind.UPPER, "grows with the sequence: give an input", "arXiv 2304.09856, Thm 1")
    N, tau = inputs[0].shape[-2], module.tau
    column = min(N, N / (1 + (N - 1) * math.exp(-2 * tau)))  # largest column sum of P, scores within +-tau
    total = 0.0
    for Wq, Wk, Wv in zip(*(_heads(W, module.heads) for W in (module.query, module.key, module.value)), strict=True):
        scores = tau * (matrix_norm(Wq) + math.sqrt(column) * matrix_norm(Wk)) if N > 1 else 0.0
        total += (math.sqrt(column) * matrix_norm(Wv) + scores) ** 2
    value = module.nu * math.sqrt(total / module.eps) * matrix_norm(module.out.weight)
    return Constant(value, Kind.UPPER, f"for sequences of {N}", "after arXiv 2304.09856, Thm 1; docs/modules.md")


def dot_product_bound(module: DotProductAttention, tokens: int, radius: float) -> Constant:
    """Return a bound for dot-product attention on sequences of ``tokens`` whose norms are at most ``radius``.

    ``|sum_j P_ij (v_j - y_i) k_j'| <= R^2 |Wv| |Wk|`` (a covariance), hence per head
    ``sqrt(N) |Wv| + (1 + sqrt(N)) R^2 |Wq| |Wk| |Wv| / sqrt(d)``.
    """
    root, total = math.sqrt(tokens), 0.0
    for Wq, Wk, Wv in zip(*(_heads(W, module.heads) for W in (module.query, module.key, module.value)), strict=True):
        q, k, v = matrix_norm(Wq), matrix_norm(Wk), matrix_norm(Wv)
        total += (root * v + (1 + root) * radius**2 * q * k * v / math.sqrt(len(Wq))) ** 2
    value = math.sqrt(total) * matrix_norm(module.out.weight)
    return Constant(value, Kind.UPPER, f"{tokens} tokens of norm <= {radius:.4g}", "covariance bound; docs/modules.md")


def _dot_product(module: Any, inputs: tuple[Tensor, ...]) -> Constant:
    if not inputs:
        return Constant(math.inf, Kind.EXACT, "not Lipschitz on unbounded inputs", "arXiv 2006.04710, Thm 3.1")
    local = local_constant(module, inputs)
    return Constant(local.value, Kind.LOCAL, "not Lipschitz on unbounded inputs; " + local.condition, local.source)


# Jacobians at one sample x (N, dim).


def _assemble(P: Tensor, v: Tensor, dv: Tensor, dS_query: Tensor, dS_key: Tensor) -> Tensor:
    """One head's Jacobian (N, d, N, D): values v (N, d), dv (N, d, D), dS wrt x_i and x_j (N, N, D) each."""
    N = len(P)
    spread = P[:, :, None] * (v[None] - (P @ v)[:, None])  # P_ij (v_j - y_i): (N, N, d)
    J = torch.einsum("im,mdc->idmc", P, dv) + torch.einsum("imd,imc->idmc", spread, dS_key)
    own = torch.einsum("ijd,ijc->idc", spread, dS_query)
    index = torch.arange(N)
    J[index, :, index, :] += own
    return J


def _stack_heads(module: _Attention, parts: list[Tensor]) -> Tensor:
    J = torch.cat(parts, 1)  # (N, dim, N, D)
    return torch.einsum("oe,iemc->iomc", module.out.weight.detach(), J).flatten(2).flatten(0, 1)


def _dot_product_jacobian(module: DotProductAttention, x: Tensor) -> Tensor:
    parts, N = [], len(x)
    for Wq, Wk, Wv in zip(*(_heads(W, module.heads) for W in (module.query, module.key, module.value)), strict=True):
        q, k, scale = x @ Wq.T, x @ Wk.T, len(Wq) ** -0.5
        S = scale * q @ k.T
        if module.causal:
            S = S.masked_fill(torch.ones(N, N, dtype=torch.bool).triu(1), -math.inf)
        by_query = (scale * k @ Wq).expand(N, N, -1)
        by_key = (scale * q @ Wk)[:, None].expand(N, N, -1)
        parts.append(_assemble(torch.softmax(S, -1), x @ Wv.T, Wv.expand(N, -1, -1), by_query, by_key))
    return _stack_heads(module, parts)


def _l2_jacobian(module: L2Attention, x: Tensor) -> Tensor:
    parts, N = [], len(x)
    for Wq, Wv in zip(_heads(module.query, module.heads), _heads(module.value, module.heads), strict=True):
        q, scale = x @ Wq.T, len(Wq) ** -0.5
        apart = q[:, None] - q[None]
        mixed = scale * Wv @ Wq.T @ Wq
        by_query = -2 * scale * apart @ Wq
        P = torch.softmax(-scale * (apart**2).sum(-1), -1)
        parts.append(_assemble(P, x @ mixed.T, mixed.expand(N, -1, -1), by_query, -by_query))
    return _stack_heads(module, parts)


def _cosine_jacobian(module: ScaledCosineAttention, x: Tensor) -> Tensor:
    def unit(W: Tensor) -> tuple[Tensor, Tensor]:
        z = x @ W.T
        size = ((z * z).sum(-1, keepdim=True) + module.eps).sqrt()
        u = z / size
        project = torch.eye(len(W), dtype=x.dtype) - u[:, :, None] * u[:, None, :]
        return u, (project / size[:, :, None]) @ W

    parts = []
    for Wq, Wk, Wv in zip(*(_heads(W, module.heads) for W in (module.query, module.key, module.value)), strict=True):
        (q, dq), (k, dk), (v, dv) = unit(Wq), unit(Wk), unit(Wv)
        P = torch.softmax(module.tau * q @ k.T, -1)
        by_query = module.tau * torch.einsum("jd,idc->ijc", k, dq)
        by_key = module.tau * torch.einsum("id,jdc->ijc", q, dk)
        parts.append(module.nu * _assemble(P, v, dv, by_query, by_key))
    return _stack_heads(module, parts)


register(DotProductAttention, Entry("attention", _dot_product, _dot_product_jacobian, composite=True))
register(L2Attention, Entry("l2_attention", _l2, _l2_jacobian))
register(ScaledCosineAttention, Entry("cosine_attention", _cosine, _cosine_jacobian))
register(nn.MultiheadAttention, Entry("attention", _dot_product))
