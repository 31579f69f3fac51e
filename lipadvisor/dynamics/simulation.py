"""Simulated paths of the SDE, one Euler step for each optimizer step."""

from __future__ import annotations

import numpy as np

from lipadvisor.terms import Array

__all__ = ["simulate"]

_ROUNDING = 1e-6  # negative eigenvalues of a covariance that was measured in float32, relative to the largest


def simulate(
    log_norm_L: Array,
    rate_TL: Array,
    noise_TLL: Array,
    lr_T: Array,
    paths: int,
    generator: np.random.Generator,
) -> Array:
    """Draw paths of the log-norms of ``L`` layers over ``T`` steps.

    ``log_norm += lr * rate + lr * xi`` with ``xi ~ N(0, noise)``: ``noise`` is the covariance of one step's direction,
    so that the diffusion of layer ``l`` is ``sqrt(lr noise_ll)``. The noise is additive: each step is exact in
    distribution.

    Args:
        log_norm_L: start, nats, shape ``(L,)``.
        rate_TL: nats per ``tau``, shape ``(T, L)``.
        noise_TLL: nats^2 per tau^2, positive semidefinite, shape ``(T, L, L)``.
        lr_T: learning rates, shape ``(T,)``.
        paths: number of paths, at least 1.
        generator: source of randomness.

    Returns:
        Log-norms in nats, shape ``(paths, T + 1, L)``; entry 0 is the start.

    Raises:
        ValueError: ``paths`` is below 1, the shapes do not agree, or the noise is not finite or not positive
            semidefinite (by more than rounding).
    """
    steps, layers = rate_TL.shape
    if paths < 1:
        raise ValueError(f"simulate(paths=...) must be at least 1, got {paths!r}.")
    if noise_TLL.shape != (steps, layers, layers) or lr_T.shape != (steps,) or log_norm_L.shape != (layers,):
        shapes = (log_norm_L.shape, rate_TL.shape, noise_TLL.shape, lr_T.shape)
        raise ValueError(f"simulate(...) must have shapes (L,), (T, L), (T, L, L), (T,), got {shapes}.")
    if not np.isfinite(noise_TLL).all():
        raise ValueError("simulate(noise_TLL=...) must be finite; leave out steps whose noise was not measured.")
    value_TL, vector_TLL = np.linalg.eigh(noise_TLL)
    if np.any(value_TL < -_ROUNDING * np.abs(value_TL).max(axis=1, keepdims=True, initial=0.0)):
        raise ValueError(
            f"simulate(noise_TLL=...) must be positive semidefinite, got an eigenvalue of {float(value_TL.min())!r}."
        )
    factor_TLL = vector_TLL * np.sqrt(np.maximum(value_TL, 0.0))[:, None, :]
    white_PTL = generator.standard_normal((paths, steps, layers))
    shock_PTL = np.einsum("tlk,ptk->ptl", factor_TLL, white_PTL)
    step_PTL = lr_T[:, None] * (rate_TL + shock_PTL)
    path_PTL = np.empty((paths, steps + 1, layers))
    path_PTL[:, 0] = log_norm_L
    path_PTL[:, 1:] = log_norm_L + np.cumsum(step_PTL, axis=1)
    return path_PTL
