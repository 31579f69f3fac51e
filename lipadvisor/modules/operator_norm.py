"""Operator norms of linear maps and of Jacobians, by Golub-Kahan-Lanczos on the map and its adjoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Norm", "jacobian_norm", "jacobian_products", "lanczos_norm", "linear_map_norm", "matrix_norm"]

Map = Callable[[Tensor], Tensor]
_GRAM_SIDE = 256  # up to here the smaller Gram matrix is solved outright, in float64


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm from below: exact to ``residual`` (relative) where ``converged``."""

    value: float
    residual: float
    converged: bool


def matrix_norm(W: Tensor) -> float:
    """Return ``s_1(W)`` of a matrix (m, n): in float64 where the smaller side is at most 256, else by Lanczos.

    Lanczos stops at a relative residual of 1e-3; the value's error is of second order in it.
    """
    W = W.detach()
    if min(W.shape) == 0:
        return 0.0
    if W.is_complex():  # the same map on pairs of real numbers
        W = torch.cat([torch.cat([W.real, -W.imag], 1), torch.cat([W.imag, W.real], 1)])
    if min(W.shape) <= _GRAM_SIDE:
        W = W.double()
        gram = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
        if not torch.isfinite(gram).all():
            return float("nan")
        return float(torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt())
    generator = torch.Generator(device=W.device).manual_seed(0)
    start = torch.randn(W.shape[1], generator=generator, dtype=W.dtype, device=W.device)
    return lanczos_norm(lambda v: W @ v, lambda u: W.T @ u, start, tol=1e-3).value


def lanczos_norm(
    apply: Map, adjoint: Map, start: Tensor, steps: int = 24, restarts: int = 4, tol: float = 1e-6
) -> Norm:
    """Return the largest singular value of the linear map ``apply`` by restarted Golub-Kahan bidiagonalization.

    The value approaches the norm from below. ``steps`` vectors of the input's size are kept.

    Args:
        apply: v -> A v, tensors of any shape.
        adjoint: u -> A' u.
        start: first vector, of the input's shape, not zero.
        steps: vectors kept between restarts, >= 1.
        restarts: how often to restart from the best vector so far, >= 1.
        tol: relative residual ``|A' u - s v| / s`` at which to stop.

    References:
        Golub and Kahan, SIAM J. Numer. Anal. 2 (1965) 205, section 3.
    """
    best, residual = 0.0, float("inf")
    v = start / start.norm()
    for _ in range(restarts):
        basis, images = _bidiagonalize(apply, adjoint, v, steps)
        if not images:
            return Norm(best, 0.0, True)
        A_V = torch.stack([image.flatten() for image in images])
        gram = (A_V @ A_V.T).double()
        if not torch.isfinite(gram).all():
            return Norm(float("nan"), float("nan"), False)
        values, vectors = torch.linalg.eigh(gram)
        mix = vectors[:, -1].to(v.dtype)
        v = torch.tensordot(mix, torch.stack(basis), dims=1)
        best = float(values[-1].clamp_min(0).sqrt())
        if best == 0.0:
            return Norm(0.0, 0.0, True)
        v = v / v.norm()
        gradient = adjoint(apply(v))
        residual = float((gradient - best**2 * v).norm()) / best**2
        if residual < tol:
            break
    return Norm(best, residual, residual < max(tol, 1e-3))


def _bidiagonalize(apply: Map, adjoint: Map, v: Tensor, steps: int) -> tuple[list[Tensor], list[Tensor]]:
    basis: list[Tensor] = []
    images: list[Tensor] = []
    for _ in range(min(steps, v.numel())):
        basis.append(v)
        images.append(apply(v))
        step = adjoint(images[-1])
        scale = step.norm()
        for _ in range(2):  # twice is enough for orthogonality to rounding
            for other in basis:
                step = step - (step * other).sum() * other
        rest = step.norm()
        if not rest > 1e-6 * scale:
            break
        v = step / rest
    return basis, images


def linear_map_norm(function: Map, shape: tuple[int, ...], like: Tensor | None = None, steps: int = 24) -> Norm:
    """Return the norm of an affine ``function`` on inputs of ``shape``: its offset drops out."""
    dtype, device = (like.dtype, like.device) if like is not None else (torch.float64, torch.device("cpu"))
    return jacobian_norm(function, torch.zeros(shape, dtype=dtype, device=device), steps)


def jacobian_norm(function: Map, x: Tensor, steps: int = 24, seed: int = 0, restarts: int = 4) -> Norm:
    """Return ``||J_f(x)||_2``, all axes of input and output flattened, from below.

    One forward pass is kept; ``J v`` comes from differentiating ``u -> J' u``, which is linear, or where torch has no
    second derivative of an operation, from forward mode.
    """
    try:
        return _norm(jacobian_products(function, x), x, steps, seed, restarts)
    except RuntimeError as error:
        if "not implemented" not in str(error):
            raise
        return _norm(jacobian_products(function, x, forward_mode=True), x, steps, seed, restarts)


def _norm(products: tuple[Map, Map] | None, x: Tensor, steps: int, seed: int, restarts: int) -> Norm:
    if products is None:
        return Norm(0.0, 0.0, True)
    return lanczos_norm(*products, _random_like(x, seed), steps, restarts)


def _random_like(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(device=x.device).manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def jacobian_products(function: Map, x: Tensor, forward_mode: bool = False) -> tuple[Map, Map] | None:
    """Return ``v -> J v`` and ``u -> J' u`` of a function at ``x``; None where it does not depend on ``x``.

    Args:
        function: of a tensor.
        x: where.
        forward_mode: push tangents forward; otherwise differentiate ``u -> J' u``, which is linear, from one forward
            pass that is kept. Operations without a second derivative raise "not implemented" then, when first used.
    """
    x = x.detach()
    if forward_mode:
        pullback = torch.func.vjp(function, x)[1]
        return lambda v: torch.func.jvp(function, (x,), (v,))[1], lambda u: pullback(u)[0]
    with torch.enable_grad():
        x = x.requires_grad_(True)
        y = function(x)
        if not y.requires_grad:
            return None
        dummy = torch.zeros_like(y, requires_grad=True)
        (pulled,) = torch.autograd.grad(y, x, dummy, create_graph=True, allow_unused=True)
    if pulled is None or not pulled.requires_grad:
        return None
    return (
        lambda v: torch.autograd.grad(pulled, dummy, v, retain_graph=True)[0],
        lambda u: torch.autograd.grad(y, x, u, retain_graph=True)[0],
    )
