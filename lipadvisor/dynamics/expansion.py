"""The update map ``W -> W + lr U(W)``: its expansion along the direction in which it is stiffest, and its limit.

[J], Qi et al. (arXiv 2306.09338), name the expansion of the weight-update map as an open question. Linearised, with
``lam`` an eigenvalue of ``P H`` (preconditioner times Hessian) and momentum ``b``, the map along its direction is::

    plain    m = 1 - lr lam - lr wd
    momentum m^2 - (1 + b - lr lam) m + b = 0                          (m' = b m + g;  W' = W - lr m')
    Adam     the same with lr lam (1 - b1) in place of lr lam          (m' = b1 m + (1 - b1) g)

and expands where the larger ``|m|`` passes 1. Without decay that is at ``lr lam`` = 2, ``2 (1 + b)`` (3.8 at .9) and
``2 (1 + b1) / (1 - b1)`` (38 at .9).
"""

from __future__ import annotations

import cmath

__all__ = ["expansion_factor", "stability_limit"]


def _share(optimizer: str, momentum: float) -> tuple[float, float]:
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum must be in [0, 1), got {momentum!r}.")
    if optimizer in ("adam", "adamw"):
        return momentum, 1.0 - momentum
    return (momentum, 1.0) if optimizer == "sgd" else (0.0, 1.0)


def expansion_factor(optimizer: str, momentum: float, lr: float, eigenvalue: float, weight_decay: float = 0.0) -> float:
    """Return the largest modulus of the linearised update map along one eigendirection: above 1 it expands.

    Args:
        optimizer: ``"sgd"``, ``"adam"``, ``"adamw"``; any other is taken to have no memory.
        momentum: coefficient of the first moment, in [0, 1).
        lr: learning rate, >= 0.
        eigenvalue: of ``P H``, per unit of ``tau``; of either sign.
        weight_decay: decoupled, per unit of ``tau``.

    Raises:
        ValueError: ``momentum`` is out of range.
    """
    b, share = _share(optimizer, momentum)
    keep = 1.0 - lr * weight_decay
    pull = lr * eigenvalue * share
    # (W, m) -> (keep W - lr P m', m' = b m + share H W): trace keep - pull + b, determinant keep b.
    trace, determinant = keep - pull + b, keep * b
    root = cmath.sqrt(trace * trace / 4.0 - determinant)
    return max(abs(trace / 2.0 + root), abs(trace / 2.0 - root))


def stability_limit(optimizer: str, momentum: float) -> float:
    """Return the largest ``lr * eigenvalue`` at which the map does not expand, without weight decay.

    Raises:
        ValueError: ``momentum`` is out of range.
    """
    b, share = _share(optimizer, momentum)
    return 2.0 * (1.0 + b) / share
