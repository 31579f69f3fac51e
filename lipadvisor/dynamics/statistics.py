"""Integral form and log-normal statistics of the bound ([D], the theorems after the main one).

``Z(t) = Z(0) + sum rate lr + sum diffusion sqrt(lr) xi`` is Gaussian for given coefficients, so ``K = exp(Z)`` is
log-normal. ``K`` passes 1e264 in real runs: everything is kept as a logarithm, and exponentials are asked for by name.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lipadvisor.terms import Array

__all__ = ["LogNormal", "integral_form"]


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Distribution of ``K = exp(Z)`` with Gaussian ``Z``: arrays of one shape, or floats."""

    mean_log: Array  # E[Z], nats
    var_log: Array  # Var[Z], nats^2, >= 0

    def log_mean(self) -> Array:
        """Return ``ln E[K] = E[Z] + Var[Z] / 2``."""
        return np.asarray(self.mean_log + 0.5 * np.asarray(self.var_log))

    def log_var(self) -> Array:
        """Return ``ln Var[K] = 2 ln E[K] + ln( exp(Var[Z]) - 1 )``; ``-inf`` where ``Var[Z]`` is 0."""
        var = np.asarray(self.var_log, dtype=np.float64)
        with np.errstate(divide="ignore"):
            # exp(v) - 1 = exp(v) (1 - exp(-v)): no overflow for large v, no cancellation for small v.
            return np.asarray(2.0 * self.log_mean() + var + np.log(-np.expm1(-var)))

    def mean(self) -> Array:
        """Return ``E[K]``; ``inf`` where it leaves the range of floats (use :meth:`log_mean` there)."""
        with np.errstate(over="ignore"):
            return np.exp(self.log_mean())

    def var(self) -> Array:
        """Return ``Var[K]``; ``inf`` where it leaves the range of floats (use :meth:`log_var` there)."""
        with np.errstate(over="ignore"):
            return np.exp(self.log_var())


def integral_form(start: float, rate_T: Array, diffusion_T: Array, lr_T: Array) -> LogNormal:
    """Integrate the coefficients of ``T`` steps into the distribution of the bound before and after each of them.

    Args:
        start: ``Z(0)``, nats.
        rate_T: expected rate of each step, nats per ``tau``.
        diffusion_T: nats per square root of ``tau``.
        lr_T: learning rate of each step, >= 0.

    Returns:
        The distribution at the ``T + 1`` times ``0..T``: ``E[Z]`` and ``Var[Z]`` of shape ``(T + 1,)``.

    Raises:
        ValueError: the lengths differ, or a learning rate is negative.
    """
    if not len(rate_T) == len(diffusion_T) == len(lr_T):
        lengths = (len(rate_T), len(diffusion_T), len(lr_T))
        raise ValueError(f"integral_form(rate_T, diffusion_T, lr_T) must have one length, got {lengths}.")
    if np.any(np.asarray(lr_T) < 0.0):
        raise ValueError(f"integral_form(lr_T=...) must not be negative, got {float(np.min(lr_T))!r}.")
    mean = start + np.concatenate(([0.0], np.cumsum(rate_T * lr_T)))
    var = np.concatenate(([0.0], np.cumsum(diffusion_T**2 * lr_T)))
    return LogNormal(mean, var)
