"""What one measured step hands over from torch to numpy.

The probe (torch) writes a :class:`Terms`; dynamics, forecast and everything behind them (numpy) only read it. This
module imports numpy alone, so that the offline line needs no torch.

Shapes: ``L`` layers, in the order of ``names``. All arrays are float64. Notation of ``docs/science.md``: ``s, u, v``
top singular value and vectors of a layer's operator ``W``; the optimizer applies ``W' = (1 - lr wd) W + lr U`` (so
``U = -G`` for plain SGD); ``a(E) = u' E v / s``; ``q`` the second-order form of the operator norm.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Terms"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Terms:
    """Measurement of optimizer step number ``step`` (0-based): made on the weights before it, with its own batch."""

    step: int
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]  # (fan_out, fan_in)
    groups: tuple[int, ...]  # optimizer parameter group of each layer
    lr_L: Array  # learning rate in force
    weight_decay_L: Array  # decoupled coefficient in force, per unit of tau
    composition_L: Array  # dZ / d log_norm
    log_norm_L: Array  # nats, before the step
    gap_L: Array  # 1 - s_2 / s_1
    log_gain_L: Array  # ln( rms(W) sqrt(fan_in) ), nats
    first_L: Array  # a(U), nats per tau: first-order response to the applied direction
    curvature_L: Array  # q(U) / s, nats per tau^2
    change_L: Array  # nats: change of log_norm over this step as predicted to second order, decay included; the
    # tracked block is treated exactly, so that near-degenerate pairs do no harm
    update_ratio_L: Array  # s_1(U) / s, per tau
    noise_LL: Array  # covariance over the sampling of batches of a_l(P g), nats^2 per tau^2 (mean of M samples)
    noise_curvature_L: Array  # <H_op, Sigma_P> / s = E q(noise) / s, nats per tau^2
    network_log_norm: float  # Z before the step, nats
    batch_size: int  # M
    optimizer: str  # "sgd", "adamw", "adam", "unknown"
    momentum: float  # b, or b1
    optimizer_step: int  # how many updates the optimizer's moments have seen, this one included
    status_L: tuple[str, ...]  # values of lipadvisor.policies.Status
    level: str = "full"  # "norms", "drift", "noise" or "full": what was measured; the rest is nan
    measure_s: float = 0.0  # seconds spent on measuring this step
    step_s: float = 0.0  # seconds of the whole step, measuring included
    log_norm_after_L: Array = field(default_factory=lambda: np.zeros(0))  # nats, of the weights after the step: the
    # tracker is refreshed once, in after_update, and the next step (if measured) starts from that same refresh
    gap_after_L: Array = field(default_factory=lambda: np.zeros(0))  # the same for the gap
    frobenius_L: Array = field(default_factory=lambda: np.zeros(0))  # |W|_F
    local_log_norm: float = float("nan")  # ln of the local Lipschitz constant on the probe batch, where measured
    interval: int = 1  # steps from this measurement to the next, as planned
    population: int | None = None  # rows that batches are drawn from without replacement: the noise is smaller by the
    # factor 1 - M/N than that of independent draws, here and above; None for independent draws
    frobenius_ratio_L: Array = field(default_factory=lambda: np.zeros(0))  # |U|_F / |W|_F, per tau
    row_ratio_L: Array = field(default_factory=lambda: np.zeros(0))  # largest |U_i| over largest |W_i|, rows, per tau
    input_sizes: tuple[tuple[int, ...], ...] = ()  # (channels, ...) of the maps that a layer's norm is for; () for none
