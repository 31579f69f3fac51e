"""The update map ``W -> W + lr U(W)``: its expansion along the direction in which it is stiffest, and its limit.

[J], Qi et al. (arXiv 2306.09338), name the expansion of the weight-update map as an open question. Linearised, with
``lam`` an eigenvalue of ``P H`` (preconditioner times Hessian) and momentum ``b``, the map along its direction is::

    plain    m = 1 - lr lam - lr wd
    momentum m^2 - (1 + b - lr lam) m + b = 0                          (m' = b m + g;  W' = W - lr m')
    Nesterov m^2 - (1 + b - (1 + b) lr lam) m + b (1 - lr lam) = 0     (W' = W - lr (g + b m'))
    Adam     as momentum, with lr lam (1 - b1) in place of lr lam      (m' = b1 m + (1 - b1) g)

and expands where the larger ``|m|`` passes 1. Without decay that is at ``lr lam`` = 2, ``2 (1 + b)`` (3.8 at .9),
``2 (1 + b) / (1 + 2 b)`` (1.36 at .9) and ``2 (1 + b1) / (1 - b1)`` (38 at .9).

Over all directions at once the map contracts if and only if it does along the lowest and the highest eigenvalue: the
larger ``|m|`` falls and then rises as ``lam`` grows. A direction of negative curvature always expands, unless decay
outweighs it: what training is about. The *stiffest* direction must not.
"""

from __future__ import annotations

import cmath

__all__ = ["expansion_factor", "map_expansion", "stability_limit"]


def _share(optimizer: str, momentum: float) -> tuple[float, float]:
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum must be in [0, 1), got {momentum!r}.")
    if optimizer in ("adam", "adamw"):
        return momentum, 1.0 - momentum
    return (momentum, 1.0) if optimizer == "sgd" else (0.0, 1.0)


def expansion_factor(
    optimizer: str,
    momentum: float,
    lr: float,
    eigenvalue: float,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> float:
    """Return the largest modulus of the linearised update map along one eigendirection: above 1 it expands.

    Args:
        optimizer: ``"sgd"``, ``"adam"``, ``"adamw"``; any other is taken to have no memory.
        momentum: coefficient of the first moment, in [0, 1).
        lr: learning rate, >= 0.
        eigenvalue: of ``P H``, per unit of ``tau``; of either sign.
        weight_decay: decoupled, per unit of ``tau``.
        nesterov: look-ahead momentum; of ``"sgd"`` only.

    Raises:
        ValueError: ``momentum`` is out of range.
    """
    b, share = _share(optimizer, momentum)
    keep = 1.0 - lr * weight_decay
    pull = lr * eigenvalue * share
    # (W, m) -> (keep W - lr P m', m' = b m + share H W): trace keep - pull + b, determinant keep b.
    trace, determinant = keep - pull + b, keep * b
    if nesterov and optimizer == "sgd":  # (W, m) -> (keep W - lr (H W + b m'), m')
        trace, determinant = keep - pull * (1.0 + b) + b, (keep - pull) * b
    root = cmath.sqrt(trace * trace / 4.0 - determinant)
    return max(abs(trace / 2.0 + root), abs(trace / 2.0 - root))


def map_expansion(
    optimizer: str,
    momentum: float,
    lr: float,
    lowest: float,
    highest: float,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> float:
    """Return the spectral radius of the linearised update map: below 1 it is a contraction in a suitable norm.

    Args:
        optimizer: as for :func:`expansion_factor`, and so are the others.
        momentum: coefficient of the first moment.
        lr: learning rate.
        lowest: smallest eigenvalue of ``P H``.
        highest: largest eigenvalue of ``P H``.
        weight_decay: decoupled, per unit of ``tau``.
        nesterov: look-ahead momentum.

    Raises:
        ValueError: ``momentum`` is out of range.
    """
    ends = (lowest, highest)
    return max(expansion_factor(optimizer, momentum, lr, end, weight_decay, nesterov) for end in ends)


def stability_limit(optimizer: str, momentum: float, nesterov: bool = False) -> float:
    """Return the largest ``lr * eigenvalue`` at which the map does not expand, without weight decay.

    Raises:
        ValueError: ``momentum`` is out of range.
    """
    b, share = _share(optimizer, momentum)
    if nesterov and optimizer == "sgd":
        return 2.0 * (1.0 + b) / (1.0 + 2.0 * b)
    return 2.0 * (1.0 + b) / share
