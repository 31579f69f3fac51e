"""How the weights answer, over the next steps, to one gradient: the memory of the optimizer.

``docs/science.md``, "Any optimizer": over ``h`` steps with frozen gradient ``G`` and preconditioner ``P``::

    D_h = -lr P ( c_b m_0 + c_g G )        covariance of D_h = lr^2 S_2 Sigma_P

where ``n_k`` is how far, in units of one plain step, a gradient has moved the weights ``k`` steps later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lipadvisor.terms import Array

__all__ = ["Response", "own_response", "response", "squared_response_sums"]


@dataclass(frozen=True, slots=True)
class Response:
    """Sums of the response over ``h`` steps; dimensionless, in units of one SGD step."""

    n_h: Array  # response to the gradient of the last, the last but one, ... of the h steps; shape (h,)
    s_1: float  # sum of n_k; equals c_g
    s_2: float  # sum of n_k^2
    c_g: float  # of the frozen gradient
    c_b: float  # of the momentum buffer before the first of the steps


def _kernel(optimizer: str, momentum: float) -> tuple[str, float]:
    if momentum == 0.0 or optimizer not in ("sgd", "adam", "adamw"):
        return "none", 0.0
    return ("adam" if optimizer.startswith("adam") else "momentum"), momentum


def response(optimizer: str, momentum: float, steps: int, optimizer_step: int | None = None) -> Response:
    """Return the response of the weights over ``steps`` steps.

    Args:
        optimizer: ``"sgd"``, ``"adam"``, ``"adamw"``; any other is taken to have no memory.
        momentum: coefficient of the first moment, in [0, 1).
        steps: number of steps ``h``, at least 1.
        optimizer_step: updates the moments had seen before the first of the steps; enters Adam's bias correction.
            ``None``: long past, no correction.

    Raises:
        ValueError: ``momentum`` or ``steps`` is out of range.
    """
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"response(momentum=...) must be in [0, 1), got {momentum!r}.")
    if steps < 1:
        raise ValueError(f"response(steps=...) must be at least 1, got {steps!r}.")
    kind, b = _kernel(optimizer, momentum)
    age_h = np.arange(1, steps + 1, dtype=np.float64)
    if kind == "none":
        return Response(np.ones(steps), float(steps), float(steps), float(steps), 0.0)
    if kind == "momentum":
        n_h = (1.0 - b**age_h) / (1.0 - b)
        c_b = float(np.sum(b**age_h))
    elif optimizer_step is None:
        n_h = 1.0 - b**age_h
        c_b = float(np.sum(b**age_h))
    else:
        # Step j of the h divides the first moment by 1 - b^(t + j): the answer to a gradient depends on its date.
        corrected_h = 1.0 / (1.0 - b ** (optimizer_step + age_h))
        c_b = float(np.sum(b**age_h * corrected_h))
        n_h = np.empty(steps)
        tail = 0.0
        for j in range(steps - 1, -1, -1):  # sum_{i >= j} (1 - b) b^(i - j) / correction_i
            tail = (1.0 - b) * corrected_h[j] + b * tail
            n_h[steps - 1 - j] = tail
    total = float(np.sum(n_h))
    return Response(n_h, total, float(np.sum(n_h**2)), total, c_b)


def own_response(optimizer: str, momentum: float, optimizer_step: int) -> float:
    """Return ``n_1``: how far a step follows its own batch; 1, or Adam's ``(1 - b1) / (1 - b1^t)``.

    Args:
        optimizer: ``"sgd"``, ``"adam"``, ``"adamw"``; any other is taken to have no memory.
        momentum: coefficient of the first moment, in [0, 1).
        optimizer_step: updates that the moments have seen, this one included; at least 1.
    """
    if _kernel(optimizer, momentum)[0] != "adam":
        return 1.0
    return (1.0 - momentum) / (1.0 - momentum ** max(optimizer_step, 1))


def squared_response_sums(optimizer: str, momentum: float, steps_H: Array) -> Array:
    """Return ``S_2(h)`` (no bias correction) for each, also fractional, ``h`` of ``steps_H``, in closed form.

    ``sum_{k=1..h} (1 - b^k)^2 = h - 2 b (1 - b^h)/(1 - b) + b^2 (1 - b^(2h))/(1 - b^2)``.
    """
    kind, b = _kernel(optimizer, momentum)
    h = np.asarray(steps_H, dtype=np.float64)
    if kind == "none":
        return np.array(h)
    total = h - 2.0 * b * (1.0 - b**h) / (1.0 - b) + b * b * (1.0 - b ** (2.0 * h)) / (1.0 - b * b)
    return total / (1.0 - b) ** 2 if kind == "momentum" else total
